import json
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fptq.errors import ConfigError, OutputError
from fptq.report.records import Latency, Score
from fptq.report.report import FILE_NAME, Report


def test_what_is_read_back_equals_what_was_saved(report: Report, tmp_path: Path):
    path = report.save(tmp_path / "new" / "folder")
    assert Report.load(path.parent) == report
    assert Report.load(path) == report
    assert [p.name for p in path.parent.iterdir()] == [FILE_NAME]


@given(value=st.floats() | st.none(), cases=st.dictionaries(st.text(max_size=5), st.floats(width=32), max_size=3))
def test_any_float_survives_json_and_what_is_not_finite_becomes_null(value, cases):
    score = Score(value=value, per_case=cases)
    text = score.model_dump_json()
    assert Score.model_validate_json(text) == score
    assert "NaN" not in text or "NaN" in "".join(cases)
    assert (score.value is None) == (value is None or not np.isfinite(value))


def test_numpy_scalars_are_numbers():
    latency = Latency(median=np.float32(1.5), p95=np.float64("inf"), runs=np.int64(3))
    assert latency.model_dump() == {"median": 1.5, "p95": None, "runs": 3}


def test_a_report_is_not_changed_and_has_no_unknown_fields(report: Report):
    with pytest.raises(ValidationError, match="frozen"):
        report.seed = 1
    with pytest.raises(ValidationError, match="Extra inputs"):
        Score(value=1.0, valeu=2.0)


def damaged(report: Report, folder: Path, change: Callable[[dict], object]) -> Path:
    path = report.save(folder)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return folder


def test_a_schema_of_the_future_is_refused_with_a_way_out(report: Report, tmp_path: Path):
    folder = damaged(report, tmp_path, lambda data: data.update(schema_version=99, new_field=1))
    with pytest.raises(ConfigError, match=r"schema version 99.*reads version 1.*pip install"):
        Report.load(folder)


def test_a_damaged_report_names_the_field(report: Report, tmp_path: Path):
    folder = damaged(report, tmp_path, lambda data: data["placements"][3].update(kind="wieght"))
    with pytest.raises(ConfigError, match=r"placements\.3\.kind.*'weight' or 'activation'"):
        Report.load(folder)


def test_other_files_are_not_reports(report: Report, tmp_path: Path):
    with pytest.raises(ConfigError, match="no report at"):
        Report.load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no schema_version"):
        Report.load(damaged(report, tmp_path, lambda data: data.clear()))
    (tmp_path / FILE_NAME).write_text('{"schema_version": 1, "mod')
    with pytest.raises(ConfigError, match="not JSON"):
        Report.load(tmp_path)
    (tmp_path / FILE_NAME).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not JSON"):
        Report.load(tmp_path)


def test_a_full_disk_leaves_the_old_report(report: Report, tmp_path: Path):
    path = report.save(tmp_path)
    old = path.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"could not be written.*unchanged"):
            report.model_copy(update={"seed": 2}).save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == [FILE_NAME]


def test_a_file_in_the_way_of_the_folder_is_an_output_error(report: Report, tmp_path: Path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="could not be written"):
        report.save(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"
