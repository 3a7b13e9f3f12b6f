"""The form of a file that engines have integer kernels for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fptq.graph.metadata import PACKED, has_property


@contextmanager
def runnable(path: Path) -> Iterator[Path]:
    """The file itself, or, where its weights share bytes, a temporary file of their int8 form.

        with runnable(path) as file:
            session = onnxruntime.InferenceSession(file)

    Args:
        path: Any file that an engine reads.

    Raises:
        ModelError: A packed file, or one of weights beside it, cannot be read.
    """
    if not has_property(path, PACKED):
        yield path
        return
    # The graph library takes a second to import, which an int8 file does not need.
    from fptq.graph.check import check_whole
    from fptq.graph.load import read_onnx
    from fptq.graph.write import save
    from fptq.plan.packed import expanded

    model = read_onnx(path)
    check_whole(model)
    with tempfile.TemporaryDirectory(prefix="fptq-") as folder:
        file = Path(folder) / path.name
        save(expanded(model), file)
        yield file
