"""Graphs as files and as what an engine loads."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from fptq.errors import ModelError, OutputError
from fptq.graph.model import Model
from fptq.graph.rest import LARGE, let_go, unmap, unmapping

LIMIT = 1_800_000_000
"""Stored bytes above which weights go beside the file: protobuf stops at 2 GiB, and the graph needs room too."""

_INLINE = 1024
"""Tensors of fewer bytes stay in the file: engines read shapes and axes from there."""


def stored_bytes(model: ir.Model) -> int:
    """Bytes of all stored tensors."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def file_bytes(path: Path) -> int:
    """Size of an ONNX file with the files of external data that it names."""
    import onnx

    stored = onnx.load(path, load_external_data=False).graph.initializer
    beside = {entry.value for tensor in stored for entry in tensor.external_data if entry.key == "location"}
    return sum(file.stat().st_size for file in (path, *(path.parent / name for name in beside)))


def save(
    model: Model | ir.Model, path: str | Path, *, metadata: Mapping[str, str] = MappingProxyType({}), limit: int = LIMIT
) -> None:
    """Write a model; an old file of that name stays whole until the new one is complete.

    Args:
        model: The model to write; it is not changed.
        path: The `.onnx` file. Large weights go to `<name>.<hash>.data` beside it.
        metadata: Written to the file's metadata.
        limit: Stored bytes above which weights go beside the file.

    Raises:
        OutputError: The disk is full, or the folder cannot be written.
    """
    path = Path(path)
    graph_model = _graph_model(model).clone()
    graph_model.producer_name = "fptq"
    graph_model.metadata_props.update(metadata)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            written = _write(graph_model, Path(folder) / path.name, limit=limit)
            # The weights first, under a name of their own: the old file never points to new weights.
            for part in sorted(written, key=lambda file: file.name == path.name):
                part.replace(path.parent / part.name)
        remove_stale(path, kept={part.name for part in written})
    except OSError as error:
        raise OutputError(
            f"{path} could not be written: {error.strerror or error}",
            rule="an existing file was left as it was",
            remedy="Check the free space and the permissions of the folder",
        ) from error


def to_bytes(model: Model | ir.Model) -> bytes:
    """A model of less than 2 GB as the content of an ONNX file.

    Raises:
        ModelError: It is larger; `loadable` serves models of any size.
    """
    graph_model = _graph_model(model)
    if stored_bytes(graph_model) > LIMIT:
        raise ModelError("the model is too large for one buffer", rule=f"at most {LIMIT} bytes of weights")
    content: bytes = ir.to_proto(_embedded(graph_model)).SerializeToString()
    return content


@contextmanager
def loadable(model: Model | ir.Model, *, limit: int = LARGE) -> Iterator[bytes | str]:
    """What `onnxruntime.InferenceSession` takes: bytes, or the path of a temporary file for large models.

        with loadable(model) as content:
            session = onnxruntime.InferenceSession(content, options)

    Args:
        model: The model.
        limit: Stored bytes above which a file is written: bytes would hold the weights twice beside the engine's own.

    Yields:
        The content or the path; the file is gone after the block, the session keeps what it mapped.
    """
    if stored_bytes(_graph_model(model)) <= limit:
        yield to_bytes(model)
        return
    with tempfile.TemporaryDirectory(prefix="fptq-") as folder:
        path = Path(folder) / "model.onnx"
        save(model, path, limit=limit)
        yield str(path)


def _graph_model(model: Model | ir.Model) -> ir.Model:
    return model.graph_model if isinstance(model, Model) else model


def _write(model: ir.Model, path: Path, *, limit: int) -> list[Path]:
    if stored_bytes(model) <= limit:
        ir.save(_embedded(model), path)
        return [path]
    data = path.with_name(f"{path.name}.{_fingerprint(model)}.data")
    ir.save(model, path, external_data=data.name, size_threshold_bytes=_INLINE, callback=unmapping())
    let_go(model)  # whoever reads the file has weights of its own
    return [path, data]


def _embedded(model: ir.Model) -> ir.Model:
    """A clone whose tensors are all in memory: the relative paths of external ones mean nothing elsewhere."""
    model = model.clone()
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
    return model


def _fingerprint(model: ir.Model) -> str:
    digest = hashlib.sha256()
    for name, value in model.graph.initializers.items():
        digest.update(name.encode())
        if value.const_value is not None and not value.const_value.dtype.is_string():
            digest.update(np.ascontiguousarray(value.const_value.numpy()).view(np.uint8).data)
            unmap(value)
    return digest.hexdigest()[:12]


def remove_stale(path: Path, *, kept: Collection[str]) -> None:
    """Remove the weights that an earlier file of this name pointed to.

    Args:
        path: The `.onnx` file.
        kept: Names of files beside it that stay.
    """
    for file in path.parent.glob(f"{path.name}.{'[0-9a-f]' * 12}.data"):
        if file.name not in kept:
            file.unlink(missing_ok=True)
