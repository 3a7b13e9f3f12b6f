"""The last stage of AE-QDrop: all blocks together, against the float network's outputs and features."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fptq.execute import Hook, Overlay
from fptq.execute.objective import difference, floating
from fptq.graph.placement import Placement
from fptq.plan.encoding import Encoding
from fptq.reconstruct.activations import Group, LearnedScale
from fptq.reconstruct.frontier import unseen
from fptq.reconstruct.inputs import Values
from fptq.reconstruct.result import UnitResult
from fptq.reconstruct.rounding import LearnedGrid, Rounding, StraightThrough
from fptq.reconstruct.rows import Rows, width_of
from fptq.reconstruct.sweep import Work
from fptq.reconstruct.train import Variables

STAGE = "all blocks"
_EDGE = 0.49  # a latent weight starts inside the cell of its code
_REPORTS = 50


@dataclass(frozen=True, kw_only=True)
class Whole:
    """All blocks as one.

    Attributes:
        work: What all stages share.
        encoding: What the blocks have learned.
        rows: The network's inputs, of the kinds "float" and "quantized".
        fetched: The outputs of the blocks, whose features are matched.
    """

    work: Work
    encoding: Encoding
    rows: Rows
    fetched: tuple[str, ...]

    @classmethod
    def of(cls, work: Work, encoding: Encoding, values: Values) -> Whole:
        """The network over some samples."""
        names = work.executor.input_names
        rows = Rows(values=values, device=work.executor.device)
        if values.count > 1 and values.alike([("float", name) for name in names]):
            pair = [[values.get(("float", name), sample) for name in names] for sample in (0, 1)]
            rows = replace(rows, width=width_of(work.executor, pair, work.options.batch_memory))
        return cls(work=work, encoding=encoding, rows=rows, fetched=tuple(b.output for b in work.blocks))

    def tune(self) -> tuple[Encoding, UnitResult]:
        """Learn codes and activation scales by straight-through rounding; what is no better is not kept."""
        started, method = time.perf_counter(), self.work.method
        judged = list(range(min(self.rows.values.count, self.work.options.judged)))
        before = self._judge(Overlay(encoding=self.encoding), judged)
        variables = self._variables()
        learner = variables.learner(Overlay(encoding=self.encoding), None)
        self._train(variables, learner, before)
        found = self.encoding
        if variables.finite():
            found = variables.written(self.encoding, weight_scales=method.learn_weight_scale)
        after = self._judge(Overlay(encoding=found), judged)
        initial, final = _relative(before, before), _relative(after, before)
        result = UnitResult(
            name=STAGE,
            stage=STAGE,
            initial_loss=initial,
            final_loss=min(initial, final),
            iterations=method.global_iterations,
            seconds=time.perf_counter() - started,
            kept=final < initial,
        )
        return found if result.kept else self.encoding, result

    def _variables(self) -> Variables:
        executor, encoding, groups = self.work.executor, self.encoding, self.work.groups
        roundings: dict[Placement, Rounding] = {}
        twins: dict[Placement, Group] = {}
        for placement in encoding.plan.weights:
            first = min(groups[placement], key=str)
            if first not in twins:
                twins[first] = groups[placement]
                roundings[first] = _latent(executor.weights[first.value], encoding, first)
        alike = dict.fromkeys(groups[p] for p in encoding.plan.activations if not groups[p] & encoding.plan.weights)
        specs, params = encoding.plan.specs, encoding.params
        firsts = {group: min(group, key=str) for group in alike}
        scales = {g: LearnedScale.of(specs[p], params[p], executor.device) for g, p in firsts.items()}
        return Variables(roundings=roundings, scales=scales, twins=twins)

    def _train(self, variables: Variables, hook: Hook, units: tuple[float, float]) -> None:
        method, work = self.work.method, self.work
        tuned = replace(method, rates=replace(method.rates, rounding=method.rates.whole))
        optimizer = variables.optimizer(tuned)
        generator = torch.Generator().manual_seed(work.seed(STAGE))
        every, end = max(1, method.global_iterations // _REPORTS), work.total
        for iteration in range(method.global_iterations):
            for part in optimizer.param_groups:
                part["lr"] = part["start"] * 0.5 * (1 + math.cos(math.pi * iteration / method.global_iterations))
            optimizer.zero_grad()
            order: list[int] = torch.randperm(self.rows.values.count, generator=generator).tolist()
            picked = order[: method.batch_size]
            total = 0.0
            for group in self.rows.groups(picked):
                logits, features = self._terms(hook, group)
                loss = (logits / (units[0] or 1.0) + features / (units[1] or 1.0)) * (len(group) / len(picked))
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
            optimizer.step()
            if (iteration + 1) % every == 0:
                done = end - method.global_iterations + iteration + 1
                work.progress(done, end, f"learning: {STAGE}, loss {total:.3g}")

    def _judge(self, hook: Hook, samples: Sequence[int]) -> tuple[float, float]:
        sums, size = [0.0, 0.0], self.work.method.batch_size
        with torch.no_grad():
            for start in range(0, len(samples), size):
                for group in self.rows.groups(samples[start : start + size]):
                    for at, term in enumerate(self._terms(hook, group)):
                        sums[at] += float(term) * len(group) / len(samples)
        return sums[0], sums[1]

    def _terms(self, hook: Hook, group: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Difference at the outputs, and the blocks' squared errors over their power, averaged."""
        executor, names = self.work.executor, self.work.executor.input_names
        exact, given = ({n: self.rows.fetch((kind, n), group) for n in names} for kind in ("float", "quantized"))
        with torch.no_grad():
            target = executor.run(exact, fetch=self.fetched)
        found = executor.run(given, hook=unseen(hook, names), fetch=self.fetched)
        outputs = {name: target[name] for name in executor.output_names}
        temperature = self.work.method.prediction.temperature
        logits = (
            difference(self.work.objective, outputs, found, temperature=temperature)
            if floating(outputs)
            else next(iter(found.values())).new_zeros((), dtype=torch.float32)
        )
        features = [
            (found[name] - target[name]).square().mean() / target[name].square().mean().clamp_min(1e-30)
            for name in self.fetched
        ]
        return logits, torch.stack(features).mean()


def _relative(loss: tuple[float, float], units: tuple[float, float]) -> float:
    return sum(term / (unit or 1.0) for term, unit in zip(loss, units, strict=True))


def _latent(weight: torch.Tensor, encoding: Encoding, placement: Placement) -> Rounding:
    """A latent weight in the cell of the code that was learned, as near to the float weight as the cell allows."""
    spec, params = encoding.plan.specs[placement], encoding.params[placement]
    grid = LearnedGrid.of(weight, spec, params)
    with torch.no_grad():
        steps = torch.round(Overlay(encoding=encoding)(placement, weight) / grid.scale)
        latent = steps + torch.clamp(weight / grid.scale - steps, -_EDGE, _EDGE)
    return StraightThrough(grid=grid, latent=latent.requires_grad_())
