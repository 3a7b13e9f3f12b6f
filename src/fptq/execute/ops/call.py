"""What an operation's function is told beside its tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import onnx_ir as ir
import torch

Result: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]

Op: TypeAlias = Callable[..., Result]
"""`op(call, *inputs) -> output or outputs`; an input that is left out is None."""


@dataclass(frozen=True)
class Call:
    """A node's attributes, and what its function must know of its surroundings.

    Attributes:
        node: The node; its inputs and outputs are not to be read here.
        opset: Version of the default operator set, for operations that changed their meaning.
    """

    node: ir.Node
    opset: int

    @property
    def outputs(self) -> int:
        """How many outputs are asked for (trailing ones may be left out)."""
        return len(self.node.outputs)

    def has(self, name: str) -> bool:
        """Whether the attribute is given."""
        return name in self.node.attributes

    def int(self, name: str, default: int = 0) -> int:
        """An integer attribute."""
        value = self.node.attributes.get_int(name, default)
        return default if value is None else value

    def float(self, name: str, default: float = 0.0) -> float:
        """A floating-point attribute."""
        value = self.node.attributes.get_float(name, default)
        return default if value is None else value

    def string(self, name: str, default: str = "") -> str:
        """A string attribute."""
        value = self.node.attributes.get_string(name, default)
        return default if value is None else value

    def ints(self, name: str) -> tuple[Any, ...] | None:
        """A list of integers; None where it is left out."""
        if name not in self._lists:  # small layers take less time than reading one
            value = self.node.attributes.get_ints(name)
            self._lists[name] = None if value is None else tuple(value)
        return self._lists[name]

    @cached_property
    def _lists(self) -> dict[str, tuple[Any, ...] | None]:
        return {}

    def tensor(self, name: str) -> torch.Tensor | None:
        """A tensor attribute; None where it is left out."""
        value = self.node.attributes.get_tensor(name)
        return None if value is None else torch.from_numpy(value.numpy().copy())


def dtype_of(code: int) -> torch.dtype:
    """The torch dtype of an ONNX element type.

    >>> dtype_of(1)
    torch.float32
    """
    return _DTYPES[ir.DataType(code)]


_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.BOOL: torch.bool,
}
