"""torch on the GPU as the peer: the same graph, one eager call for each node."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from fptq.execute.executor import Executor
from fptq.graph.model import Model
from fptq.types import Feeds

PRECISIONS = ("fp32", "tf32", "fp16")


class TorchPeer:
    """A float network in eager torch, through fptq's executor (cuDNN's and cuBLAS's kernels)."""

    def __init__(self, model: Model, precision: str) -> None:
        self._precision = precision
        self._executor = Executor.open(model, device="cuda")
        self._cached: tuple[int, dict[str, torch.Tensor]] | None = None

    def __call__(self, feeds: Feeds) -> Feeds:
        outputs = self._run(self._on_gpu(feeds))
        return {name: tensor.float().cpu().numpy() for name, tensor in outputs.items()}

    def time(self, feeds: Feeds) -> float:
        """Seconds of one run between two CUDA events."""
        tensors = self._on_gpu(feeds)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        self._run(tensors)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def _on_gpu(self, feeds: Feeds) -> dict[str, torch.Tensor]:
        if self._cached is None or self._cached[0] != id(feeds):
            self._cached = id(feeds), {name: torch.from_numpy(array).cuda() for name, array in feeds.items()}
        return self._cached[1]

    def _run(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        allowed = self._precision != "fp32"
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed
        half: Any = torch.autocast("cuda", torch.float16) if self._precision == "fp16" else nullcontext()
        with torch.no_grad(), half:
            return self._executor.run(tensors)
