"""One walk through the network, block by block."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch

from fptq.cache import cache_key
from fptq.execute import Executor, Hook, Objective, Overlay
from fptq.execute.objective import difference, floating
from fptq.graph.placement import Placement
from fptq.plan.encoding import Encoding
from fptq.plan.plan import Plan
from fptq.reconstruct.activations import Group, learnable
from fptq.reconstruct.blocks import Block
from fptq.reconstruct.distribution import correct_distribution
from fptq.reconstruct.frontier import Frontier, Suffix
from fptq.reconstruct.hook import Mixer
from fptq.reconstruct.losses import Losses, weigh_by_fisher
from fptq.reconstruct.method import Method
from fptq.reconstruct.result import Checkpoints, Log, ReconstructionOptions, UnitResult
from fptq.reconstruct.rows import Rows, width_of
from fptq.reconstruct.train import Training, Variables
from fptq.types import Progress


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a sweep learns.

    Attributes:
        name: For reports and keys.
        weights: Whether rounding is learned.
        scales: Whether activation scales are learned.
        placements: What is quantized.
        iterations: For each block.
    """

    name: str
    weights: bool
    scales: bool
    placements: frozenset[Placement]
    iterations: int


def stages_of(method: Method, plan: Plan) -> tuple[Stage, ...]:
    """The sweeps of a method."""
    everything = frozenset(plan.specs)
    both = Stage(
        name="weights and activations", weights=True, scales=True, placements=everything, iterations=method.iterations
    )
    match method.activations:
        case "joint":
            return (both,)
        case "fixed":
            return (replace(both, name="weights", scales=False),)
        case "after":
            first = replace(both, name="weights", scales=False, placements=plan.weights)
            last = replace(both, name="activations", weights=False, iterations=method.activation_iterations)
            return first, last


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all sweeps share.

    Attributes:
        executor: The float network.
        method: What is learned.
        options: Seed, memory and the rest.
        objective: What a difference of the outputs means.
        blocks: In the order of execution.
        groups: For every placement those that share its numbers.
        checkpoints: Where results are kept.
        log: What is gathered.
        progress: Told how far it is.
        total: Iterations of all sweeps, the end of the progress.
    """

    executor: Executor
    method: Method
    options: ReconstructionOptions
    objective: Objective
    blocks: tuple[Block, ...]
    groups: Mapping[Placement, Group]
    checkpoints: Checkpoints
    log: Log
    progress: Progress
    total: int

    def seed(self, *parts: object) -> int:
        """A seed of its own for every use of randomness."""
        return int(cache_key(self.options.seed, *parts)[:12], 16)


@dataclass(kw_only=True)
class Sweep:
    """One walk: the encoding grows block by block.

    Attributes:
        work: What all sweeps share.
        stage: What is learned.
        frontier: The values in front of the next block.
        encoding: So far.
        done: Iterations of the sweeps before.
        settled: Placements that earlier blocks have used or learned.
    """

    work: Work
    stage: Stage
    frontier: Frontier
    encoding: Encoding
    done: int
    settled: frozenset[Placement] = field(default_factory=frozenset)

    def walk(self) -> None:
        """Reconstruct every block, or take its result from the store.

        Nothing runs for blocks from the store; the first one that is learned computes what they would have left.
        """
        if self.work.method.loss == "prediction":
            self.frontier.outputs()
        for index, block in enumerate(self.work.blocks):
            key = self.work.checkpoints.key(self.encoding, self.stage.name, index)
            stored = self.work.checkpoints.load(key, self.encoding)
            if stored is None:
                self.frontier.reach(block, self._overlay(self.encoding))
                self.encoding, result = self._learned(block, index)
                self.work.checkpoints.save(key, self.encoding, self._touched(block), result)
                self.frontier.leave(block, self._overlay(self.encoding))
            else:
                self.encoding, result = stored
            self.work.log.units.append(result)
            self.settled |= self._touched(block)
            at = self.done + (index + 1) * self.stage.iterations
            self.work.progress(at, self.work.total, f"learning: {block.name}, loss {result.final_loss:.3g}")

    def _overlay(self, encoding: Encoding) -> Overlay:
        return Overlay(encoding=encoding, only=self.stage.placements)

    def _touched(self, block: Block) -> frozenset[Placement]:
        return frozenset(p for q in (*block.weights, *block.activations) for p in self.work.groups[q])

    def _learned(self, block: Block, index: int) -> tuple[Encoding, UnitResult]:
        started = time.perf_counter()
        losses = self._losses(block, index)
        samples = self._judged()
        before = losses.judge(self._judging(self.encoding), samples)
        if self.work.method.normalised:
            losses = replace(losses, units=(before[0] or 1.0, before[1] or 1.0))
            before = losses.judge(self._judging(self.encoding), samples)
        training = self._training(block, index, losses)
        taken = training.run(lambda at, loss: self._tell(block, index, at, loss)) if any(before) else 0
        found, variables = self.encoding, training.variables
        if taken and variables.finite():
            found = variables.written(self.encoding, weight_scales=self.work.method.learn_weight_scale)
        after = losses.judge(self._judging(found), samples)
        initial, final = losses.total(*before), losses.total(*after)
        result = UnitResult(
            name=block.name,
            stage=self.stage.name,
            initial_loss=initial,
            final_loss=min(initial, final),
            iterations=taken,
            seconds=time.perf_counter() - started,
            kept=final < initial,
            history=tuple(training.history),
            predictions=losses.clock.runs,
            prediction_seconds=losses.clock.seconds,
        )
        return found if result.kept else self.encoding, result

    def _judged(self) -> list[int]:
        """Samples spread evenly over all of them."""
        count = self.frontier.values.count
        step = max(1, count // self.work.options.judged)
        return list(range(0, count, step))[: self.work.options.judged]

    def _judging(self, encoding: Encoding) -> Hook:
        """The hook of the losses that decide: a method that trains on float values is judged on them."""
        overlay = self._overlay(encoding)
        floats = self.work.method.inputs == "float"
        return overlay.restricted(self.stage.placements & encoding.plan.weights) if floats else overlay

    def _training(self, block: Block, index: int, losses: Losses) -> Training:
        method, work = self.work.method, self.work
        inside = {p: work.groups[p] for p in block.activations}
        groups = learnable(inside, self.settled) if self.stage.scales else ()
        weights = {p: work.groups[p] for p in self._first_seen(block)} if self.stage.weights else {}
        variables = Variables.of(work.executor, self.encoding, weights, groups, method)
        generator = torch.Generator(work.executor.device).manual_seed(work.seed("drop", self.stage.name, index))
        mixer = Mixer(method=method, generator=generator)
        return Training(
            losses=losses,
            learner=variables.learner(self._overlay(self.encoding), mixer),
            variables=variables,
            method=method,
            iterations=self.stage.iterations,
            generator=torch.Generator().manual_seed(work.seed("batches", self.stage.name, index)),
            autocast=work.options.autocast,
        )

    def _first_seen(self, block: Block) -> Iterator[Placement]:
        """The block's weights that no earlier block has learned, one of each group of twins."""
        seen = set(self.settled)
        for placement in block.weights:
            if placement not in seen:
                seen |= self.work.groups[placement]
                yield placement

    def _losses(self, block: Block, index: int) -> Losses:
        work, values = self.work, self.frontier.values
        part = work.executor.part(block.inputs, [block.output])
        rows = Rows(values=values, device=work.executor.device)
        losses = Losses(block=block, part=part, rows=rows, method=work.method, objective=work.objective)
        if values.count > 1 and values.alike([("float", name) for name in block.inputs]):
            pair = [list(losses.exact([sample]).values()) for sample in (0, 1)]
            width = width_of(part, pair, work.options.batch_memory)
            losses = replace(losses, rows=replace(rows, width=width))
        if work.method.loss != "mse":
            losses = self._with_suffix(losses, index)
        if work.method.correct and losses.rows.width > 1:
            correct_distribution(losses)
        elif work.method.correct:
            work.log.note("distribution correction left out where samples cannot run side by side")
        return losses

    def _with_suffix(self, losses: Losses, index: int) -> Losses:
        suffix, values, name = self.frontier.suffix(losses.block), self.frontier.values, losses.block.output
        wide = replace(losses, suffix=suffix, suffix_rows=replace(losses.rows, width=1))
        pair = [[losses.rows.fetch(("target", name), [s]), *wide.beside([s]).values()] for s in range(values.count)[:2]]
        if not _has_gradient(suffix, pair[0], self.work.objective):
            self.work.log.note(f"the outputs have no gradient with respect to {name!r}: local loss only")
            return losses
        if losses.rows.width > 1:
            width = width_of(suffix.part, pair, self.work.options.batch_memory)
            wide = replace(wide, suffix_rows=replace(losses.rows, width=min(width, losses.rows.width)))
        if self.work.method.loss == "prediction":
            return wide
        generator = torch.Generator().manual_seed(self.work.seed("fisher", index))
        weigh_by_fisher(wide, values, self.work.objective, generator)
        return losses

    def _tell(self, block: Block, index: int, iteration: int, loss: float) -> None:
        at = self.done + index * self.stage.iterations + iteration
        where = f"{block.name} ({index + 1}/{len(self.work.blocks)})"
        self.work.progress(at, self.work.total, f"learning: {where}, loss {loss:.3g}")


def _has_gradient(suffix: Suffix, fed: list[torch.Tensor], objective: Objective) -> bool:
    if not suffix.part.outputs:
        return False
    with torch.enable_grad():
        entry = fed[0].detach().clone().requires_grad_()
        outputs = suffix.part.run(dict(zip(suffix.part.input_names, [entry, *fed[1:]], strict=True)))
        return bool(floating(outputs)) and difference(objective, outputs, outputs).requires_grad
