from __future__ import annotations

import contextlib
import io

import pytest
from rich.console import Console

from fptq.cli.progress import ProgressBar
from fptq.cli.terminal import Terminal


def work(bar: ProgressBar) -> None:
    for done in range(1, 4):
        bar(done, 3, "calibration")
    bar(1, 1, "timing [ms]")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_drawn_on_terminals_only_and_a_line_remains(terminal: bool) -> None:
    stream = io.StringIO()
    with ProgressBar(Console(file=stream, force_terminal=terminal, width=100)) as bar:
        work(bar)
    text = stream.getvalue()
    assert ("ETA" in text) == terminal
    last = text.splitlines()[-1]
    assert "finished in " in last
    assert "calibration" in last
    assert "timing [ms]" in last, "a name is no markup"


def test_details_behind_a_colon_share_a_bar_and_a_time() -> None:
    stream = io.StringIO()
    with ProgressBar(Console(file=stream, force_terminal=False, width=200)) as bar:
        bar(1, 2, "learning: conv1, loss 0.3")
        bar(2, 2, "learning: conv2, loss 0.2")
    assert stream.getvalue().count("learning") == 1
    assert "conv" not in stream.getvalue()


def test_a_failure_leaves_no_line_that_says_finished() -> None:
    stream = io.StringIO()
    with contextlib.suppress(RuntimeError), ProgressBar(Console(file=stream, force_terminal=False)) as bar:
        work(bar)
        raise RuntimeError
    assert stream.getvalue() == ""


def test_json_output_is_not_disturbed(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal(json=True).progress() as bar:
        work(bar)
    assert capsys.readouterr() == ("", "")


def test_an_unknown_total_is_no_division_by_zero() -> None:
    with ProgressBar(Console(file=io.StringIO(), force_terminal=True)) as bar:
        bar(0, 0, "streaming")
        bar(5, 0, "streaming")
