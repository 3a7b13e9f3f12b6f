"""Inputs that look like all samples, not like one batch of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fptq.reconstruct.inputs import Key
from fptq.reconstruct.losses import Losses

_PULL = 0.02  # lambda_c of PD-Quant's ResNets: how little the statistics weigh against the input itself
_RATE = 1e-3  # of the input's own spread
_SHARE = 0.1  # of the block's iterations are spent here
_LEAST, _MOST = 10, 500


def correct_distribution(losses: Losses) -> int:
    """Move float inputs, batch by batch, towards the channel statistics that all samples have behind the block.

    PD-Quant (arXiv 2212.07048, section 3.3) matches the running statistics of the block's batch normalisations. Those
    are folded into weights here, and other normalisations have none: mean and spread of the block's float output over
    all samples take their place. Keeps the kinds "moved" (inputs) and "aim" (the float output for them).

    Args:
        losses: Of the block; its samples run side by side.

    Returns:
        Steps taken for each batch.
    """
    values, name = losses.rows.values, losses.block.output
    size = min(losses.method.batch_size, losses.rows.width)
    batches = [range(at, min(at + size, values.count)) for at in range(0, values.count, size)]
    steps = min(_MOST, max(_LEAST, round(_SHARE * losses.method.iterations / len(batches))))
    goal = _pooled(losses)

    def rows() -> Iterator[dict[Key, torch.Tensor]]:
        for batch in batches:
            moved = _moved(losses, losses.exact(batch), goal, steps)
            with torch.no_grad():
                aim = losses.part.run(moved)[name]
            split: dict[Key, tuple[torch.Tensor, ...]] = {("aim", name): aim.chunk(len(batch))}
            split |= {("moved", key): tensor.chunk(len(batch)) for key, tensor in moved.items()}
            for place in range(len(batch)):
                yield {key: parts[place] for key, parts in split.items()}

    values.add(rows())
    return steps


def _moved(
    losses: Losses, fed: dict[str, torch.Tensor], goal: tuple[torch.Tensor, torch.Tensor], steps: int
) -> dict[str, torch.Tensor]:
    floats = {name: tensor.clone().requires_grad_() for name, tensor in fed.items() if tensor.is_floating_point()}
    spread = {name: fed[name].std(correction=0).clamp_min(1e-12) for name in floats}
    optimizer = torch.optim.Adam([{"params": [x], "lr": _RATE * float(spread[name])} for name, x in floats.items()])
    power = goal[1].square().mean().clamp_min(1e-24)
    for _ in range(steps):
        optimizer.zero_grad()
        output = losses.part.run({**fed, **floats})[losses.block.output]
        mean, deviation = _statistics(output, losses.block.channels)
        gap = ((mean - goal[0]).square() + (deviation - goal[1]).square()).mean() / power
        pull = torch.stack([((x - fed[name]) / spread[name]).square().mean() for name, x in floats.items()]).sum()
        (gap + pull / _PULL).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {**fed, **{name: x.detach() for name, x in floats.items()}}


def _statistics(output: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = output.movedim(channels, 0).flatten(1) if output.ndim > 1 else output[None]
    return rows.mean(1), (rows.var(1, correction=0) + 1e-12).sqrt()


def _pooled(losses: Losses) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and spread of each channel over all samples, which have one shape."""
    count = losses.rows.values.count
    targets = (losses.rows.fetch(("target", losses.block.output), [sample]) for sample in range(count))
    found = [_statistics(target, losses.block.channels) for target in targets]
    means, spreads = (torch.stack(part) for part in zip(*found, strict=True))
    return means.mean(0), (spreads.square().mean(0) + means.var(0, correction=0)).sqrt()
