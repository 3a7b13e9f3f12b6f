"""Volumes are cut to crops where the network takes them, the same ones for both networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from fptq.cache import Cache
from fptq.execute import Executor, Objective, Overlay
from fptq.execute.objective import loss
from fptq.graph.model import Model
from fptq.plan.encoding import Encoding
from fptq.reconstruct import Method, Reconstructed, ReconstructionOptions, reconstruct
from fptq.reconstruct.crops import Crops, views_of
from fptq.reconstruct.flow import Flow
from fptq.reconstruct.frontier import Frontier
from fptq.reconstruct.inputs import Values
from fptq.types import Array

SMALL = ReconstructionOptions(crop=16)


def head(seed: int, side: int = 32) -> dict[str, Array]:
    """A ball with structure in the left half of an empty volume."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"))
    inside = np.square(grid - np.array([side / 2, side / 2, side / 4])[:, None, None, None]).sum(0) < (side / 4) ** 2
    waves = np.sin(grid[0] / 3 + rng.uniform(0, 6)) + np.cos(grid[1] / 4 + rng.uniform(0, 6))
    volume = inside * (2 + waves + 0.3 * rng.standard_normal(inside.shape))
    return {"x": volume.astype(np.float32)[None, None]}


@pytest.fixture
def volumes() -> list[dict[str, Array]]:
    return [head(seed) for seed in range(4)]


@pytest.fixture
def unet(make_net: Callable[..., Model]) -> Model:
    """Two scales, a skip, InstanceNorm, and one logit a voxel; sizes are stored as for volumes of 32."""
    return make_net(
        """g (float[1, 1, 32, 32, 32] x) => (float[1, 1, 32, 32, 32] y)
        <float[4] scale = {1, 1, 1, 1}, float[4] shift = {0, 0, 0, 0}> {
            a0 = Conv<pads = [1, 1, 1, 1, 1, 1]>(x, w0)
            a1 = InstanceNormalization(a0, scale, shift)
            a = LeakyRelu(a1)
            b0 = Conv<pads = [1, 1, 1, 1, 1, 1], strides = [2, 2, 2]>(a, w1)
            b1 = InstanceNormalization(b0, scale, shift)
            b = LeakyRelu(b1)
            c = ConvTranspose<strides = [2, 2, 2]>(b, w2)
            d = Concat<axis = 1>(c, a)
            e0 = Conv<pads = [1, 1, 1, 1, 1, 1]>(d, w3)
            e = LeakyRelu(e0)
            y = Conv(e, w4)
        }""",
        {
            "w0": (4, 1, 3, 3, 3),
            "w1": (4, 4, 3, 3, 3),
            "w2": (4, 4, 2, 2, 2),
            "w3": (4, 8, 3, 3, 3),
            "w4": (1, 4, 1, 1, 1),
        },
    )


def crops(volumes: list[dict[str, Array]], **changes: int) -> Crops:
    return Crops(**{"source": volumes, "side": 16, "count": 6, "seed": 0, **changes})


def error(executor: Executor, encoding: Encoding, feeds) -> float:
    with torch.no_grad():
        runs = [(executor.run(feed), executor.run(feed, hook=Overlay(encoding=encoding))) for feed in feeds]
    return float(np.mean([loss(Objective.SQUARED, exact, found) for exact, found in runs]))


def test_the_seed_decides_where_crops_lie(volumes) -> None:
    made = crops(volumes)
    first, again, other = ([crop["x"] for crop in each] for each in (made, made, replace(made, seed=1)))
    assert len(made) == len(first) == 24
    assert all(map(np.array_equal, first, again))
    assert not all(map(np.array_equal, first, other))
    assert len({crop.tobytes() for crop in first}) == len(first)


def test_half_of_the_crops_hold_something(volumes) -> None:
    volumes = [{"x": np.pad(v["x"] + 7, [(0, 0), (0, 0), (0, 64), (0, 64), (0, 64)], mode="edge")} for v in volumes]
    values = [np.ptp(crop["x"]) for crop in crops(volumes, count=8)]
    assert all(values[::2])
    assert not all(values[1::2])


def test_crops_are_parts_of_the_volume_at_one_place_in_all_inputs() -> None:
    places = np.arange(2 * 3 * 20 * 16 * 8, dtype=np.float32).reshape(2, 3, 20, 16, 8)
    for crop in crops([{"a": places, "b": places[:, :1]}]):
        assert crop["a"].shape == (2, 3, 16, 16, 8)
        assert np.array_equal(crop["a"][:, :1], crop["b"])
        start = int(crop["a"][0, 0, 0, 0, 0]) // (16 * 8)
        assert np.array_equal(crop["a"], places[:, :, start : start + 16])


def test_an_empty_volume_is_cut_too() -> None:
    empty = {"x": np.zeros((1, 1, 32, 32, 32), np.float32)}
    assert [crop["x"].shape for crop in crops([empty], count=2)] == [(1, 1, 16, 16, 16)] * 2


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_the_float_network_computes_on_a_crop_what_it_computes_alone(unet, volumes, memory, tmp_path) -> None:
    executor, made = Executor.open(unet), crops(volumes)
    values = Values(count=len(made), memory=memory, folder=tmp_path)
    values.add({("float", "x"): torch.from_numpy(crop["x"])} for crop in made)
    Frontier(executor=executor, flow=Flow.of(unet), values=values).outputs()
    assert values.held <= memory
    with torch.no_grad():
        for at, crop in enumerate(made):
            assert values.get(("output", "y"), at).equal(executor.run(crop)["y"])


