"""The numbers that a calibration finds for a quantizer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fptq.numerics.spec import PerBlock, PerChannel, PerTensor, QuantizerSpec
from fptq.types import Array


@dataclass(frozen=True, kw_only=True, eq=False)
class UniformParams:
    """Scale and zero point of a uniform quantizer.

    Attributes:
        scale: f32, all > 0. Shape `[]` per tensor, `[C]` per channel,
            the tensor's shape with `axis` divided by the block size per block.
        zero_point: i32 of the same shape: the code of 0.0.
    """

    scale: Array
    zero_point: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", np.asarray(self.scale, dtype=np.float32))
        object.__setattr__(self, "zero_point", np.asarray(self.zero_point, dtype=np.int32))
        if self.scale.shape != self.zero_point.shape:
            raise ValueError(f"scale {self.scale.shape} and zero point {self.zero_point.shape} differ in shape")
        if not (np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError("every scale must be finite and greater than 0")

    def expanded(self, spec: QuantizerSpec, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Scale and zero point that broadcast against a tensor of `shape`."""
        match spec.granularity:
            case PerTensor():
                return self.scale, self.zero_point
            case PerChannel(axis=axis):
                view = [1] * len(shape)
                view[axis] = shape[axis]
                return self.scale.reshape(view), self.zero_point.reshape(view)
            case PerBlock(axis=axis, size=size):
                keep = slice(0, shape[axis])
                scale = np.repeat(self.scale, size, axis=axis)
                zero_point = np.repeat(self.zero_point, size, axis=axis)
                return np.take(scale, range(keep.stop), axis), np.take(zero_point, range(keep.stop), axis)

    def range(self, spec: QuantizerSpec) -> tuple[Array, Array]:
        """The lowest and highest real value that a code stands for."""
        low = (spec.qmin - self.zero_point) * self.scale
        return low, (spec.qmax - self.zero_point) * self.scale
