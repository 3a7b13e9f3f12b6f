"use strict";

const root = document.documentElement;
const byId = (id) => document.getElementById(id);
const charts = JSON.parse(byId("charts").textContent);

/* Tables: click a heading to sort; what has no number stays last, both ways. */
function sortBy(heading) {
  const descending = heading.getAttribute("aria-sort") === "ascending";
  const column = heading.cellIndex;
  const numeric = heading.querySelector("button").dataset.sort === "number";
  const body = heading.closest("table").tBodies[0];
  const key = (row) => {
    const cell = row.cells[column];
    if (!numeric) return cell.textContent.trim();
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  };
  const order = (a, b) => (numeric ? a - b : a.localeCompare(b, undefined, { numeric: true }));
  const rows = [...body.rows].map((row) => [key(row), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return descending ? order(b, a) : order(a, b);
  });
  for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  body.append(...rows.map(([, row]) => row));
}

for (const button of document.querySelectorAll(".sortable th button[data-sort]")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}

/* The table of tensors: filter, and choose one to look at. */
const tensors = byId("tensors");

function filterRows() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const kind = byId("kind").value;
  let shown = 0;
  for (const row of tensors.tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !(words.every((word) => text.includes(word)) && (!kind || row.dataset.kind.split(" ").includes(kind)));
    shown += !row.hidden;
  }
  byId("shown").textContent = `${shown} of ${tensors.tBodies[0].rows.length} tensors`;
}

function choose(index) {
  const select = byId("layer");
  select.value = String(index);
  for (const row of tensors.tBodies[0].rows) row.setAttribute("aria-selected", row.dataset.index === select.value);
  const terms = charts.facts[index].flatMap(([label, value]) => {
    const term = document.createElement("dt");
    const description = document.createElement("dd");
    term.textContent = label;
    description.textContent = value;
    return [term, description];
  });
  byId("facts").replaceChildren(...terms);
  drawHistogram();
}

function step(by) {
  const { options, selectedIndex } = byId("layer");
  choose((selectedIndex + by + options.length) % options.length);
}

/* Charts: Plotly travels gzipped; its colours are those of the page, light or dark. */
function themed(value, style) {
  if (typeof value === "string") return value.replace(/^var\((--[\w-]+)\)$/, (_, name) => style.getPropertyValue(name).trim());
  if (Array.isArray(value)) return value.map((item) => themed(item, style));
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, themed(item, style)]));
  }
  return value;
}

function draw(id, figure) {
  const place = byId(id);
  if (!place) return;
  if (!figure || !window.Plotly) {
    if (window.Plotly) Plotly.purge(place);
    place.textContent = figure ? "This browser cannot draw the chart; the table has its numbers." : "No histogram was recorded.";
    return;
  }
  if (!place.classList.contains("js-plotly-plot")) place.textContent = "";
  const style = getComputedStyle(root);
  const { data, layout } = themed(figure, style);
  layout.font.family = getComputedStyle(document.body).fontFamily;
  Plotly.react(place, data, layout, { responsive: true, displayModeBar: false });
}

function drawHistogram() {
  const figure = charts.histograms[Number(byId("layer").value)];
  if (figure) {
    const log = byId("log").checked;
    Object.assign(figure.layout.yaxis, { type: log ? "log" : "linear", dtick: log ? 1 : null });
  }
  draw("histogram", figure);
}

function drawFigures() {
  for (const [id, figure] of Object.entries(charts.figures)) if (figure) draw(id, figure);
}

function drawAll() {
  drawFigures();
  if (tensors) drawHistogram();
}

async function loadPlotly() {
  const packed = byId("plotly");
  if (!packed || !("DecompressionStream" in window)) return;
  const bytes = Uint8Array.from(atob(packed.textContent), (character) => character.charCodeAt(0));
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.text = await new Response(unpacked).text();
  document.head.append(script);
}

if (tensors) {
  byId("filter").addEventListener("input", filterRows);
  byId("kind").addEventListener("change", filterRows);
  byId("layer").addEventListener("change", (event) => choose(Number(event.target.value)));
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("log").addEventListener("change", drawHistogram);
  tensors.tBodies[0].addEventListener("click", (event) => {
    choose(Number(event.target.closest("tr").dataset.index));
    if (event.target.closest(".choose")) byId("detail").scrollIntoView({ block: "nearest" });
  });
  filterRows();
}

byId("overlay")?.addEventListener("input", (event) => root.style.setProperty("--overlay", event.target.value / 100));

byId("copy").addEventListener("click", async (event) => {
  const button = event.target;
  try {
    await navigator.clipboard.writeText(byId("command").textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(byId("command")); // no clipboard for this page: leave it selected
    button.textContent = "Selected";
  }
});

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
addEventListener("beforeprint", () => { root.classList.add("printing"); drawAll(); });
addEventListener("afterprint", () => { root.classList.remove("printing"); drawAll(); });

loadPlotly().catch((error) => { root.dataset.errors = `${root.dataset.errors || ""}charts: ${error}; `; }).then(() => {
  drawFigures();
  if (tensors) {
    choose(Number(byId("layer").value));
    byId("sqnr")?.on?.("plotly_click", ({ points }) => choose(points[0].x - 1));
  }
  root.dataset.ready = "true";
});
