"""What the closed forms share: options, results, and the way through the layers of a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from fptq.errors import DataError
from fptq.execute import Executor, Overlay
from fptq.feeds import Part
from fptq.graph.placement import Placement
from fptq.numerics import UniformParams
from fptq.plan.encoding import Encoding
from fptq.plan.plan import Refusal
from fptq.reconstruct.covariance import Covariance, Draw, covariance
from fptq.reconstruct.crops import large
from fptq.reconstruct.gptaq import Asymmetry, MatrixGrid
from fptq.reconstruct.lines import bias_name
from fptq.reconstruct.products import Product, products
from fptq.reconstruct.walk import Revised, Walk
from fptq.types import Array, FeedSource, Progress, silent


@dataclass(frozen=True, kw_only=True)
class ClosedFormOptions:
    """How the closed forms look at a network.

    Attributes:
        asymmetry: GPTAQ only: how differences between float and quantized inputs are made up for.
        biases: GPTAQ only: "fit" chooses weights for the outputs' variation alone and gives the means to the biases,
            which changes the network; "keep" is GPTAQ as published.
        damping: `lambda` of GPTQ, relative to the mean of the diagonal of `H`: 0.01, or 0.1 for vision transformers.
        strength: `lambda` of the ridge correction, in the same units.
        rows: Output positions of a layer in all, drawn equally from all samples.
        columns: Layers whose rows are longer are left out: time grows with the cube, memory with the square.
        volumes: Of large volumes only so many are looked at. They stay whole: codes and biases fitted to crops of
            deepbrain's heads lost 0.03 of agreement at W3A8, and four heads do what eight do.
        memory: Bytes for the values of all samples between two layers; with less, layers are reached from further back.
        held_out: Every so-many-th sample decides whether a correction is kept; it is not fitted to.
        seed: Of the drawn positions.
    """

    asymmetry: Asymmetry = "gptaq"
    biases: Literal["keep", "fit"] = "keep"
    damping: float = 0.01
    strength: float = 1.0
    rows: int = 32768
    columns: int = 8192
    volumes: int = 4
    memory: int = 4 << 30
    held_out: int = 4
    seed: int = 0


MEASURED = ClosedFormOptions(asymmetry="ridge", biases="fit", damping=0.1)
"""What did best on a ResNet-18 of width 16 (FashionMNIST, 256 images, all layers, 2016 test images): W2A4 91.0 % and an
output error of 0.023 where GPTAQ as published has 89.3 % and 0.33, nearest rounding 9.8 %; at W4A4 they are equal."""


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


@dataclass(frozen=True, kw_only=True)
class Task:
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
    hook: Revised
    walk: Walk
    options: ClosedFormOptions
    skipped: list[Refusal]

    @classmethod
    def of(
        cls,
        executor: Executor,
        encoding: Encoding,
        feeds: FeedSource,
        *,
        options: ClosedFormOptions,
        reference: Executor | None = None,
    ) -> Task:
        hook = Revised(overlay=Overlay(encoding=encoding))
        reference = reference or executor
        walk = Walk(reference, executor, Part(feeds, options.volumes) if large(feeds) else feeds, hook)
        if not len(walk):
            raise DataError("there is no sample", rule="closed forms are fitted to samples", remedy="Give a few dozen")
        return cls(executor=executor, reference=reference, hook=hook, walk=walk, options=options, skipped=[])

    def layers(self, progress: Progress = silent) -> Iterator[tuple[Product, torch.Tensor]]:
        """The layers in order, each with its float weights `[G, R, K]`; the walk stands in front of it."""
        found, refused = products(self.executor.model, self.hook.encoding.plan)
        self.skipped.extend(refused)
        for done, product in enumerate(found):
            weight = product.matrix(self.reference.weights[product.weight.value])
            self.walk.move(product, self.options.memory)
            yield product, weight
            progress(done + 1, len(found), f"rounding: {product.name}")

    def skip(self, product: Product, reason: str) -> None:
        """Leave a layer out."""
        self.skipped.append(Refusal(node=product.name, op=product.call.node.op_type, reason=reason))

    def rounding(self, progress: Progress = silent) -> Iterator[tuple[Product, torch.Tensor]]:
        """The layers whose rounding is open, and whose covariances are of a size to be handled."""
        for product, weight in self.layers(progress):
            columns, most = weight.shape[-1], self.options.columns
            if product.weight in self.hook.encoding.codes:
                self.skip(product, "its rounding is learned already")
            elif columns > most:
                self.skip(product, f"{columns} inputs per output are more than {most}")
            else:
                yield product, weight

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

    def shift(self, product: Product, offset: torch.Tensor) -> tuple[str, Array]:
        """The float layer's bias and what a layer's means lack, `[G, R]`: from now on its bias; with its name."""
        name = bias_name(product)
        exact = self.reference.weights.get(name)
        content = product.call.float("alpha", 1.0) / product.call.float("beta", 1.0) * offset.flatten().double().cpu()
        content = content if exact is None else content + exact.double().cpu()
        self.hook.found[Placement(name)] = content.to(self.executor.weights[name])
        return name, np.asarray(content.numpy())

    def rounded(self, product: Product, weight: torch.Tensor, params: UniformParams) -> torch.Tensor:
        """A matrix of weights rounded to nearest."""
        grid = MatrixGrid.of(product, self.hook.encoding.plan.specs[product.weight], params).to(weight)
        return grid.nearest(weight) * grid.scale
