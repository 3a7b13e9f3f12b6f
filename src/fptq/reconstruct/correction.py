"""Output correction: each channel of a quantized layer moved nearest to the float layer's, at no cost when it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from fptq.execute import Executor
from fptq.graph import query
from fptq.graph.placement import Placement
from fptq.numerics import quantize
from fptq.plan.encoding import Encoding
from fptq.plan.materialize import container_dtype
from fptq.plan.plan import Plan
from fptq.reconstruct.lines import Allowed, Line, Moments, bias_name, chosen_line, new_bias, scaled, with_biases
from fptq.reconstruct.products import Product, products
from fptq.reconstruct.task import ClosedForm, ClosedFormOptions, Gain, Task
from fptq.types import Array, FeedSource


@torch.no_grad()
def output_correction(
    executor: Executor,
    encoding: Encoding,
    feeds: FeedSource,
    *,
    options: ClosedFormOptions | None = None,
    reference: Executor | None = None,
) -> ClosedForm:
    """Slope and offset of each output channel in the scales of weights and in biases.

    Codes stay: layers whose scales change get those that they have now. In each channel the line, the offset alone or
    neither is kept, whatever is best on samples that it was not fitted to.

    Args:
        executor: Runs the network of the encoding.
        encoding: With learned codes or without.
        feeds: Samples; with fewer than two nothing can be held out.
        options: Held-out samples, memory.
        reference: Runs the float network where the encoding's was rewritten.

    Raises:
        DataError: There are fewer than two samples.
    """
    options = options or ClosedFormOptions()
    reference = reference or executor
    task = Task.of(biased(executor, encoding.plan), encoding, feeds, options=options, reference=reference)
    fitted, held = task.halves()
    lines: dict[Product, Line] = {}
    gains = []
    for product, _ in task.layers():
        allowed = Allowed.of(product, encoding.plan)
        if allowed.slope is not None and allowed.offset is not None:
            task.skip(product, allowed.offset)
            continue
        moments, judge = (Moments.of(task.walk.outputs(product, half), product.channel_axis) for half in (fitted, held))
        line = chosen_line(moments, judge, allowed)
        energy = max(float(judge.squares.sum()), 1e-30)
        before = float(judge.error(Line.identity(len(line.slope))).sum()) / energy
        after = float(judge.error(line).sum()) / energy
        gains.append(Gain(node=product.name, before=before, after=after, kept=after < before))
        if after < before:
            lines[product] = line
            _apply(task, product, line)
    return _with_lines(executor, task, lines, gains)


def biased(executor: Executor, plan: Plan) -> Executor:
    """The network with a bias of 0 where a layer has none, and could have one."""
    found, _ = products(executor.model, plan)
    missing = {
        product.name: (bias_name(product), np.zeros(product.channels, np.float32))
        for product in found
        if len(product.call.node.inputs) < 3 and Allowed.of(product, plan).offset is None
    }
    return rewritten(executor, missing) if missing else executor


def rewritten(executor: Executor, biases: Mapping[str, tuple[str, Array]]) -> Executor:
    """The network with other biases: name and content for each node."""
    graph_model = executor.model.clone()
    with_biases(graph_model, biases)
    return Executor.open(executor.model.with_graph(graph_model), device=executor.device, dtype=executor.dtype)


def _apply(task: Task, product: Product, line: Line) -> None:
    """Let what follows see a layer behind its line."""
    weights, placement = task.executor.weights, product.weight
    rounded = product.matrix(task.hook(placement, weights[placement.value]))
    slope = line.slope.to(rounded).reshape(product.group, -1, 1)
    task.hook.found[placement] = product.stored(rounded * slope)
    if Allowed.of(product, task.hook.encoding.plan).offset is None:
        name = bias_name(product)
        task.hook.found[Placement(name)] = torch.from_numpy(new_bias(product, line)).to(weights[name])


def _with_lines(executor: Executor, task: Task, lines: Mapping[Product, Line], gains: list[Gain]) -> ClosedForm:
    """The network and the encoding with lines folded in."""
    encoding = task.hook.encoding
    params, codes = dict(encoding.params), dict(encoding.codes)
    biases: dict[str, tuple[str, Array]] = {}
    for product, line in lines.items():
        placement, spec = product.weight, encoding.plan.specs[product.weight]
        allowed = Allowed.of(product, encoding.plan)
        if allowed.offset is None:
            biases[product.name] = bias_name(product), new_bias(product, line)
        if allowed.slope is None:
            weight = query.constant(executor.model.graph.initializers[placement.value])
            if placement not in codes and weight is not None:
                codes[placement] = quantize(weight, spec, params[placement]).astype(container_dtype(spec))
            params[placement] = scaled(product, spec, params[placement], line.slope)
    changed = rewritten(executor, biases) if biases else executor
    note = f"slopes and offsets of the outputs of {len(lines)} layers"
    encoding = replace(
        encoding,
        params=params,
        codes=codes,
        model_sha256=changed.model.sha256 if biases else encoding.model_sha256,
        rewrites=(*encoding.rewrites, note) if lines else encoding.rewrites,
    )
    return ClosedForm(encoding=encoding, executor=changed, gains=tuple(gains), skipped=tuple(task.skipped))
