"""Calibration data from a live pipeline: the calls that a module receives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from fptq.errors import DataError

if TYPE_CHECKING:
    from torch import nn

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""The positional and keyword arguments of one call."""


class Recording(Sequence[Call]):
    """Recorded calls `(args, kwargs)`, in the order they came; tensors are copies on the CPU.

    With a limit, the calls kept are a uniform sample of all calls (reservoir sampling, Vitter 1985, algorithm R):
    the first windows of a sliding window are often a corner of empty background.
    """

    def __init__(self, *, limit: int | None = None, seed: int = 0) -> None:
        self.calls = 0
        self._limit = limit
        self._generator = np.random.default_rng(seed)
        self._kept: list[tuple[int, Call]] = []

    def add(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Offer one call; tensors are copied only when it is kept."""
        index = self.calls
        self.calls += 1
        if self._limit is not None and len(self._kept) >= self._limit:
            slot = int(self._generator.integers(self.calls))
            if slot >= self._limit:
                return
            del self._kept[slot]
        call = (tuple(_copied(a) for a in args), {key: _copied(value) for key, value in kwargs.items()})
        self._kept.append((index, call))

    @overload
    def __getitem__(self, index: int) -> Call: ...
    @overload
    def __getitem__(self, index: slice) -> list[Call]: ...
    def __getitem__(self, index: int | slice) -> Call | list[Call]:
        calls = [call for _, call in self._kept]
        return calls[index]

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        return f"<Recording: {len(self)} of {self.calls} calls>"


@contextmanager
def record(module: nn.Module, *, limit: int | None = None, seed: int = 0) -> Iterator[Recording]:
    """Collect the inputs of every call of a module while a pipeline runs.

        with fptq.record(pipeline.net, limit=200) as samples:
            pipeline(volume)
        result = fptq.quantize(pipeline.net, calibration=samples)

    Args:
        module: The module whose calls are recorded; its forward pass is unchanged.
        limit: How many calls to keep at most, spread evenly over all of them; None keeps every one.
        seed: Seed of the choice.

    Yields:
        The recording, which fills while the block runs.

    Raises:
        DataError: The module was never called.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit={limit}", rule="at least one call must be kept")
    samples = Recording(limit=limit, seed=seed)

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        samples.add(args, kwargs)

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield samples
    finally:
        handle.remove()
    if not samples.calls:
        raise DataError(
            f"{type(module).__name__} was not called while recording",
            rule="hooks see calls of the module itself",
            remedy="Record the object that the pipeline calls (not a copy), with module(x) and not module.forward(x)",
        )


def _copied(value: Any) -> Any:
    """A value with every tensor inside it copied: pipelines reuse their buffers."""
    if callable(getattr(value, "detach", None)):
        return value.detach().cpu().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) in (list, tuple):
        return type(value)(_copied(v) for v in value)
    if isinstance(value, dict):
        return {key: _copied(v) for key, v in value.items()}
    return value
