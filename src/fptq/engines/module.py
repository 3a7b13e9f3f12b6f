"""An engine session in the shape of the PyTorch module that it replaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fptq.errors import ConfigError
from fptq.feeds.conform import split_batch
from fptq.graph.model import TensorInfo
from fptq.graph.signature import ModuleSignature
from fptq.graph.torch_call import widened
from fptq.types import Array, Feeds, Runner


class EngineModule(torch.nn.Module):
    """Called like the original module, computed by an engine, and returning the original's output type.

    Gradients do not flow through it. Tensors go to the CPU for the run and come back to the caller's device, in the
    dtypes that the original returned. A batch that is a multiple of the network's fixed one takes several runs:
    a sliding window calls with as many windows as it likes.

    Args:
        runner: The compiled session.
        signature: How the original module was called.
        inputs: What the network takes.
    """

    def __init__(self, runner: Runner, signature: ModuleSignature | None, inputs: tuple[TensorInfo, ...] = ()) -> None:
        super().__init__()
        if signature is None:
            raise ConfigError(
                "this model came from an ONNX file",
                rule="as_module stands in for a PyTorch module",
                remedy="Use result.session() and call it with arrays by name",
            )
        self._runner, self._signature, self._inputs = runner, signature, inputs

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original module's result, computed by the engine."""
        tensors = self._signature.feeds(args, kwargs)
        feeds = {name: as_array(torch.as_tensor(tensor)) for name, tensor in tensors.items()}
        outputs = _joined([self._runner(run) for run in split_batch(feeds, self._inputs, name="the call")])
        device = next((t.device for t in tensors.values() if isinstance(t, torch.Tensor)), torch.device("cpu"))
        dtypes = self._signature.dtypes
        results = {name: torch.from_numpy(array) for name, array in outputs.items()}
        return self._signature.result({name: t.to(device, dtypes.get(name, t.dtype)) for name, t in results.items()})


def _joined(runs: Sequence[Feeds]) -> Feeds:
    """The outputs of several runs, along the batch."""
    if len(runs) == 1:
        return runs[0]
    return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}


def as_array(tensor: torch.Tensor) -> Array:
    """A tensor as a session takes it."""
    return widened(tensor.detach().cpu()).contiguous().numpy()
