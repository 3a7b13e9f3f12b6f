"""The page in a real browser: headless Chromium runs it, and a probe appended to the page says what it found."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fptq.report.html import render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--virtual-time-budget=20000",
)
PROBE = """
<script>
(async () => {
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  for (let n = 0; n < 100 && document.documentElement.dataset.ready !== "true"; n++) await wait(50);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const numbers = () => all("#tensors tbody tr").map((row) => row.cells[7].dataset.value);
  const heading = all("#tensors thead th")[7];
  const bars = () => document.querySelector("#histogram .bars path, #histogram .point path")?.getAttribute("d");
  const found = { drawn: all("#sqnr svg.main-svg, #histogram svg.main-svg").length, overflow: {} };
  found.points = all("#sqnr .point").length;
  heading.querySelector("button").click();
  found.ascending = numbers();
  heading.querySelector("button").click();
  found.descending = numbers();
  found.sort = heading.getAttribute("aria-sort");
  const before = bars();
  all('#tensors tr[data-index="12"]')[0].click();
  await wait(50);
  found.redrawn = before !== bars() && Boolean(before);
  found.selected = all('#tensors tr[aria-selected="true"]').map((row) => row.dataset.index);
  found.facts = document.getElementById("facts").textContent;
  document.getElementById("filter").value = "decoder3 weight";
  document.getElementById("filter").dispatchEvent(new Event("input"));
  found.filtered = all("#tensors tbody tr:not([hidden])").map((row) => row.textContent);
  found.counted = document.getElementById("shown").textContent;
  document.getElementById("filter").value = "";
  document.getElementById("kind").value = "fell-back";
  document.getElementById("kind").dispatchEvent(new Event("change"));
  found.fellBack = all("#tensors tbody tr:not([hidden])").length;
  all('#tensors tr[data-index="40"]')[0].click();
  found.noHistogram = document.getElementById("histogram").textContent;
  found.charts = ["sensitivities", "bits", "errors", "pareto"].map((id) => all(`#${id} .main-svg`).length);
  found.bars = all("#bits .point").length;
  found.rings = all("#pareto .trace").length;
  const losses = () => all("#layer-sensitivities tbody tr").map((row) => row.cells[3].textContent);
  all("#layer-sensitivities thead th")[3].querySelector("button").click();
  found.losses = losses();
  found.images = all("img").map((image) => image.naturalWidth);
  found.width = [document.scrollingElement.scrollWidth, innerWidth];
  found.paper = getComputedStyle(document.body).backgroundColor;
  found.text = getComputedStyle(document.body).color;
  found.errors = document.documentElement.dataset.errors || "";
  found.hacked = document.documentElement.dataset.hacked || "";
  document.documentElement.dataset.probe = JSON.stringify(found);
})();
</script>
</body>
"""


def probe(page: Path, folder: Path, *flags: str) -> dict[str, Any]:
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder}", *flags, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    answer = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert answer, f"the page did not get to its end: {done.stdout[:2000]}"
    return json.loads(html.unescape(answer.group(1)))


@pytest.fixture(scope="module")
def page(report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(report).replace("</body>", PROBE), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def wide(page: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return probe(page, tmp_path_factory.mktemp("wide"), "--window-size=1280,900")


@pytest.fixture(scope="module")
def narrow(page: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("narrow")
    return probe(page, folder, "--window-size=500,900", "--blink-settings=preferredColorScheme=0")


def test_the_page_runs_without_an_error_and_runs_no_name(wide, narrow):
    assert [found["errors"] + found["hacked"] for found in (wide, narrow)] == ["", ""]


def test_the_charts_are_drawn(wide, report):
    assert wide["drawn"] >= 2
    assert wide["points"] == sum(
        (p.sqnr_local_db is not None) + (p.sqnr_accumulated_db is not None) for p in report.placements
    )


def test_the_charts_of_the_search_are_drawn(wide, narrow, report):
    for found in (wide, narrow):
        assert min(found["charts"]) >= 1
        assert found["bars"] == 2 * len(report.sensitivity.rows)
        assert found["rings"] == 5


def test_sensitivities_are_sorted_from_the_layer_that_hurts_most(wide):
    levels = [float(level) for level in wide["losses"]]
    assert levels == sorted(levels)


def test_a_heading_sorts_both_ways_and_what_is_missing_stays_last(wide):
    levels = [[float(v) for v in wide[way] if v] for way in ("ascending", "descending")]
    assert len(levels[0]) == 30
    assert levels[0] == sorted(levels[0])
    assert levels[1] == sorted(levels[1], reverse=True)
    assert wide["ascending"][30:] == wide["descending"][30:] == [""] * 30
    assert wide["sort"] == "descending"


def test_choosing_a_layer_shows_its_histogram(wide):
    assert wide["redrawn"]
    assert wide["selected"] == ["12"]
    assert "w_12" in wide["facts"]
    assert wide["noHistogram"] == "No histogram was recorded."


def test_the_filter_takes_words_and_kinds(wide):
    assert wide["filtered"]
    assert all("decoder3" in text and "weight" in text for text in wide["filtered"])
    assert wide["counted"] == f"{len(wide['filtered'])} of 60 tensors"
    assert wide["fellBack"] == 4


def test_the_slices_are_images(wide):
    assert len(wide["images"]) == 3 * (5 + 4)
    assert min(wide["images"]) == 72


def test_the_page_fits_a_wide_and_a_narrow_window(wide, narrow):
    for found in (wide, narrow):
        assert found["width"][0] <= found["width"][1]


def test_the_page_follows_the_colour_scheme(wide, narrow):
    light, dark = (
        [sum(map(int, re.findall(r"\d+", found[part]))) for part in ("paper", "text")] for found in (wide, narrow)
    )
    assert light[0] > 700 > 150 > light[1]
    assert dark[0] < 100 < 600 < dark[1]
