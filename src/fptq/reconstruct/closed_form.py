"""What can be repaired without learning: minutes on a CPU, for layers of any spatial rank.

All methods go through the layers in the graph's order. Activations are quantized already, and what a layer is fed comes
from the network whose earlier layers are rounded as decided: the quantized values of all samples are kept at a cut that
moves from layer to layer (see `walk`), so that each part of the network runs once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
import torch

from fptq.errors import DataError
from fptq.execute import Executor
from fptq.graph.placement import Placement
from fptq.numerics import QuantizerSpec, UniformParams
from fptq.plan.encoding import Encoding
from fptq.plan.materialize import container_dtype
from fptq.plan.plan import Refusal
from fptq.reconstruct.covariance import Covariance, Draw, covariance
from fptq.reconstruct.gptaq import Asymmetry, Grid, steps
from fptq.reconstruct.products import Product, products
from fptq.reconstruct.ridge import ridge
from fptq.reconstruct.walk import Simulation, Walk
from fptq.types import Array, Feeds, Progress, silent

Refit: TypeAlias = Callable[[Array, QuantizerSpec], UniformParams]
"""Finds the numbers of the quantizer of a stored tensor."""


@dataclass(frozen=True, kw_only=True)
class ClosedFormOptions:
    """How the closed forms look at a network.

    Attributes:
        asymmetry: GPTAQ only: how differences between float and quantized inputs are made up for.
        damping: `lambda` of GPTQ, relative to the mean of the diagonal of `H`: 0.01, or 0.1 for vision transformers.
        strength: `lambda` of the ridge correction, in the same units.
        rows: Output positions of a layer in all, drawn equally from all samples.
        columns: Layers whose rows are longer are left out: time grows with the cube, memory with the square.
        memory: Bytes for the values of all samples between two layers.
        held_out: Every so-many-th sample decides whether a correction is kept; it is not fitted to.
        seed: Of the drawn positions.
    """

    asymmetry: Asymmetry = "gptaq"
    damping: float = 0.01
    strength: float = 0.1
    rows: int = 32768
    columns: int = 8192
    memory: int = 2 << 30
    held_out: int = 4
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What a method did for a layer.

    Attributes:
        node: The layer.
        before: Squared error of its output relative to the float layer's squared output.
        after: The same with what was found, kept or not.
        kept: Whether it was.
    """

    node: str
    before: float
    after: float
    kept: bool = True


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """A result.

    Attributes:
        encoding: For `executor.model`.
        executor: Runs the network, its weights or biases changed where the method changes them.
        gains: Of the layers that were looked at.
        skipped: The others, with the reason.
    """

    encoding: Encoding
    executor: Executor = field(repr=False)
    gains: tuple[Gain, ...]
    skipped: tuple[Refusal, ...]


