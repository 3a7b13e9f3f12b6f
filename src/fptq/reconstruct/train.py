"""The training of one block: the inner loop of every method."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from fptq.execute import Executor, Overlay
from fptq.graph.placement import Placement
from fptq.numerics import UniformParams
from fptq.plan.encoding import Encoding
from fptq.plan.materialize import container_dtype
from fptq.reconstruct.activations import Group, LearnedScale
from fptq.reconstruct.hook import Learner, Mixer
from fptq.reconstruct.losses import Losses
from fptq.reconstruct.method import Method
from fptq.reconstruct.rounding import ALL_FIXED, LearnedGrid, Rounding, rounding_of
from fptq.types import Array

_WINDOWS, _SHORTEST_WINDOW = 20, 10
_SETTLED = 1e-3  # share of weights that may be undecided when training stops early
_RESTLESS = frozenset({"straight-through", "flexround"})
"""Rounding that would jump between codes to the end if its rate did not fall."""

Told = Callable[[int, float], None]
"""Told the iteration and the mean loss of the last window."""


@dataclass(frozen=True, kw_only=True)
class Variables:
    """What is learned about a block.

    Attributes:
        roundings: By the first placement of each weight.
        scales: By group of activation quantizers.
        twins: Placements that read the same weight with the same quantizer, by the first of them.
    """

    roundings: Mapping[Placement, Rounding]
    scales: Mapping[Group, LearnedScale]
    twins: Mapping[Placement, Group]

    @classmethod
    def of(
        cls,
        executor: Executor,
        encoding: Encoding,
        weights: Mapping[Placement, Group],
        groups: Sequence[Group],
        method: Method,
    ) -> Variables:
        """Variables that start at what calibration found.

        Args:
            executor: The float network.
            encoding: What calibration found.
            weights: The weights to learn, each with its twins.
            groups: The activation quantizers to learn.
            method: How rounding is learned.
        """
        specs, params = encoding.plan.specs, encoding.params
        roundings: dict[Placement, Rounding] = {}
        for placement in weights:
            weight = executor.weights[placement.value]
            grid = LearnedGrid.of(weight, specs[placement], params[placement])
            roundings[placement] = rounding_of(weight, grid, method)
        firsts = {group: min(group, key=str) for group in groups}
        scales = {g: LearnedScale.of(specs[p], params[p], executor.device) for g, p in firsts.items()}
        return cls(roundings=roundings, scales=scales, twins=weights)

    def learner(self, rest: Overlay, mixer: Mixer | None) -> Learner:
        """A hook that sees these variables.

        Args:
            rest: Quantizes what is not learned.
            mixer: Says what is dropped.
        """
        by_weight = {twin: rounding for first, rounding in self.roundings.items() for twin in self.twins[first]}
        by_activation = {placement: scale for group, scale in self.scales.items() for placement in group}
        return Learner(roundings=by_weight, scales=by_activation, rest=rest, mixer=mixer)

    def finite(self) -> bool:
        """Whether training has not diverged."""
        scales = [rounding.grid.own_scale for rounding in self.roundings.values()]
        scales += [scale.scale for scale in self.scales.values()]
        learned = [variable for rounding in self.roundings.values() for variable in rounding.variables]
        return all(bool(torch.isfinite(x).all()) for x in learned + scales) and all(bool((x > 0).all()) for x in scales)

    def written(self, encoding: Encoding, *, weight_scales: bool) -> Encoding:
        """The encoding with what was learned: hard codes and scales.

        Args:
            encoding: Before.
            weight_scales: Whether scales of weights were learned.
        """
        params, codes = dict(encoding.params), dict(encoding.codes)
        for first, rounding in self.roundings.items():
            old, spec = params[first], encoding.plan.specs[first]
            scale = rounding.grid.own_scale.detach().cpu().numpy() if weight_scales else old.scale
            learned = UniformParams(scale=scale, zero_point=old.zero_point)
            found: Array = (rounding.steps() - rounding.grid.low + spec.qmin).round().cpu().numpy()
            params |= dict.fromkeys(self.twins[first], learned)
            codes |= dict.fromkeys(self.twins[first], found.astype(container_dtype(spec)))
        for group, learned_scale in self.scales.items():
            params |= dict.fromkeys(group, learned_scale.params())
        return replace(encoding, params=params, codes=codes)

    def optimizer(self, method: Method) -> torch.optim.Adam:
        """Adam over the variables; the groups of scales, whose rate falls, come behind that of the roundings."""
        rates, grids = method.rates, [rounding.grid for rounding in self.roundings.values()]
        learned = [grid.stretch for grid in grids] if method.learn_weight_scale else []
        parts = [
            ([variable for rounding in self.roundings.values() for variable in rounding.variables], rates.rounding),
            (learned, rates.weight_scale),
            ([scale.stretch for scale in self.scales.values()], rates.activation_scale),
        ]
        return torch.optim.Adam([{"params": variables, "lr": rate, "start": rate} for variables, rate in parts])


@dataclass(kw_only=True)
class Training:
    """One block in training.

    Attributes:
        losses: Of the block.
        learner: The hook that sees the variables.
        variables: What is learned.
        method: How.
        iterations: At most so many.
        generator: Picks the samples, on the CPU.
        autocast: Compute in bfloat16 where torch thinks it safe.
        history: Mean local loss of each window.
    """

    losses: Losses
    learner: Learner
    variables: Variables
    method: Method
    iterations: int
    generator: torch.Generator
    autocast: bool = False
    history: list[float] = field(default_factory=list)

    def run(self, told: Told) -> int:
        """Train; returns the iterations that were taken.

        Early in training convergence ends the warm-up; later it ends the training, once every rounding is decided.
        """
        if not (self.variables.roundings or self.variables.scales):
            return 0
        optimizer = self.variables.optimizer(self.method)
        window, gathered, skipped = max(_SHORTEST_WINDOW, self.iterations // _WINDOWS), 0.0, 0
        for iteration in range(self.iterations):
            self.learner.position = (iteration + skipped) / self.iterations
            if self.learner.position >= 1:
                return iteration
            gathered += self._step(optimizer, iteration)
            if (iteration + 1) % window == 0:
                self.history.append(gathered / window)
                told(iteration + 1, self.history[-1])
                gathered = 0.0
                if self._converged():
                    if self._may_stop():
                        return iteration + 1
                    skipped += max(0, round(self.method.warm_up * self.iterations) - iteration - 1 - skipped)
        return self.iterations

    def _step(self, optimizer: torch.optim.Optimizer, iteration: int) -> float:
        falling = slice(0 if self.method.rounding in _RESTLESS else 1, None)
        for part in optimizer.param_groups[falling]:
            part["lr"] = part["start"] * 0.5 * (1 + math.cos(math.pi * self.learner.position))
        optimizer.zero_grad()
        total = self._local(picked := self._picked())
        if iteration % self.method.prediction.every == 0:
            self._prediction(picked[: self.method.prediction.rows])
        self._decide()
        optimizer.step()
        return total

    def _picked(self) -> list[int]:
        count = self.losses.rows.values.count
        order: list[int] = torch.randperm(count, generator=self.generator).tolist()
        return order[: self.method.batch_size]

    def _local(self, picked: Sequence[int]) -> float:
        total = 0.0
        for group in self.losses.rows.groups(picked):
            with self._precision():
                loss = self.losses.local(self._mixed(group), self.learner, group) * (len(group) / len(picked))
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def _mixed(self, group: Sequence[int]) -> dict[str, torch.Tensor]:
        """The block's inputs as the method mixes them."""
        match self.method.inputs:
            case "float":
                return self.losses.exact(group)
            case "quantized":
                return self.losses.quantized(group)
        exact, quantized, mixer = self.losses.exact(group), self.losses.quantized(group), self.learner.mixer
        assert mixer is not None
        floats = {name for name, tensor in exact.items() if tensor.is_floating_point()}
        return {n: mixer(exact[n], quantized[n]) if n in floats else quantized[n] for n in quantized}

    def _prediction(self, picked: Sequence[int]) -> None:
        factor = self.method.prediction.weight * self.method.prediction.every
        hook = self.learner.undropped()
        for group in self.losses.prediction_groups(picked):
            with self._precision(), self.losses.clock:
                loss = self.losses.prediction(hook, group) * (factor * len(group) / len(picked))
                loss.backward()  # type: ignore[no-untyped-call]

    def _decide(self) -> None:
        """Add the gradient of the regulariser."""
        warm_up, position = self.method.warm_up, self.learner.position
        if self.method.rounding != "sigmoid" or position < warm_up:
            return
        start, end = self.method.beta
        beta = end + (start - end) * max(0.0, 1 - (position - warm_up) / max(1e-9, 1 - warm_up))
        roundings = self.variables.roundings.values()
        count = sum(math.prod(rounding.grid.shape) for rounding in roundings) if self.method.normalised else 1
        for rounding in roundings:
            penalty = rounding.penalty(beta) * (self.method.regulariser / count)
            penalty.backward()  # type: ignore[no-untyped-call]

    def _precision(self) -> torch.autocast:
        device = self.losses.rows.device.partition(":")[0]
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.autocast)

    def _converged(self) -> bool:
        """Whether the last three windows are no better than what came before them."""
        if len(self.history) < 4:
            return False
        before, lately = min(self.history[:-3]), min(self.history[-3:])
        return lately > before * (1 - self.method.tolerance)

    def _may_stop(self) -> bool:
        roundings = self.variables.roundings.values()
        match self.method.rounding:
            case "sigmoid":
                return all(rounding.undecided() <= _SETTLED for rounding in roundings)
            case "progressive":
                return not roundings or self.learner.position >= ALL_FIXED
            case "straight-through" | "flexround":
                return True
