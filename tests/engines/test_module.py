from __future__ import annotations

import numpy as np
import pytest
import torch

from fptq.engines import CompileOptions, engine_named
from fptq.engines.module import EngineModule
from fptq.errors import ConfigError, DataError, EngineError
from fptq.graph.load import LoadOptions, load
from fptq.graph.write import save


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor, flag: bool = False) -> dict[str, torch.Tensor]:
        y = self.conv(x) * scale
        return {"y": y, "z": y.relu() if flag else y.sigmoid()}


@pytest.fixture
def replaced(tmp_path):
    net = Two().eval()
    x, scale = torch.randn(1, 3, 8), torch.tensor([2.0])
    model = load(net, example=((x,), {"scale": scale}))
    save(model, tmp_path / "m.onnx")
    session = engine_named("onnxruntime").compile(tmp_path / "m.onnx", CompileOptions(threads=1))
    return net, EngineModule(session, model.signature), x, scale


def test_it_takes_and_returns_what_the_module_did(replaced) -> None:
    net, module, x, scale = replaced
    exact, found = net(x, scale=scale), module(x, scale=scale)
    assert found.keys() == exact.keys()
    for name in exact:
        assert isinstance(found[name], torch.Tensor)
        torch.testing.assert_close(found[name], exact[name].detach(), atol=1e-5, rtol=1e-4)


def test_tensors_that_are_not_contiguous_are_taken(replaced) -> None:
    net, module, _, scale = replaced
    x = torch.randn(1, 8, 3).transpose(1, 2)
    torch.testing.assert_close(module(x, scale=scale)["y"], net(x, scale=scale)["y"].detach(), atol=1e-5, rtol=1e-4)


def test_another_call_is_refused(replaced) -> None:
    _, module, x, _ = replaced
    with pytest.raises(DataError):
        module(x)


def test_a_file_has_no_module_to_stand_in_for() -> None:
    with pytest.raises(ConfigError, match="ONNX file"):
        EngineModule(lambda feeds: {"y": np.zeros(1)}, None)


def test_any_batch_is_taken_by_a_network_of_a_fixed_one(tmp_path) -> None:
    net = torch.nn.Conv1d(3, 4, 3, padding=1).eval()
    model = load(net, example=torch.randn(2, 3, 8), options=LoadOptions(dynamic="none"))
    save(model, tmp_path / "m.onnx")
    session = engine_named("onnxruntime").compile(tmp_path / "m.onnx", CompileOptions(threads=1))
    module = EngineModule(session, model.signature, model.inputs)
    x = torch.randn(6, 3, 8)
    torch.testing.assert_close(module(x), net(x).detach(), atol=1e-5, rtol=1e-4)
    with pytest.raises(EngineError):
        module(x[:5])
