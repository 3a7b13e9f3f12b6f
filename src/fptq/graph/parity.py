"""The gate: a conversion must not change what the network computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from fptq.errors import ModelError, ParityError
from fptq.graph.write import loadable
from fptq.types import Array, Feeds

_AT_ONCE = 16
"""Intermediate values fetched in one run: every one of them stays in memory."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """When two results count as equal: either bound is enough.

    Attributes:
        sqnr_db: Signal to error ratio [dB], from below.
        relative: Largest error over the largest reference value, from above.
        integers: Share of equal values for integer and boolean results (argmax near a tie), from below.
    """

    sqnr_db: float = 80.0
    relative: float = 1e-4
    integers: float = 0.999


SINGLE = Tolerance()
"""float32 on both sides: only the order of additions differs."""

HALF = Tolerance(sqnr_db=25.0, relative=2e-2, integers=0.9)
"""float16 or bfloat16 against float32."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a graph is compared with.

    Attributes:
        name: What the reference is, for errors.
        outputs: Its results, in the order of the graph's outputs.
        values: Computes intermediate values by name; names that it does not know are left out.
    """

    name: str
    outputs: Sequence[Array]
    values: Callable[[Sequence[str]], Feeds]


def run_graph(model: ir.Model, feeds: Feeds, names: Sequence[str] = ()) -> dict[str, Array]:
    """A graph's outputs in ONNX Runtime with every optimisation off, and intermediate values on demand.

    Args:
        model: The graph; it is not changed.
        feeds: Its inputs.
        names: Further values to return; names that the graph does not have are left out.

    Raises:
        ModelError: ONNX Runtime cannot run the graph.
    """
    import onnxruntime as ort

    watched = _watching(model, names) if names else model
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    wanted = [value.name or "" for value in watched.graph.outputs]
    try:
        with loadable(watched) as content:
            session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        taken = {value.name for value in session.get_inputs()}
        results: list[Any] = session.run(wanted, {name: array for name, array in feeds.items() if name in taken})
    except Exception as error:  # ONNX Runtime's own errors share no base class but Exception
        raise ModelError(
            f"ONNX Runtime cannot run the model: {str(error).splitlines()[0]}",
            rule="fptq computes the float reference in ONNX Runtime",
        ) from error
    return dict(zip(wanted, results, strict=True))


def graph_reference(model: ir.Model, feeds: Feeds, *, name: str) -> Reference:
    """A graph as the reference for another one.

    Raises:
        ModelError: ONNX Runtime cannot run it.
    """
    outputs = run_graph(model, feeds)
    return Reference(
        name=name,
        outputs=[outputs[value.name or ""] for value in model.graph.outputs],
        values=lambda names: run_graph(model, feeds, names),
    )


def check_parity(model: ir.Model, feeds: Feeds, reference: Reference, *, tolerance: Tolerance = SINGLE) -> float:
    """Compare a graph with what it was made from.

    Args:
        model: The converted graph.
        feeds: Its inputs.
        reference: The results before the conversion.
        tolerance: When results count as equal.

    Returns:
        The smallest SQNR [dB] over the outputs; infinite when all are equal.

    Raises:
        ParityError: An output differs; the first differing value that both sides know by name is named.
        ModelError: ONNX Runtime cannot run the graph.
    """
    return check_results(model, lambda names: run_graph(model, feeds, names), reference, tolerance=tolerance)


def check_rewrite(before: ir.Model, after: ir.Model, feeds: Feeds, *, name: str) -> None:
    """Hold a rewritten graph to the one before.

    Args:
        before: The graph as it was.
        after: The rewritten one.
        feeds: Inputs of both.
        name: Of the rewrite, for the message.

    Raises:
        ParityError: They compute different results.
        ModelError: ONNX Runtime cannot run one of them.
    """
    check_parity(after, feeds, graph_reference(before, feeds, name=f"the network before {name}"))


def check_results(
    model: ir.Model, run: Callable[[Sequence[str]], Feeds], reference: Reference, *, tolerance: Tolerance = SINGLE
) -> float:
    """Compare whatever computes a graph with the reference.

    Args:
        model: The graph: names and order of its values.
        run: Computes the outputs, and intermediate values by name.
        reference: The results to agree with.
        tolerance: When results count as equal.

    Returns:
        The smallest SQNR [dB] over the outputs; infinite when all are equal.

    Raises:
        ParityError: An output differs; the first differing value that both sides know by name is named.
    """
    results = run(())
    worst = math.inf
    for value, expected in zip(model.graph.outputs, reference.outputs, strict=True):
        found = results[value.name or ""]
        if not _equal(found, expected, tolerance):
            first = _first_difference(model, run, reference, tolerance=tolerance) or value.name or ""
            raise ParityError(
                f"value {first!r} is the first that differs from {reference.name}",
                rule=f"output {value.name!r} must agree; it {_difference(found, expected)}",
                remedy="Please report this with the model; fptq does not go on with another network",
            )
        if found.dtype.kind == "f":
            worst = min(worst, sqnr(found, expected))
    return worst


def sqnr(found: Array, expected: Array) -> float:
    """Signal to error ratio [dB]: 10 log10(sum expected^2 / sum (expected - found)^2); equal NaN or Inf are skipped."""
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(expected) & np.isfinite(found)
    error = float(np.square(expected[finite] - found[finite]).sum())
    signal = float(np.square(expected[finite]).sum())
    if error == 0:
        return math.inf
    return -math.inf if signal == 0 else 10 * math.log10(signal / error)


def _watching(model: ir.Model, names: Sequence[str]) -> ir.Model:
    model = model.clone()
    outputs = {value.name for value in model.graph.outputs}
    wanted = set(names) - outputs
    for node in model.graph:
        model.graph.outputs.extend(value for value in node.outputs if value.name in wanted)
    return model


def _equal(found: Array, expected: Array, tolerance: Tolerance) -> bool:
    if found.shape != expected.shape:
        return False
    if found.dtype.kind != "f" or expected.dtype.kind not in "fV":
        return found.size == 0 or float(np.mean(found == expected)) >= tolerance.integers
    expected = expected.astype(np.float64)
    special = ~np.isfinite(expected)
    if not np.array_equal(found[special].astype(np.float64), expected[special], equal_nan=True):
        return False
    if not np.isfinite(found[~special]).all():
        return False
    if sqnr(found, expected) >= tolerance.sqnr_db:
        return True
    finite = expected[~special]
    return bool(np.abs(found[~special] - finite).max() <= tolerance.relative * np.abs(finite).max())


def _difference(found: Array, expected: Array) -> str:
    if found.shape != expected.shape:
        return f"has shape {list(found.shape)} instead of {list(expected.shape)}"
    if found.dtype.kind == "f":
        if not np.array_equal(np.isfinite(found), np.isfinite(expected)):
            return "is NaN or infinite in other places"
        return f"agrees to {sqnr(found, expected):.1f} dB only"
    return f"agrees in {np.mean(found == expected):.1%} of its values only"


def _first_difference(
    model: ir.Model, run: Callable[[Sequence[str]], Feeds], reference: Reference, *, tolerance: Tolerance
) -> str | None:
    names = [value.name or "" for node in model.graph for value in node.outputs]
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        try:
            expected = reference.values(some)
            found = run(some)
        except ModelError:  # some exporters' graphs do not run as they are
            return None
        for name in some:
            if name in expected and name in found and not _equal(found[name], expected[name], tolerance):
                return name
    return None
