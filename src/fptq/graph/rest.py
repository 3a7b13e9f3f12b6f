"""Large weights rest in a temporary file and are mapped into memory only while somebody reads them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir import external_data

from fptq.types import Array

if TYPE_CHECKING:
    from fptq.graph.model import Model

LARGE = 32_000_000
"""Stored bytes from which on resting is worth a file."""
_FILE = "weights.bin"
_ALIGNMENT = 64


class _Folder:
    """A temporary folder that is deleted with the last tensor that lies in it."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="fptq-weights-"))
        self._clean = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class Shelf:
    """A file that tensors are put into one by one, so that all of them are never in memory together."""

    def __init__(self) -> None:
        self._folder = _Folder()

    def put(self, array: Array, *, name: str) -> ir.ExternalTensor:
        """The stored tensor of an array of a dtype that numpy has; it lives as long as the file, and the other way."""
        path = self._folder.path / _FILE
        with path.open("ab") as file:
            file.write(bytes(-file.tell() % _ALIGNMENT))
            offset = file.tell()
            file.write(np.ascontiguousarray(array).data)
        tensor = ir.ExternalTensor(
            _FILE,
            offset,
            array.nbytes,
            ir.DataType.from_numpy(array.dtype),
            shape=ir.Shape(array.shape),
            name=name,
            base_dir=self._folder.path,
        )
        tensor.meta["fptq.folder"] = self._folder
        return tensor


def put_to_rest(graph_model: ir.Model, *, large: int = LARGE) -> None:
    """Move the stored tensors of a model to a file, if they are large and still in memory.

    Args:
        graph_model: Changed in place; clones made afterwards share the tensors, and the file.
        large: Stored bytes from which on it is done.
    """
    values = graph_model.graph.initializers.values()
    stored = [value.const_value for value in values if value.const_value is not None]
    if sum(tensor.nbytes for tensor in stored if not isinstance(tensor, ir.ExternalTensor)) < large:
        return
    del stored
    folder = _Folder()
    external_data.unload_from_model(graph_model, folder.path, _FILE, size_threshold_bytes=1024, callback=unmapping())
    for value in values:
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and Path(tensor.base_dir) == folder.path:
            tensor.meta["fptq.folder"] = folder
        elif isinstance(tensor, ir.TensorProtoTensor):
            # A part of a protobuf message keeps the whole message in memory, large weights included.
            value.const_value = ir.tensor(tensor.numpy().copy(), name=tensor.name)
    give_back_memory()


def give_back_memory() -> None:
    """Give freed memory back to the system: glibc would keep what the checks at the door have used."""
    gc.collect()  # graphs are full of cycles
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library
        return


def is_large(model: Model) -> bool:
    """Whether its weights are worth a second look at how many copies of them there are."""
    values = model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None) >= LARGE


def float_weights(model: Model) -> str:
    """Where the weights of float sessions lie that stay open beside others: see `CompileOptions.weights`."""
    return "mapped" if is_large(model) else "held"


def settle(model: Model) -> None:
    """Between two steps with a large network: unmap its weights, and give back what the last step has used."""
    if is_large(model):
        let_go(model)
        give_back_memory()


def let_go(model: Model | ir.Model) -> None:
    """Unmap the weights that nobody holds an array of; the next reader maps them again."""
    for value in model.graph.initializers.values():
        unmap(value)


def unmap(value: ir.Value) -> None:
    """Unmap one stored tensor, if it rests in a file and nobody holds an array of it."""
    if value.const_value is not None:
        _release(value.const_value)


def unmapping() -> Callable[[ir.TensorProtocol, object], None]:
    """A callback of `onnx_ir.save`, which calls it before each tensor: it unmaps the one that was written before."""
    written: list[ir.TensorProtocol] = []

    def unmap_last(tensor: ir.TensorProtocol, _: object) -> None:
        for last in written:
            _release(last)
        written[:] = [tensor]

    return unmap_last


def _release(tensor: ir.TensorProtocol) -> None:
    if isinstance(tensor, ir.ExternalTensor):
        with contextlib.suppress(BufferError):  # an array of it is still in use
            tensor.release()


def drop_unread(graph: ir.Graph) -> None:
    """Drop the stored tensors that no node reads and the network does not return."""
    outputs = set(graph.outputs)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and value not in outputs:
            del graph.initializers[name]
