import re
import subprocess
import sys
from pathlib import Path

import pytest

from fptq.errors import OutputError
from fptq.report.html import FILE_NAME, render, write_html
from fptq.report.records import Agreement, Variant


@pytest.fixture(scope="module")
def page(report) -> str:
    return render(report)


def without_scripts(page: str) -> str:
    return re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)


def test_importing_the_report_loads_neither_plotly_nor_jinja():
    code = "import fptq.report.report, fptq.report.html, sys; print(*{'plotly', 'jinja2', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_names_are_escaped_everywhere(page, report):
    hostile = report.refusals[34].node
    assert hostile.startswith("</script>")
    assert hostile not in page
    body = without_scripts(page)
    assert "<script" not in body
    assert "<img src=x" not in body
    assert "{{ 7 * 7 }}" in body
    assert page.count("<script") == page.count("</script>") == 4


def test_nothing_is_fetched(page):
    body = without_scripts(page)
    assert re.findall(r'(?:src|href)="(?!#|data:image/png;base64,)[^"]*"', body) == []
    assert "url(" not in page.partition("<style>")[2].partition("</style>")[0]
    assert "default-src 'none'" in page


def test_what_the_issue_asks_for_is_on_the_page(page, report):
    body = without_scripts(page)
    for section in ("Summary", "Slices", "Cases", "Layers", "Where the time goes", "Kept in float", "Environment"):
        assert section in body
    for panel in ("image", "float", "int8", "label", "difference"):
        assert body.count(f"<figcaption>{panel}") == 3
    assert "InstanceNormalization is not in the int8 profile" in body
    assert body.count("<tr data-index=") == 60
    assert "--labels labels_val/" in body
    assert report.model.sha256 in body


def test_sensitivities_the_search_and_what_was_tried_are_on_the_page(page, report):
    body = without_scripts(page)
    for section in ("limits", "sensitivity", "search", "tried"):
        assert f'href="#{section}"' in body
        assert f'id="{section}"' in body
    for chart in ("sensitivities", "bits", "errors", "pareto"):
        assert f'<div id="{chart}" class="plot' in body
    table = body.partition('id="layer-sensitivities"')[2].partition("</table>")[0]
    assert table.count("<tr>") == len(report.sensitivity.rows) + 1
    mixes = body.partition('class="mixes"')[2].partition("</table>")[0]
    assert mixes.count("<tr") == len(report.search.points) + 1
    assert mixes.count('<span class="badge">chosen</span>') == 1
    assert "The predicted error of a mix is the sum" in body
    assert "+1.3" in body.partition('class="tried"')[2]


def test_what_has_no_sensitivity_has_no_column_for_it(build_report):
    undecided = tuple(row.model_copy(update={"precision": ""}) for row in build_report().sensitivity.rows)
    sensitivity = build_report().sensitivity.model_copy(update={"rows": undecided, "objective": "kl"})
    body = without_scripts(render(build_report(sensitivity=sensitivity, search=None, tried=())))
    assert '<div id="bits"' not in body
    assert ">became<" not in body
    assert "output KL [nats], w8a8" in body


def test_a_report_with_next_to_nothing_is_a_small_page(build_report):
    bare = Variant(precision="fp32")
    nothing = dict.fromkeys(("float_default", "speedup", "speedup_default", "compression", "calibration", "gate"))
    nothing |= dict.fromkeys(("sensitivity", "search"))
    lists = dict.fromkeys(
        ("tried", "drops", "placements", "refusals", "nodes", "float_nodes", "pictures", "warnings"), ()
    )
    small = render(build_report(float=bare, quantized=bare, agreement=Agreement(), **nothing, **lists))
    assert len(small) < 60_000
    assert "Nothing was measured." in small
    for section in ("layers", "limits", "sensitivity", "search", "tried"):
        assert f'id="{section}"' not in small
        assert f'href="#{section}"' not in small


def test_the_page_is_written_whole(report, page, tmp_path: Path):
    path = write_html(report, tmp_path)
    assert path == tmp_path / FILE_NAME
    assert path.read_text(encoding="utf-8") == page
    with pytest.raises(OutputError):
        write_html(report, path)
