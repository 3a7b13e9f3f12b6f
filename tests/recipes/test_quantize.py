"""The main job on small networks and a real engine: module and file in, folder out."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

import fptq
from fptq.config import Recipe
from fptq.errors import ConfigError, DataError, MetricError, OutputError
from fptq.graph.rest import put_to_rest
from fptq.graph.write import save

ENGINE = "onnxruntime"
OPTIONS = {"engine": ENGINE, "threads": 1, "gate": "off"}


class SmallNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.BatchNorm2d(16), torch.nn.ReLU()
        )
        self.decoder = torch.nn.Sequential(
            torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 2, 1)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(image))


def network() -> SmallNet:
    torch.manual_seed(0)
    return SmallNet().eval()


def images(count: int, *, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 3, 12, 12, generator=generator) for _ in range(count)]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return fptq.quantize(network(), calibration=images(8), cache=folder, **OPTIONS)


def test_the_report_has_what_it_promises(result) -> None:
    report = result.report
    assert report.agreement.sqnr_db > 25
    assert report.float.latency_ms.median > 0
    assert report.quantized.size_mb < report.float.size_mb
    assert report.compression == pytest.approx(report.float.size_mb / report.quantized.size_mb)
    assert report.engine.name == ENGINE
    assert {record.kind for record in report.placements} == {"weight", "activation"}
    assert any(record.realized == "int8" for record in report.placements)
    assert all(record.sqnr_local_db is not None for record in report.placements if record.kind == "weight")
    assert any("decoder.2" in refusal.module and "output" in refusal.reason for refusal in report.refusals)
    assert report.calibration.samples == 7  # one of eight is held out


def test_the_module_is_replaced_by_one_on_the_engine(result) -> None:
    module, exact = result.as_module(), network()
    for image in images(3, seed=5):
        with torch.no_grad():
            expected = exact(image)
        found = module(image)
        assert found.shape == expected.shape
        assert 10 * torch.log10(expected.square().sum() / (expected - found).square().sum()) > 25


def test_weights_beside_an_older_file_are_gone(result, tmp_path) -> None:
    other, foreign = tmp_path / "model.onnx.0123456789ab.data", tmp_path / "notes.data"
    for file in (other, foreign):
        file.write_bytes(b"old")
    result.save(tmp_path)
    assert not other.exists()
    assert foreign.exists()


def test_the_folder_runs_without_fptq(result, tmp_path) -> None:
    out = result.save(tmp_path / "out")
    wanted = {
        "model.onnx",
        "encoding.json",
        "encoding.safetensors",
        "plan.json",
        "report.json",
        "report.html",
        "run.py",
    }
    assert wanted <= {path.name for path in out.iterdir()}
    metadata = ir.load(out / "model.onnx").metadata_props
    assert metadata["fptq.engine"] == ENGINE
    assert metadata["fptq.cpu"]
    image = images(1, seed=9)[0]
    np.savez(tmp_path / "in.npz", image=image.numpy())
    command = [sys.executable, "-I", str(out / "run.py"), str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    subprocess.run(command, check=True, capture_output=True, text=True)
    with np.load(tmp_path / "out.npz") as outputs:
        (array,) = outputs.values()
    np.testing.assert_allclose(array, result.as_module()(image).numpy(), atol=1e-4)


def test_an_old_result_stays_whole_when_writing_fails(result, tmp_path, monkeypatch) -> None:
    out = result.save(tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fptq.recipes.result.save_encoding", full)
    with pytest.raises(OutputError, match="No space left"):
        result.save(out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_plan_is_replayed_exactly(result, tmp_path) -> None:
    out = result.save(tmp_path / "out")
    again = fptq.quantize(network(), calibration=images(8), plan=out / "plan.json", cache=tmp_path, **OPTIONS)
    assert again.encoding.plan == result.encoding.plan
    for placement, params in result.encoding.params.items():
        np.testing.assert_array_equal(again.encoding.params[placement].scale, params.scale)


def test_a_plan_for_another_engine_is_refused(result, tmp_path) -> None:
    out = result.save(tmp_path / "out")
    plan = json.loads((out / "plan.json").read_text())
    (out / "plan.json").write_text(json.dumps({**plan, "engine": "openvino"}))
    with pytest.raises(ConfigError, match="made for openvino"):
        fptq.quantize(network(), calibration=images(8), plan=out / "plan.json", cache=tmp_path, **OPTIONS)


def test_layers_are_kept_float_by_module_path(tmp_path) -> None:
    made = fptq.quantize(network(), calibration=images(4), keep_float=["decoder.*"], cache=tmp_path, **OPTIONS)
    kept = [r for r in made.report.refusals if "decoder.*" in r.reason]
    assert {r.module for r in kept} >= {"decoder.0", "decoder.2"}
    assert not any("decoder" in record.module for record in made.report.placements if record.kind == "weight")


def test_a_metric_is_called_as_the_module_is(tmp_path) -> None:
    seen: list[type] = []

    def foreground(model) -> dict[str, float]:
        outputs = [model(image) for image in images(3, seed=2)]
        seen.append(type(outputs[0]))
        return {"foreground": float(torch.cat(outputs).argmax(1).float().mean())}

    made = fptq.quantize(network(), calibration=images(4), evaluate=foreground, cache=tmp_path, **OPTIONS)
    assert seen == [torch.Tensor, torch.Tensor]
    scores = made.report.float.scores["foreground"].value, made.report.quantized.scores["foreground"].value
    assert scores[0] == pytest.approx(scores[1], abs=0.02)
    assert made.report.drops[0].score == "foreground"


def test_a_metric_that_gives_no_number_is_an_error(tmp_path) -> None:
    with pytest.raises(MetricError, match=r"item\(\)"):
        fptq.quantize(
            network(),
            calibration=images(4),
            evaluate=lambda model: model(images(1)[0]).mean(),
            cache=tmp_path,
            **OPTIONS,
        )


def test_files_with_arrays_by_name(tmp_path, cnn) -> None:
    save(cnn, tmp_path / "net.onnx")
    rng = np.random.default_rng(0)
    (tmp_path / "calib").mkdir()
    for index in range(4):
        np.savez(tmp_path / "calib" / f"{index}.npz", x=rng.standard_normal((1, 4, 16, 16)).astype(np.float32))
    made = fptq.quantize(tmp_path / "net.onnx", calibration=tmp_path / "calib", cache=tmp_path / "cache", **OPTIONS)
    assert made.report.agreement.sqnr_db > 20
    with pytest.raises(ConfigError, match="ONNX file"):
        made.as_module()


def test_a_live_pipeline_is_recorded(tmp_path) -> None:
    net = network()

    def pipeline(volume: torch.Tensor) -> torch.Tensor:
        return torch.cat([net(image=part) for part in volume.split(1)])

    with fptq.record(net) as samples:
        pipeline(torch.cat(images(5)))
    made = fptq.quantize(net, calibration=samples, cache=tmp_path, **OPTIONS)
    net_int8 = made.as_module()
    exact = net(images(1, seed=3)[0]).detach()
    assert torch.nn.functional.mse_loss(net_int8(image=images(1, seed=3)[0]), exact) < 0.01 * exact.square().mean()


def test_one_sample_works_and_says_so(tmp_path) -> None:
    made = fptq.quantize(network(), calibration=images(1), cache=tmp_path, **OPTIONS)
    assert any("one sample" in warning for warning in made.report.warnings)


@pytest.mark.parametrize("calibration", [[], None])
def test_no_sample_is_an_error(calibration, tmp_path) -> None:
    with pytest.raises(DataError):
        fptq.quantize(network(), calibration=calibration, cache=tmp_path, **OPTIONS)


def test_loaders_with_labels_work_as_they_are(tmp_path) -> None:
    data = torch.utils.data.TensorDataset(torch.cat(images(6)), torch.zeros(6))
    loader = torch.utils.data.DataLoader(data, batch_size=2)
    made = fptq.quantize(network(), calibration=loader, cache=tmp_path, **OPTIONS)
    assert made.report.agreement.sqnr_db > 25


def test_an_unknown_option_names_the_nearest(tmp_path) -> None:
    with pytest.raises(ConfigError, match="observer"):
        fptq.quantize(network(), calibration=images(2), observr="lp", **OPTIONS)


@pytest.mark.engine("openvino")
def test_the_whole_way_with_the_gate_on_the_fastest_engine(tmp_path) -> None:
    made = fptq.quantize(
        network(), calibration=images(6), recipe=Recipe(threads=1, gate_seconds=4.0, cache=tmp_path / "cache")
    )
    assert "fastest of those installed" in made.report.engine.chosen_because
    assert made.report.gate is not None
    assert made.report.gate.tried
    out = made.save(tmp_path / "out")
    assert fptq.Report.load(out) == made.report


def test_inspection_says_what_and_why(tmp_path, cnn) -> None:
    save(cnn, tmp_path / "net.onnx")
    found = fptq.inspect(tmp_path / "net.onnx", recipe=Recipe(engine=ENGINE))
    decisions = {row.node: row.decision for row in found.rows}
    assert decisions["Conv_0"] == "int8"
    assert decisions["InstanceNormalization_8"] == "float"
    assert all(row.reason for row in found.rows)


def test_bench_compares_files_on_engines(tmp_path, cnn) -> None:
    save(cnn, tmp_path / "a.onnx")
    save(cnn, tmp_path / "b.onnx")
    rows = fptq.bench([tmp_path / "a.onnx", tmp_path / "b.onnx"], engines=[ENGINE], threads=1, rounds=3)
    assert [Path(row.path).name for row in rows] == ["a.onnx", "b.onnx"]
    assert all(row.median_ms > 0 and row.peak_memory_mb > 0 for row in rows)
    with pytest.raises(ConfigError):
        fptq.bench([], engines=[ENGINE])


def test_bench_warns_about_files_made_on_another_processor(tmp_path, cnn, caplog) -> None:
    save(cnn, tmp_path / "a.onnx", metadata={"fptq.cpu_features": "sve9", "fptq.cpu": "Other CPU"})
    fptq.bench([tmp_path / "a.onnx"], engines=[ENGINE], threads=1, rounds=3)
    assert any("Other CPU" in record.message for record in caplog.records)


def test_care_for_memory_changes_no_number(result, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("fptq.graph.rest.LARGE", 1)
    monkeypatch.setattr("fptq.graph.load.put_to_rest", partial(put_to_rest, large=1))
    found = fptq.quantize(network(), calibration=images(8), cache=tmp_path, **OPTIONS)
    assert any(isinstance(v.const_value, ir.ExternalTensor) for v in found.model.graph.initializers.values())
    assert found.model.sha256 == result.model.sha256
    assert found.report.agreement == result.report.agreement
    assert [p.sqnr_local_db for p in found.report.placements] == [p.sqnr_local_db for p in result.report.placements]
