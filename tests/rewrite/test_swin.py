"""The three rewrites on shifted windows as MONAI writes them."""

from __future__ import annotations

from collections import Counter
from functools import reduce
from pathlib import Path

import numpy as np
import pytest

from fptq.engines import ENGINES, CompileOptions
from fptq.graph.load import LoadOptions, load
from fptq.graph.model import Model
from fptq.graph.write import save
from fptq.rewrite import PASSES
from fptq.types import Feeds

torch = pytest.importorskip("torch")
pytest.importorskip("einops", reason="MONAI's shifted windows need einops")
swin = pytest.importorskip("monai.networks.nets.swin_unetr")

REWRITES = ("movement_as_gather", "arithmetic_without_reshapes", "repeated_columns_gathered")


class Stage(torch.nn.Module):
    """Two blocks, the second with shifted windows, and patch merging; volumes of 6 are padded to two windows of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = swin.BasicLayer(
            dim=24, depth=2, num_heads=3, window_size=(4, 4, 4), drop_path=[0.0, 0.0], qkv_bias=True,
            downsample=swin.PatchMerging,
        )  # fmt: skip

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.layer(x)


def volume(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def loaded(module: torch.nn.Module, x: np.ndarray, *, dynamic: str) -> Model:
    return load(module.eval(), example=torch.from_numpy(x), options=LoadOptions(dynamic=dynamic))


def rewritten(model: Model, names: tuple[str, ...] = REWRITES) -> Model:
    return reduce(lambda made, name: PASSES[name](made), names, model)


def operations(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def outputs(model: Model, feeds: Feeds, engine: str, folder: Path) -> list[np.ndarray]:
    path = folder / f"{len(list(folder.iterdir()))}.onnx"
    save(model, path)
    session = ENGINES[engine].compile(path, CompileOptions(threads=1))
    return list(session(feeds).values())


@pytest.fixture(scope="module")
def stage() -> Model:
    torch.manual_seed(0)
    return loaded(Stage(), volume(1, 24, 6, 6, 6), dynamic="none")


def test_rolls_partitions_and_merging_are_one_gather_each(stage: Model) -> None:
    before, after = operations(stage), operations(rewritten(stage))
    assert before["Slice"] > 25
    assert after["Slice"] == after["Concat"] == 0
    moved = operations(rewritten(stage, REWRITES[:1]))
    # Into shifted windows, out of both kinds of windows, and merging; the others take query, key and value apart.
    assert moved["Gather"] - before["Gather"] == 4


@pytest.mark.engine("openvino")
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["movement_as_gather", "repeated_columns_gathered"])
def test_a_stage_computes_the_same_bits(stage: Model, name: str, engine: str, tmp_path: Path) -> None:
    feeds = {stage.inputs[0].name: volume(1, 24, 6, 6, 6)}
    expected = outputs(stage, feeds, engine, tmp_path)
    found = outputs(rewritten(stage, (name,)), feeds, engine, tmp_path)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(other, one)


def test_masks_are_added_to_scores_as_they_are(stage: Model, tmp_path: Path) -> None:
    made = rewritten(stage, ("arithmetic_without_reshapes",))
    assert operations(stage)["Reshape"] - operations(made)["Reshape"] == 2
    feeds = {stage.inputs[0].name: volume(1, 24, 6, 6, 6)}
    expected = outputs(stage, feeds, "onnxruntime", tmp_path)
    for one, other in zip(expected, outputs(made, feeds, "onnxruntime", tmp_path), strict=True):
        np.testing.assert_array_equal(other, one)


@pytest.mark.engine("openvino")
def test_openvino_fuses_the_attention_of_shifted_windows(stage: Model, tmp_path: Path) -> None:
    feeds = {stage.inputs[0].name: volume(1, 24, 6, 6, 6)}
    alone = {}
    for name, model in (("before", stage), ("after", rewritten(stage))):
        save(model, tmp_path / f"{name}.onnx")
        session = ENGINES["openvino"].compile(tmp_path / f"{name}.onnx", CompileOptions(threads=1))
        alone[name] = sum(node.op == "Softmax" for node in session.profile(feeds, runs=1))
    assert alone == {"before": 1, "after": 0}


def test_a_batch_of_any_size_is_rewritten_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = loaded(Stage(), volume(2, 24, 6, 6, 6), dynamic="x:0=batch")
    made = rewritten(model)
    assert operations(made)["Slice"] == 0
    for batch in (1, 3):
        feeds = {model.inputs[0].name: volume(batch, 24, 6, 6, 6)}
        expected = outputs(model, feeds, "onnxruntime", tmp_path)
        for one, other in zip(expected, outputs(made, feeds, "onnxruntime", tmp_path), strict=True):
            np.testing.assert_array_equal(other, one)


@pytest.fixture(scope="module")
def swin_unetr() -> Model:
    torch.manual_seed(0)
    network = swin.SwinUNETR(in_channels=1, out_channels=3, feature_size=12)
    return loaded(network, volume(1, 1, 64, 64, 64), dynamic="none")


@pytest.mark.slow
def test_a_small_swinunetr_computes_the_same_bits(swin_unetr: Model, tmp_path: Path) -> None:
    feeds = {swin_unetr.inputs[0].name: volume(1, 1, 64, 64, 64)}
    made = rewritten(swin_unetr)
    assert operations(made)["Slice"] == 0
    (expected,), (found,) = (outputs(model, feeds, "onnxruntime", tmp_path) for model in (swin_unetr, made))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.engine("openvino")
def test_a_small_swinunetr_is_the_same_to_openvino(swin_unetr: Model, tmp_path: Path) -> None:
    feeds = {swin_unetr.inputs[0].name: volume(1, 1, 64, 64, 64)}
    made = (swin_unetr, rewritten(swin_unetr, REWRITES[2:]), rewritten(swin_unetr))
    (expected,), (looked_up,), (found,) = (outputs(model, feeds, "openvino", tmp_path) for model in made)
    np.testing.assert_array_equal(looked_up, expected)
    # With other nodes around them OpenVINO sums norms and attention in another order.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
