"""The executor computes what ONNX Runtime computes, or no analysis begins."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fptq.execute.executor import Executor
from fptq.graph.model import Model
from fptq.graph.parity import SINGLE, Tolerance, check_results, graph_reference
from fptq.types import Feeds


def verify(model: Model, feeds: Feeds, *, executor: Executor | None = None, tolerance: Tolerance = SINGLE) -> float:
    """Compare the executor with ONNX Runtime on one sample.

    Args:
        model: The network.
        feeds: Its inputs.
        executor: What runs it; None: one on the CPU.
        tolerance: When results count as equal.

    Returns:
        The smallest SQNR [dB] over the outputs; infinite when all are equal.

    Raises:
        ParityError: An output differs; the first value that differs is named.
        ModelError: An operation has no function, or ONNX Runtime cannot run the graph.
    """
    runner = executor or Executor.open(model)

    def results(names: Sequence[str]) -> Feeds:
        with torch.no_grad():
            found = runner.run(feeds, fetch=names)
        return {name: tensor.cpu().numpy() for name, tensor in found.items()}

    reference = graph_reference(model.graph_model, feeds, name="ONNX Runtime")
    return check_results(model.graph_model, results, reference, tolerance=tolerance)
