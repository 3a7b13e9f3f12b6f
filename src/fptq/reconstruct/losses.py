"""How far a block is from its float self: at its own output, and at the network's."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from fptq.execute import Executor, Hook, Objective
from fptq.execute.objective import difference, floating, projection
from fptq.reconstruct.blocks import Block
from fptq.reconstruct.frontier import Suffix, unseen
from fptq.reconstruct.inputs import Key, Values
from fptq.reconstruct.method import Method
from fptq.reconstruct.rows import Rows

Tensors = Mapping[str, torch.Tensor]

_FISHER_DRAWS = 2


@dataclass(kw_only=True)
class Clock:
    """What the predictions cost.

    Attributes:
        runs: How often the float suffix ran.
        seconds: Forward and backward, with the block in front of it [s].
    """

    runs: int = 0
    seconds: float = 0.0
    _started: float = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.runs += 1
        self.seconds += time.perf_counter() - self._started


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The losses of one block.

    Attributes:
        block: The block.
        part: Computes it.
        rows: Its inputs and targets.
        method: Which losses there are.
        objective: What a difference of the outputs means.
        suffix: What lies behind; None: the outputs do not count.
        suffix_rows: Its inputs.
        units: Divisors of the local loss and of the prediction difference.
        clock: Of the predictions.
    """

    block: Block
    part: Executor
    rows: Rows
    method: Method
    objective: Objective
    suffix: Suffix | None = None
    suffix_rows: Rows | None = None
    units: tuple[float, float] = (1.0, 1.0)
    clock: Clock = field(default_factory=Clock)

    def exact(self, group: Sequence[int]) -> dict[str, torch.Tensor]:
        """The block's inputs in the float network, after distribution correction where there is one."""
        return {name: self.rows.first(("moved", "float"), name, group) for name in self.block.inputs}

    def quantized(self, group: Sequence[int]) -> dict[str, torch.Tensor]:
        """The block's inputs in the network quantized so far."""
        return {name: self.rows.fetch(("quantized", name), group) for name in self.block.inputs}

    def run(self, fed: Tensors, hook: Hook) -> torch.Tensor:
        """The block's output."""
        return self.part.run(fed, hook=unseen(hook, self.block.inputs))[self.block.output]

    def local(self, fed: Tensors, hook: Hook, group: Sequence[int]) -> torch.Tensor:
        """f32[]: squared error at the block's output, summed over channels, mean over the rest, in its unit."""
        output = self.run(fed, hook)
        error = (output - self.rows.first(("aim", "target"), self.block.output, group)).square()
        if ("fisher", self.block.output) in self.rows.values:
            error = error * self.rows.fetch(("fisher", self.block.output), group)
        channels = error.shape[self.block.channels] if error.ndim > 1 else 1
        return error.sum() * (channels / error.numel() / self.units[0])

    def prediction(self, hook: Hook, group: Sequence[int]) -> torch.Tensor:
        """f32[]: what the block, with quantized inputs, changes at the network's outputs, in its unit.

        Source: PD-Quant (Liu et al. 2023, arXiv 2212.07048).
        """
        assert self.suffix is not None
        outputs = self.behind(self.run(self.quantized(group), hook), group)
        exact = {name: self.rows.fetch(("output", name), group) for name in floating(outputs)}
        found = difference(self.objective, exact, outputs, temperature=self.method.prediction.temperature)
        return found / self.units[1]

    def judge(self, hook: Hook, samples: Sequence[int]) -> tuple[float, float]:
        """Both losses over some samples, with nothing dropped; 0 for a term that does not count.

        Args:
            hook: The quantized block.
            samples: At least one.
        """
        local = prediction = 0.0
        size = self.method.batch_size
        with torch.no_grad():
            for start in range(0, len(samples), size):
                for group in self.rows.groups(samples[start : start + size]):
                    fed = self.exact(group) if self.method.inputs == "float" else self.quantized(group)
                    local += float(self.local(fed, hook, group)) * len(group) / len(samples)
                for group in self.prediction_groups(samples[start : start + size]):
                    prediction += float(self.prediction(hook, group)) * len(group) / len(samples)
        return local, prediction

    def prediction_groups(self, picked: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """The samples of a batch that run together through block and suffix; none where the outputs do not count."""
        if self.suffix_rows is None:
            return iter(())
        return self.suffix_rows.groups(picked)

    def total(self, local: float, prediction: float) -> float:
        """The block's own loss from its terms."""
        return local + self.method.prediction.weight * prediction

    def behind(self, output: torch.Tensor, group: Sequence[int]) -> dict[str, torch.Tensor]:
        """The network's outputs from the block's output."""
        assert self.suffix is not None
        return self.suffix.part.run({self.suffix.entry: output, **self.beside(group)})

    def beside(self, group: Sequence[int]) -> dict[str, torch.Tensor]:
        """What the network behind the block reads besides its output."""
        assert self.suffix is not None
        return {name: self.rows.first(("beside", "quantized"), name, group) for name in self.suffix.beside}


def weigh_by_fisher(losses: Losses, values: Values, objective: Objective, generator: torch.Generator) -> None:
    """Keep, as the kind "fisher", the squared gradient of the network's loss at the block's float output.

    The diagonal of the Fisher information as in BRECQ (arXiv 2102.05426, equation 10), from random projections of
    the outputs: the gradient of the divergence itself is 0 where nothing is quantized. Divided by its mean over the
    first sample, so that the loss keeps its size.

    Args:
        losses: Of the block, with what lies behind it.
        values: Of all samples.
        objective: The network's loss.
        generator: Of the projections, on the CPU.
    """
    suffix, name = losses.suffix, losses.block.output
    assert suffix is not None

    def rows() -> Iterator[dict[Key, torch.Tensor]]:
        mean: torch.Tensor | None = None
        for sample in range(values.count):
            output = losses.rows.fetch(("target", name), [sample]).clone().requires_grad_()
            found = losses.behind(output, [sample])
            power = torch.zeros_like(output)
            for _ in range(_FISHER_DRAWS):
                target = projection(objective, found, generator)
                (gradient,) = torch.autograd.grad(target, output, retain_graph=True)
                power += gradient.square()
            mean = power.mean().clamp_min(1e-30) if mean is None else mean
            yield {("fisher", name): power / mean}

    values.add(rows())
