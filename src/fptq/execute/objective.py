"""How much an output error matters, without labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum

import torch
from torch.nn.functional import logsigmoid

from fptq.graph.model import Model

Outputs = Mapping[str, torch.Tensor]


class Objective(Enum):
    """The loss of a quantized network against its float self.

    SQUARED: sum of squared output differences over the sum of squared outputs, of several outputs the mean: the
        inverse of the SQNR as a plain ratio. For regression.
    KL: the divergence of the quantized network's class probabilities from the float network's [nats], mean over
        samples and positions. For outputs that are logits, classes on axis 1, or on the last axis of rank 3.
    BINARY: the same of independent yes/no answers, one logit each, summed over that axis.

    Positions count alike, also where nearly all are background. There the float network is sure of its answer, and
    both divergences weigh a change of a logit by `p (1 - p)`, so background does not drown the classes. Weights by
    class would be those of the samples that happen to run side by side.
    """

    SQUARED = "squared"
    KL = "kl"
    BINARY = "binary"


def loss(objective: Objective, reference: Outputs, other: Outputs) -> float:
    """The loss itself, for exact comparisons.

    Args:
        objective: Which.
        reference: The float network's outputs.
        other: The quantized network's.

    Networks that return whole numbers alone lose the share of values that differ.
    """
    exact, found = ({name: tensor.detach().double() for name, tensor in side.items()} for side in (reference, other))
    if not floating(reference):
        return sum(float((exact[name] != found[name]).double().mean()) for name in exact) / len(exact)
    return float(difference(objective, {name: exact[name] for name in floating(reference)}, found))


def difference(objective: Objective, reference: Outputs, other: Outputs, *, temperature: float = 1.0) -> torch.Tensor:
    """The loss as a tensor, with its gradient; the mean over the floating-point outputs.

    Args:
        objective: Which.
        reference: The float network's outputs, at least one of floating point.
        other: The quantized network's.
        temperature: Logits are divided by it before they become probabilities (Hinton et al. 2015, arXiv 1503.02531).
    """
    terms = [_difference(objective, reference[name], other[name], temperature) for name in floating(reference)]
    return torch.stack(terms).mean()


def projection(objective: Objective, outputs: Outputs, generator: torch.Generator) -> torch.Tensor:
    """A scalar whose gradient `g`, over draws, has `E[(g . d)^2]` = the loss of a small change `d` of any value.

    Standard normal weights make the expectation of the squared product the squared norm of the output's change
    (Hutchinson 1990); weights with the covariance of the Fisher information, `diag(p) - p p^T` on the logits of classes
    and `p (1 - p)` on those of yes/no answers, make it twice the KL divergence to second order (Martens 2020, JMLR
    21:146, section 5).

    Args:
        objective: Which loss.
        outputs: The float network's outputs, with their graph.
        generator: Source of the draw, on the CPU.
    """
    terms = [_projection(objective, outputs[name], generator) for name in floating(outputs)]
    return torch.stack(terms).sum() / math.sqrt(len(terms)) if terms else torch.zeros(())


def class_axis(output: torch.Tensor) -> int:
    """Where the classes are: the last axis of sequences `[N, T, C]`, otherwise axis 1."""
    return 2 if output.ndim == 3 else 1


def floating(outputs: Outputs) -> list[str]:
    """Names of the outputs that have gradients."""
    return [name for name, tensor in outputs.items() if tensor.is_floating_point()]


def _difference(objective: Objective, reference: torch.Tensor, other: torch.Tensor, temperature: float) -> torch.Tensor:
    match objective:
        case Objective.SQUARED:
            power = reference.square().sum().clamp_min(1e-30)
            return (reference - other).square().sum() / power
        case Objective.KL:
            axis = class_axis(reference)
            p, q = (torch.log_softmax(tensor / temperature, axis) for tensor in (reference, other))
            return (p.exp() * (p - q)).sum(axis).mean()
        case Objective.BINARY:
            p, q = reference / temperature, other / temperature
            yes, no = (torch.sigmoid(x) * (logsigmoid(x) - logsigmoid(y)) for x, y in ((p, q), (-p, -q)))
            return (yes + no).sum(class_axis(reference)).mean()


def _projection(objective: Objective, output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(output.shape, generator=generator, dtype=output.dtype).to(output.device)
    match objective:
        case Objective.SQUARED:
            power = output.detach().square().sum().clamp_min(1e-30)
            return (output * noise).sum() / power.sqrt()
        case Objective.KL:
            root = torch.softmax(output.detach(), class_axis(output)).sqrt()
            weights = root * noise - root.square() * (root * noise).sum(class_axis(output), keepdim=True)
        case Objective.BINARY:
            weights = noise * (torch.sigmoid(output.detach()) * torch.sigmoid(-output.detach())).sqrt()
    positions = output.numel() / output.shape[class_axis(output)]
    return (output * weights).sum() / math.sqrt(2 * positions)


def natural(model: Model) -> Objective:
    """KL where every output is one vector of several scores for each sample (`[N, C]`), otherwise squared errors."""
    shapes = [info.shape or () for info in model.outputs if info.dtype.kind == "f"]
    scores = bool(shapes) and all(len(shape) == 2 and shape[1] != 1 for shape in shapes)
    return Objective.KL if scores else Objective.SQUARED


def of_task(model: Model, task: str) -> Objective:
    """The objective of a network whose task is known.

    For "segmentation" KL at every voxel where all outputs `[N, C, *S]` have several channels, and BINARY where all have
    one. Otherwise, and where outputs are probabilities already or of unknown shape, what is `natural`.

    Args:
        model: The network.
        task: The recipe's.
    """
    shapes = [info.shape or () for info in model.outputs if info.dtype.kind == "f"]
    channels = {shape[1] if len(shape) > 3 else None for shape in shapes}
    if task != "segmentation" or _probable(model) or not all(isinstance(count, int) for count in channels):
        return natural(model)
    if channels == {1}:
        return Objective.BINARY
    return Objective.KL if channels and 1 not in channels else natural(model)


def _probable(model: Model) -> bool:
    """Whether an output is computed by what makes probabilities of logits."""
    makers = [value.producer() for value in model.graph.outputs]
    return any(node is not None and node.op_type in ("Sigmoid", "Softmax") for node in makers)
