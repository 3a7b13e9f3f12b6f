"""What can be repaired without learning: minutes on a CPU, for layers of any spatial rank.

All methods go through the layers in the graph's order. Activations are quantized already, and what a layer is fed comes
from the network whose earlier layers are rounded as decided: the quantized values of all samples are kept at a cut that
moves from layer to layer (see `walk`), so that each part of the network runs once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
import torch

from fptq.execute import Executor
from fptq.graph.placement import Placement
from fptq.numerics import QuantizerSpec, UniformParams
from fptq.plan.encoding import Encoding
from fptq.plan.materialize import container_dtype
from fptq.reconstruct.correction import biased, output_correction, rewritten
from fptq.reconstruct.covariance import Covariance
from fptq.reconstruct.gptaq import MatrixGrid, steps
from fptq.reconstruct.lines import Allowed, mean_is_free
from fptq.reconstruct.products import Product
from fptq.reconstruct.ridge import ridge
from fptq.reconstruct.task import MEASURED, ClosedForm, ClosedFormOptions, Gain, Task
from fptq.types import Array, FeedSource, Progress, silent

__all__ = [
    "MEASURED",
    "ClosedForm",
    "ClosedFormOptions",
    "Gain",
    "Refit",
    "gptaq",
    "output_correction",
    "ridge_correction",
]

Refit: TypeAlias = Callable[[Array, QuantizerSpec], UniformParams]
"""Finds the numbers of the quantizer of a stored tensor."""


@torch.no_grad()
def gptaq(
    executor: Executor,
    encoding: Encoding,
    feeds: FeedSource,
    *,
    options: ClosedFormOptions | None = None,
    reference: Executor | None = None,
    progress: Progress = silent,
) -> ClosedForm:
    """Codes of all weights by GPTAQ (GPTQ where the layer's inputs are those of the float network).

    Args:
        executor: Runs the network of the encoding.
        encoding: Scales stay; codes that it has already stay too.
        feeds: A few hundred samples, one run each.
        options: Damping, rows, memory.
        reference: Runs the float network where the encoding's was rewritten (bias correction, ridge).
        progress: Told after every layer.

    Returns:
        The encoding with codes, in the integer type of the file; and the network, changed where biases are fitted.

    Raises:
        DataError: There is no sample, or one is not finite at some layer.
    """
    options = options or ClosedFormOptions()
    fits = options.biases == "fit"
    started = biased(executor, encoding.plan) if fits else executor
    task = Task.of(started, encoding, feeds, options=options, reference=reference or executor)
    codes, gains = dict(encoding.codes), []
    biases: dict[str, tuple[str, Array]] = {}
    for product, weight in task.rounding(progress):
        samples = task.covariance(product, weight, range(len(task.walk)))
        samples = samples.centred(weight) if fits and mean_is_free(product) else samples
        codes[product.weight], rounded, gain = _rounded(task, product, weight, samples)
        gains.append(gain)
        if fits and Allowed.of(product, encoding.plan).offset is None:
            biases[product.name] = task.shift(product, samples.offset(weight, rounded))
    encoding, changed = replace(encoding, codes=codes), executor
    if biases:
        changed = rewritten(executor, biases)
        notes = (*encoding.rewrites, f"biases of {len(biases)} layers fitted with their codes")
        encoding = replace(encoding, model_sha256=changed.model.sha256, rewrites=notes)
    return ClosedForm(encoding=encoding, executor=changed, gains=tuple(gains), skipped=tuple(task.skipped))


def _rounded(
    task: Task, product: Product, weight: torch.Tensor, samples: Covariance
) -> tuple[Array, torch.Tensor, Gain]:
    """A layer's codes, its rounded weights `[G, R, K]`, which the walk sees from now on, and what they gain."""
    spec, params = task.hook.encoding.plan.specs[product.weight], task.hook.encoding.params[product.weight]
    grid = MatrixGrid.of(product, spec, params).to(weight)
    found = steps(weight, grid, samples, damping=task.options.damping, asymmetry=task.options.asymmetry)
    rounded = found * grid.scale
    task.hook.found[product.weight] = product.stored(rounded)
    before, after = (samples.error(weight, each) for each in (grid.nearest(weight) * grid.scale, rounded))
    return _codes(product, found - grid.low, spec), rounded, Gain(node=product.name, before=before, after=after)


@torch.no_grad()
def ridge_correction(
    executor: Executor,
    encoding: Encoding,
    feeds: FeedSource,
    refit: Refit,
    *,
    options: ClosedFormOptions | None = None,
) -> ClosedForm:
    """Weights corrected for quantized inputs before they are rounded (ERQ's first half).

    A layer's correction is kept where its output, rounded to nearest on the new range, is nearer to the float layer's
    on samples that it was not fitted to.

    Args:
        executor: Runs the float network.
        encoding: Of this network, without learned codes.
        feeds: Samples; with fewer than two nothing can be held out.
        refit: Finds the range of a corrected weight.
        options: Strength, rows, memory.

    Raises:
        DataError: There are fewer than two samples, or one is not finite at some layer.
    """
    options = options or ClosedFormOptions()
    task = Task.of(executor, encoding, feeds, options=options)
    fitted, held = task.halves()
    changed: dict[Placement, tuple[torch.Tensor, UniformParams]] = {}
    gains = []
    for product, weight in task.rounding():
        new = product.stored(ridge(weight, task.covariance(product, weight, fitted), options.strength))
        spec = encoding.plan.specs[product.weight]
        params = refit(new.cpu().numpy(), spec)
        old = task.rounded(product, weight, encoding.params[product.weight])
        rounded = task.rounded(product, product.matrix(new), params)
        judge = task.covariance(product, weight, held)
        before, after = judge.error(weight, old), judge.error(weight, rounded)
        gains.append(Gain(node=product.name, before=before, after=after, kept=after < before))
        if after < before:
            changed[product.weight] = new, params
            task.hook.found[product.weight] = product.stored(rounded)
    return _with_weights(task, changed, gains)


def _codes(product: Product, above: torch.Tensor, spec: QuantizerSpec) -> Array:
    """Codes in the weight's shape, from steps above the lowest code."""
    stored = product.stored(above).cpu().numpy()
    return np.asarray(stored.round() + spec.qmin).astype(container_dtype(spec))


def _with_weights(
    task: Task, changed: dict[Placement, tuple[torch.Tensor, UniformParams]], gains: list[Gain]
) -> ClosedForm:
    """The network with other weights, and the encoding with their numbers."""
    encoding, executor = task.hook.encoding, task.executor
    if changed:
        graph_model = executor.model.clone()
        for placement, (weight, _) in changed.items():
            value = graph_model.graph.initializers[placement.value]
            assert value.const_value is not None
            array = weight.cpu().numpy().astype(value.const_value.dtype.numpy())
            value.const_value = ir.tensor(array, name=placement.value)
        model = executor.model.with_graph(graph_model)
        encoding = replace(
            encoding,
            params={**encoding.params, **{placement: params for placement, (_, params) in changed.items()}},
            model_sha256=model.sha256,
            rewrites=(*encoding.rewrites, f"ridge correction of {len(changed)} layers"),
        )
        executor = Executor.open(model, device=executor.device, dtype=executor.dtype)
    return ClosedForm(encoding=encoding, executor=executor, gains=tuple(gains), skipped=tuple(task.skipped))