@pytest.mark.parametrize("name", ["qdrop", "auto"])
def test_what_is_learned_from_crops_holds_on_whole_volumes(name, unet, volumes, make_encoding, quick) -> None:
    start, executor = make_encoding(unet, volumes, activation_bits=8), Executor.open(unet)
    options = replace(SMALL, objective=Objective.BINARY)
    found = reconstruct(executor, start, volumes, method=quick(name, iterations=60, batch_size=32), options=options)
    assert not found.notes
    assert all(unit.final_loss <= unit.initial_loss for unit in found.units)
    assert sum(unit.final_loss < 0.9 * unit.initial_loss for unit in found.units) >= 2
    unseen = [head(seed) for seed in (100, 101)]
    assert error(executor, found.encoding, unseen) < 0.8 * error(executor, start, unseen)


def numbers(found: Reconstructed) -> list[object]:
    codes = [codes.tobytes() for codes in found.encoding.codes.values()]
    return [*codes, *((unit.name, unit.initial_loss, unit.final_loss, unit.history) for unit in found.units)]


def test_a_killed_run_on_crops_goes_on(unet, volumes, make_encoding, quick, tmp_path) -> None:
    start, executor, store = make_encoding(unet, volumes), Executor.open(unet), Cache(tmp_path)
    method: Method = quick("qdrop", iterations=10)
    whole = reconstruct(executor, start, volumes, method=method, options=SMALL)

    class Killed(BaseException):
        pass

    def kill(done: int, total: int, what: str) -> None:
        if done > total / 2:
            raise Killed

    def stored() -> int:
        return sum(usage.entries for usage in store.usage())

    with pytest.raises(Killed):
        reconstruct(executor, start, volumes, method=method, options=SMALL, store=store, progress=kill)
    assert 0 < stored() < len(whole.units)
    resumed = reconstruct(executor, start, volumes, method=method, options=SMALL, store=store)
    assert numbers(resumed) == numbers(whole)
    for changed in ({"crop": None}, {"volume_batch": 2}, {"seed": 1}):
        before = stored()
        options = replace(SMALL, **changed)
        reconstruct(executor, start, volumes[:1], method=replace(method, iterations=1), options=options, store=store)
        assert stored() == before + len(whole.units), changed


CONV = "Conv<pads = [1, 1, 1, 1, 1, 1]>"
WHOLE = {
    "the network takes one size only": f"""g (float[1, 1, 32, 32, 32] x) => (float[1, 4, 32, 32, 32] y)
        <int64[5] shape = {{1, 4, 32, 32, 32}}> {{
            a = {CONV}(x, w0)
            b = Reshape(a, shape)
            y = {CONV}(b, w1)
        }}""",
    "an output does not become smaller with the crop": f"""g (float[1, 1, 32, 32, 32] x) => (float[1, 4, 1, 1, 1] y) {{
            a = {CONV}(x, w0)
            b = {CONV}(a, w1)
            y = GlobalAveragePool(b)
        }}""",
}


@pytest.mark.parametrize("reason", WHOLE)
def test_networks_of_one_size_learn_from_whole_volumes(reason, make_net, make_encoding, volumes, quick) -> None:
    model = make_net(WHOLE[reason], {"w0": (4, 1, 3, 3, 3), "w1": (4, 4, 3, 3, 3)})
    start, executor = make_encoding(model, volumes), Executor.open(model)
    views = views_of(executor, volumes, crop=16, seed=0)
    assert views.source is volumes
    found = reconstruct(executor, start, volumes, method=quick("qdrop", iterations=5), options=SMALL)
    assert found.notes == (f"learned from whole volumes, not from crops of 16 voxels along each axis: {reason}",)


def test_only_large_volumes_are_cut(unet, volumes, make_net) -> None:
    executor = Executor.open(unet)
    for crop in (None, 32, 64):
        views = views_of(executor, volumes, crop=crop, seed=0)
        assert (views.source, views.large, views.note) == (volumes, False, None)
    views = views_of(executor, volumes, crop=31, seed=0)
    assert (len(views.source), views.large, views.note) == (64, True, None)
    assert {crop["x"].shape for crop in views.source} == {(1, 1, 16, 16, 16)}
    mixed = make_net(
        "g (float[1, 1, 32, 32, 32] x, float s) => (float[1, 1, 32, 32, 32] y) { a = Conv(x, w)\n y = Mul(a, s) }",
        {"w": (1, 1, 1, 1, 1)},
    )
    feeds = [{**volume, "s": np.float32(2).reshape(())} for volume in volumes]
    assert "not all volumes" in (views_of(Executor.open(mixed), feeds, crop=16, seed=0).note or "")
    image = [{"x": np.zeros((1, 3, 200, 200), np.float32)}]
    assert views_of(executor, image, crop=16, seed=0).source is image


@pytest.mark.parametrize("wrong", [{"crop": 15}, {"volume_batch": 0}])
def test_wrong_options_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ReconstructionOptions(**wrong)
