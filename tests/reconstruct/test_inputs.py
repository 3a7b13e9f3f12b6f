from __future__ import annotations

import numpy as np
import pytest
import torch

from fptq.errors import DataError
from fptq.execute import Executor
from fptq.reconstruct.blocks import blocks_of
from fptq.reconstruct.flow import Flow
from fptq.reconstruct.frontier import Frontier
from fptq.reconstruct.inputs import Values
from fptq.reconstruct.rows import Rows, separate, width_of


def rows_of(count: int) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            ("float", "a"): torch.randn(2, index + 1, generator=generator),
            ("float", "b"): torch.arange(index),
            ("float", "c"): torch.randn(4, 6, generator=generator)[:, 1::2],
        }
        for index in range(count)
    ]


@pytest.mark.parametrize("memory", [0, 60, 1 << 20])
def test_values_come_back_as_they_were(memory: int, tmp_path) -> None:
    rows = rows_of(3)
    values = Values(count=3, memory=memory, folder=tmp_path)
    values.add(rows)
    for sample, row in enumerate(rows):
        for key, tensor in row.items():
            found = values.get(key, sample)
            assert found.dtype == tensor.dtype
            assert found.equal(tensor)
    assert values.held <= memory
    assert values.on_disk == len(list(tmp_path.iterdir()))
    assert values.alike([("float", "c")])
    assert not values.alike([("float", "c"), ("float", "a")])
    for name in values.names("float"):
        values.drop(("float", name))
    assert values.held == 0
    assert not list(tmp_path.iterdir())


def test_what_is_added_takes_the_place_of_what_was_there(tmp_path) -> None:
    values = Values(count=2, memory=0, folder=tmp_path)
    for shift in (0.0, 1.0):
        values.add([{("float", "a"): torch.full((3,), shift)} for _ in range(2)])
    assert values.get(("float", "a"), 1).tolist() == [1.0] * 3
    assert values.on_disk == len(list(tmp_path.iterdir())) == 1


def test_rows_that_belong_together_stay_together(make_net) -> None:
    apart = make_net("g (float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, w) }", {"w": (4, 4)})
    together = make_net(
        "g (float[N, 4] x) => (float[N, 4] y) { t = Softmax<axis = 0>(x)\n y = MatMul(t, w) }", {"w": (4, 4)}
    )
    batch = [{"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}]
    assert [len(parts) for parts in separate(Executor.open(apart), batch)] == [3]
    assert [len(parts) for parts in separate(Executor.open(together), batch)] == [1]
    with pytest.raises(DataError, match="no sample"):
        list(separate(Executor.open(apart), []))


def test_batches_fit_the_memory(make_net, tmp_path) -> None:
    model = make_net("g (float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, w) }", {"w": (4, 4)})
    pair = [[torch.randn(1, 4)], [torch.randn(1, 4)]]
    executor = Executor.open(model)
    each = 3 * 4 * 4  # x as it is fed and as it is read, and y
    assert width_of(executor, pair, 10 * each) == 10
    assert width_of(executor, pair, 0) == 1
    values = Values(count=5, memory=1 << 20, folder=tmp_path)
    values.add({("float", "x"): torch.full((1, 2), float(at))} for at in range(5))
    rows = Rows(values=values, device="cpu", width=2)
    assert list(rows.groups([4, 0, 1])) == [(4, 0), (1,)]
    assert rows.fetch(("float", "x"), (4, 0))[:, 0].tolist() == [4.0, 0.0]


def test_the_frontier_keeps_what_is_still_read(cnn, samples, make_encoding, tmp_path) -> None:
    encoding, executor = make_encoding(cnn, samples), Executor.open(cnn)
    values = Values(count=2, memory=1 << 30, folder=tmp_path)
    values.add({(kind, "x"): torch.from_numpy(samples[at]["x"]) for kind in ("float", "quantized")} for at in range(2))
    frontier = Frontier(executor=executor, flow=Flow.of(cnn), values=values)
    with torch.no_grad():
        exact = [executor.run({"x": samples[at]["x"]}, fetch=["v1", "v9"]) for at in range(2)]
    for block in blocks_of(cnn, encoding.plan):
        frontier.reach(block, lambda placement, tensor: tensor)
        if block.output == "v9":
            suffix = frontier.suffix(block)
            assert suffix.beside == ()
            assert values.get(("target", "v9"), 1).allclose(exact[1]["v9"], atol=1e-5)
        frontier.leave(block, lambda placement, tensor: tensor)
        if block.output in ("v1", "v4"):
            assert "v1" in values.names("float"), "the skip is still to be read"
    assert values.names("float") == values.names("quantized") == (cnn.outputs[0].name,)
    assert values.get(("quantized", cnn.outputs[0].name), 0).allclose(exact[0][cnn.outputs[0].name], atol=1e-5)