def gptaq(
    executor: Executor,
    encoding: Encoding,
    feeds: Iterable[Feeds],
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
        The encoding with codes, in the integer type of the file.

    Raises:
        DataError: There is no sample, or one is not finite at some layer.
    """
    options = options or ClosedFormOptions()
    task = _Task.of(executor, encoding, feeds, options=options, reference=reference)
    codes, gains = dict(encoding.codes), []
    for product, weight in task.layers(progress):
        samples = task.covariance(product, weight, range(len(task.walk)))
        spec, params = encoding.plan.specs[product.weight], encoding.params[product.weight]
        grid = Grid.of(product, spec, params).to(weight)
        found = steps(weight, grid, samples, damping=options.damping, asymmetry=options.asymmetry)
        nearest, rounded = grid.nearest(weight) * grid.scale, found * grid.scale
        task.hook.weights[product.weight] = product.stored(rounded)
        codes[product.weight] = _codes(product, found - grid.low, spec)
        before, after = samples.error(weight, nearest), samples.error(weight, rounded)
        gains.append(Gain(node=product.name, before=before, after=after))
    return ClosedForm(
        encoding=replace(encoding, codes=codes), executor=executor, gains=tuple(gains), skipped=tuple(task.skipped)
    )


def ridge_correction(
    executor: Executor,
    encoding: Encoding,
    feeds: Iterable[Feeds],
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
    task = _Task.of(executor, encoding, feeds, options=options)
    fitted, held = task.halves()
    changed: dict[Placement, tuple[torch.Tensor, UniformParams]] = {}
    gains = []
    for product, weight in task.layers():
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
            task.hook.weights[product.weight] = product.stored(rounded)
    return _with_weights(task, changed, gains)


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What all methods share while they walk.

    Attributes:
        executor: Runs the network that is quantized.
        reference: Runs the float network.
        hook: Quantizes, as was found so far.
        walk: Both networks at the current layer.
        options: The user's.
        skipped: Layers left out so far.
    """

    executor: Executor
    reference: Executor
    hook: Simulation
    walk: Walk
    options: ClosedFormOptions
    skipped: list[Refusal]

    @classmethod
    def of(
        cls,
        executor: Executor,
        encoding: Encoding,
        feeds: Iterable[Feeds],
        *,
        options: ClosedFormOptions,
        reference: Executor | None = None,
    ) -> _Task:
        hook = Simulation(encoding=encoding)
        reference = reference or executor
        walk = Walk(reference, executor, feeds, hook)
        if not len(walk):
            raise DataError("there is no sample", rule="closed forms are fitted to samples", remedy="Give a few dozen")
        return cls(executor=executor, reference=reference, hook=hook, walk=walk, options=options, skipped=[])

    def layers(self, progress: Progress = silent) -> Iterator[tuple[Product, torch.Tensor]]:
        """The layers in order, each with its float weights `[G, R, K]`; the walk stands in front of it."""
        found, refused = products(self.executor.model, self.hook.encoding.plan)
        self.skipped.extend(refused)
        for done, product in enumerate(found):
            weight = product.matrix(self.reference.weights[product.weight.value])
            if (reason := self._refused(product, weight)) is not None:
                self.skipped.append(Refusal(node=product.name, op=product.call.node.op_type, reason=reason))
                continue
            with torch.no_grad():
                self.walk.move(product, self.options.memory)
                yield product, weight
            progress(done + 1, len(found), product.name)

    def _refused(self, product: Product, weight: torch.Tensor) -> str | None:
        if product.weight in self.hook.encoding.codes:
            return "its rounding is learned already"
        columns = weight.shape[-1]
        return (
            f"{columns} inputs per output are more than {self.options.columns}"
            if columns > self.options.columns
            else None
        )

    def halves(self) -> tuple[Sequence[int], Sequence[int]]:
        """Numbers of the samples that are fitted to, and of those that judge."""
        every = range(len(self.walk))
        if len(every) < 2:
            raise DataError("there is one sample", rule="a correction is judged on samples that it was not fitted to")
        step = min(max(self.options.held_out, 2), len(every))
        held = every[step - 1 :: step]
        return [index for index in every if index not in held], held

    def covariance(self, product: Product, weight: torch.Tensor, samples: Sequence[int]) -> Covariance:
        """Covariances of a layer's inputs over some samples."""
        draw = Draw(rows=max(self.options.rows // len(samples), 1), seed=self.options.seed)
        return covariance(product, weight, self.walk.inputs(product, samples), draw)

    def rounded(self, product: Product, weight: torch.Tensor, params: UniformParams) -> torch.Tensor:
        """A matrix of weights rounded to nearest."""
        grid = Grid.of(product, self.hook.encoding.plan.specs[product.weight], params).to(weight)
        return grid.nearest(weight) * grid.scale


def _codes(product: Product, above: torch.Tensor, spec: QuantizerSpec) -> Array:
    """Codes in the weight's shape, from steps above the lowest code."""
    stored = product.stored(above).cpu().numpy()
    return np.asarray(stored.round() + spec.qmin).astype(container_dtype(spec))


def _with_weights(
    task: _Task, changed: dict[Placement, tuple[torch.Tensor, UniformParams]], gains: list[Gain]
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
