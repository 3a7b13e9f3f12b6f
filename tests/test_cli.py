from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from fptq.cli import app
from fptq.cli.options import precisions, recipe, writable
from fptq.config import Recipe
from fptq.errors import ConfigError, OutputError

FAST = ["--engine", "onnxruntime", "--threads", "1", "--observer", "minmax"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small convolutional network `tiny.onnx` and its samples in `calib/`; it is the current one."""
    generator = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        values = generator.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array(values.astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="stem"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="body[0]"),
        helper.make_node("Sigmoid", ["c"], ["y"], name="sigmoid"),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 4, 10, 10]), ("y", [1, 16, 6, 6]))
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [weight("w1", 16, 4, 3, 3), weight("w2", 16, 16, 3, 3)])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "tiny.onnx"
    )
    (tmp_path / "calib").mkdir()
    for index in range(4):
        np.savez(tmp_path / "calib" / f"{index}.npz", x=generator.normal(size=(1, 4, 10, 10)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def fptq(*arguments: str) -> Result:
    """One command, in this process."""
    return CliRunner().invoke(app, list(arguments))


def test_help_is_plain_and_short() -> None:
    for arguments in ((), ("--help",)):
        done = fptq(*arguments)
        assert done.exit_code == 0
        assert "quantize" in done.stdout
        assert "╭" not in done.stdout
        assert "..." not in done.stdout.partition("Commands:")[2], "every command's line fits"


def test_help_names_every_choice_that_the_recipe_accepts() -> None:
    text = fptq("quantize", "--help").stdout
    for field in ("engine", "task", "observer", "regions"):
        assert "|".join(get_args(Recipe.model_fields[field].annotation)) in text


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["quantiz"], 2, "Did you mean 'quantize'?"),
        (["--bogus"], 2, "--bogus"),
        (["quantize"], 2, "Missing argument 'MODEL'. See fptq quantize --help."),
        (["quantize", "x", "--cailb", "y"], 2, "--calib"),
        (["quantize", "x", "--threads", "two"], 2, "--threads"),
        (["quantize", "x", "--calib", "y", "--engine", "ort"], 2, "options: engine = 'ort' should be 'auto'"),
        (["quantize", "x", "--calib", "y", "--also-quantize", "norm"], 2, "also_quantize.0 = 'norm' should be"),
        (["quantize", "x", "--calib", "y", "--precision", "a"], 2, "GLOB=int8"),
        (["quantize", "x", "--calib", "y", "--precision", "a=int4"], 2, "precision.a = 'int4'"),
        (["quantize", "x", "--calib", "y", "--keep-float", "a", "--precision", "a=int8"], 2, "either kept in float"),
        (["quantize", "x", "--calib", "y", "--config", "none.toml"], 2, "no recipe at none.toml"),
        (["quantize", "x", "--calib", "y", "--labels", "z"], 2, "Give --val too"),
        (["quantize", "x"], 4, "there is no calibration data"),
        (["quantize", "none.onnx", "--calib", "calib"], 3, "none.onnx"),
        (["quantize", "tiny.onnx", "--calib", "nowhere"], 4, "nowhere"),
        (["quantize", "tiny.onnx", "--calib", "calib", "-o", "tiny.onnx"], 8, "it is a file"),
        (["inspect", "calib"], 3, "is a folder"),
        (["bench", "tiny.onnx", "--engine", "tensorflow"], 2, "tensorflow"),
        (["bench", "tiny.onnx", "--rounds", "1"], 2, "--rounds"),
        (["sensitivity", "tiny.onnx"], 4, "there is no calibration data"),
        (["sensitivity", "tiny.onnx", "--calib", "calib", "--format", "int8"], 2, "w4a8 means 4-bit weights"),
        (["search", "tiny.onnx", "--calib", "calib"], 2, "there is no limit"),
        (["search", "tiny.onnx", "--calib", "calib", "--max-size", "small"], 2, "small"),
        (["search", "tiny.onnx", "--calib", "calib", "--max-size", "0.01x", "-o", "p.json", *FAST], 2, "nearest"),
        (["predict", "tiny.onnx", "calib"], 2, "Missing option '--output'"),
        (["predict", "nowhere", "calib", "-o", "new"], 2, "nowhere does not exist. Give the folder that fptq quantize"),
        (["predict", "tiny.onnx", "calib", "-o", "new"], 2, "tiny.onnx is a file"),
        (["predict", "calib", "calib", "-o", "new"], 2, "calib has no model.onnx"),
        (["predict", "calib", "calib", "-o", "tiny.onnx"], 8, "it is a file"),
        (["report", "nowhere"], 2, "no report at nowhere"),
        (["demo", "brian"], 2, "Did you mean 'brain'?"),
    ],
)
def test_a_mistake_is_one_line_with_the_way_out(folder: Path, arguments: list[str], code: int, says: str) -> None:
    done = fptq(*arguments)
    assert done.exit_code == code, done.output
    assert says in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_an_error_is_json_too(folder: Path) -> None:
    done = fptq("report", "nowhere", "--json")
    error = json.loads(done.stdout)["error"]
    assert (error["kind"], error["exit_code"], done.exit_code) == ("ConfigError", 2, 2)
    assert error["message"] in done.stderr


def test_debug_shows_the_traceback_wherever_it_stands(folder: Path) -> None:
    for arguments in (("--debug", "report", "nowhere"), ("report", "nowhere", "--debug")):
        assert "Traceback" in fptq(*arguments).stderr


def test_what_nobody_expected_says_how_to_learn_more(folder: Path) -> None:
    (folder / "mine_unexpected.py").write_text("def net():\n    return 1 / 0\n", encoding="utf-8")
    done = fptq("quantize", "mine_unexpected:net", "--calib", "calib")
    assert done.exit_code == 70
    assert (
        done.stderr
        == "error: unexpected ZeroDivisionError: division by zero. Run again with --debug for the traceback.\n"
    )


def test_a_network_is_quantized_and_its_report_written_again(folder: Path) -> None:
    done = fptq("quantize", "tiny.onnx", "--calib", "calib", *FAST, "-o", "out")
    assert done.exit_code == 0, done.output
    assert "Latency, median [ms]" in done.stdout
    assert f"report: {Path('out') / 'report.html'}" in done.stdout
    assert done.stderr.startswith("finished in ")
    assert "\x1b" not in done.output, "no colours in a file"
    page = folder / "out" / "report.html"
    page.unlink()
    again = fptq("--json", "report", "out")
    assert json.loads(again.stdout) == {"report": str(Path("out") / "report.html")}
    assert page.exists()


def test_a_quantized_network_predicts(folder: Path) -> None:
    assert fptq("quantize", "tiny.onnx", "--calib", "calib", *FAST, "-o", "out").exit_code == 0
    done = fptq("predict", "out", "calib", "-o", "new")
    assert done.exit_code == 0, done.output
    assert done.stdout == "4 results in new\n"
    assert done.stderr.startswith("finished in ")
    again = fptq("predict", "out", "calib/1.npz", "-o", "new")
    assert (again.exit_code, again.stderr.count("\n")) == (8, 1)
    assert f"{Path('new') / '1.npz'} exists" in again.stderr
    replaced = fptq("predict", "out", "calib/1.npz", "-o", "new", "--overwrite", "--json")
    assert json.loads(replaced.stdout) == {"output": "new", "files": [str(Path("new") / "1.npz")]}
    with np.load(folder / "new" / "1.npz") as outputs:
        assert outputs["y"].shape == (1, 16, 6, 6)
    np.save(folder / "wrong.npy", np.zeros((1, 4, 9, 10), np.float32))
    wrong = fptq("predict", "out", "wrong.npy", "-o", "new")
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (4, 1)
    assert "input 'x' has shape [1, 4, 9, 10]" in wrong.stderr


def test_json_is_all_there_is_on_standard_output(folder: Path) -> None:
    (folder / "fptq.toml").write_text('calib = "mine_loud:batches"\ngate = "off"\nseed = 7\n', encoding="utf-8")
    (folder / "mine_loud.py").write_text(
        "import numpy as np\ndef batches():\n    print('loading')\n    yield np.ones((1, 4, 10, 10), np.float32)\n",
        encoding="utf-8",
    )
    done = fptq("quantize", "tiny.onnx", "--config", "fptq.toml", *FAST, "--json")
    document = json.loads(done.stdout)
    assert document["output"] == "out"
    assert document["report"]["seed"] == 7
    assert document["report"]["engine"]["name"] == "onnxruntime"
    assert "loading" in done.stderr


def test_inspection_gives_every_node_a_reason(folder: Path) -> None:
    done = fptq("inspect", "tiny.onnx", "--engine", "onnxruntime", "--keep-float", "stem", "--json")
    rows = {row["node"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows["stem"]["decision"] == "float"
    assert "'stem'" in rows["stem"]["reason"]
    assert rows["body[0]"]["decision"] == "int8"
    shown = fptq("inspect", "tiny.onnx", "--engine", "onnxruntime").stdout
    assert "body[0]" in shown, "a name is no markup"
    assert "2 of 4 nodes would be int8 on onnxruntime." in shown


def test_sensitive_layers_come_first(folder: Path) -> None:
    asked = ["sensitivity", "tiny.onnx", "--calib", "calib", "--format", "w8a8", "--format", "w2a2", *FAST]
    done = fptq(*asked)
    assert done.exit_code == 0, done.output
    assert "w2a2" in done.output
    rows = json.loads(fptq(*asked, "--json").stdout)["rows"]
    assert {row["layer"] for row in rows} == {"stem", "body[0]"}
    assert all(row["loss"]["w2a2"] > row["loss"]["w8a8"] for row in rows)


def test_a_budget_is_met_and_its_plan_replayed(folder: Path) -> None:
    asked = ["search", "tiny.onnx", "--calib", "calib", "--max-size", "0.5x", "-o", "found/plan.json", *FAST]
    done = fptq(*asked, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["costs"]["size"] <= 0.5 * found["float_costs"]["size"]
    assert found["limits"]["size"] == pytest.approx(0.5 * found["float_costs"]["size"])
    assert {row["precision"] for row in found["rows"]} <= {"float", "w8a8"}
    assert "chosen" in fptq(*asked).output
    again = fptq("quantize", "tiny.onnx", "--calib", "calib", "--plan", "found/plan.json", "-o", "out", *FAST)
    assert again.exit_code == 0, again.output
    plan = json.loads(Path("out/plan.json").read_text())
    assert plan["placements"] == json.loads(Path("found/plan.json").read_text())["placements"]


def test_files_are_compared(folder: Path) -> None:
    done = fptq("bench", "tiny.onnx", "--engine", "onnxruntime", "--threads", "1", "--rounds", "3", "--json")
    (row,) = json.loads(done.stdout)["rows"]
    assert (row["path"], row["engine"]) == ("tiny.onnx", "onnxruntime")
    assert row["median_ms"] > 0


def test_the_doctor_speaks_both_ways(folder: Path) -> None:
    assert "onnxruntime" in fptq("doctor").stdout
    names = {check["name"] for check in json.loads(fptq("doctor", "--json").stdout)["checks"]}
    assert {"onnxruntime", "int8", "RAM"} <= names


def test_options_override_the_recipe_file(folder: Path) -> None:
    (folder / "r.toml").write_text(
        'engine = "openvino"\nhigher_is_better = true\nkeep_float = ["a"]\ntrust = true\n', encoding="utf-8"
    )
    options = {"engine": "onnxruntime", "higher_is_better": False, "keep_float": [], "threads": None, "trust": False}
    made = recipe(Path("r.toml"), options)
    assert (made.engine, made.higher_is_better, made.keep_float, made.trust) == ("onnxruntime", False, ("a",), True)


def test_one_pattern_has_one_precision() -> None:
    assert precisions(["a=b=int8"]) == {"a=b": "int8"}
    with pytest.raises(ConfigError, match="twice"):
        precisions(["a=int8", "a=float"])


def test_a_folder_that_cannot_be_written_is_found_before_the_work(folder: Path) -> None:
    assert list(writable(folder / "new" / "out").iterdir()) == []
    with pytest.raises(OutputError, match="cannot hold results"):
        writable(folder / "tiny.onnx" / "out")


def process(*arguments: str) -> subprocess.Popen[str]:
    """One command, in a process of its own, which hears Ctrl-C: shells make what they start with `&` deaf to it."""
    command = [sys.executable, "-c", "from fptq.cli import main; main()", *arguments]
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, preexec_fn=listening)


def test_interrupted_it_says_that_nothing_is_lost(folder: Path) -> None:
    (folder / "mine_slow.py").write_text(
        "import time, pathlib, numpy as np\ndef batches():\n    pathlib.Path('begun').touch()\n    time.sleep(60)\n"
        "    yield np.ones((1, 4, 10, 10), np.float32)\n",
        encoding="utf-8",
    )
    running = process("quantize", "tiny.onnx", "--calib", "mine_slow:batches", *FAST)
    while not (folder / "begun").exists() and running.poll() is None:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=30)
    assert running.returncode == 130
    assert errors == "interrupted: what was computed so far is kept, the same command goes on from there\n"


def test_a_reader_that_stops_early_is_no_error(folder: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", "from fptq.cli import main; main()", "doctor", "--json"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == ""


def test_the_version_is_the_package_s() -> None:
    done = process("--version")
    assert done.communicate()[0].startswith("fptq 0.")
    assert done.returncode == 0
