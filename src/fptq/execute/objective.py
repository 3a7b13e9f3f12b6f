"""How much an output error matters, without labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum

import torch

from fptq.graph.model import Model

Outputs = Mapping[str, torch.Tensor]


class Objective(Enum):
    """The loss of a quantized network against its float self.

    SQUARED: sum of squared output differences over the sum of squared outputs, of several outputs the mean: the
        inverse of the SQNR as a plain ratio. For regression and segmentation.
    KL: the divergence of the quantized network's class probabilities from the float network's [nats], mean over
        samples and positions. For outputs that are logits, classes on axis 1, or on the last axis of rank 3.
    """

    SQUARED = "squared"
    KL = "kl"


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
    (Hutchinson 1990); weights with the covariance of the Fisher information, `diag(p) - p p^T` on the logits, make it
    twice the KL divergence to second order (Martens 2020, JMLR 21:146, section 5).

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


def _projection(objective: Objective, output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(output.shape, generator=generator, dtype=output.dtype).to(output.device)
    match objective:
        case Objective.SQUARED:
            power = output.detach().square().sum().clamp_min(1e-30)
            return (output * noise).sum() / power.sqrt()
        case Objective.KL:
            axis = class_axis(output)
            root = torch.softmax(output.detach(), axis).sqrt()
            weights = root * noise - root.square() * (root * noise).sum(axis, keepdim=True)
            positions = output.numel() / output.shape[axis]
            return (output * weights).sum() / math.sqrt(2 * positions)


def natural(model: Model) -> Objective:
    """KL where every output is one vector of several scores for each sample (`[N, C]`), otherwise squared errors."""
    shapes = [info.shape or () for info in model.outputs if info.dtype.kind == "f"]
    scores = bool(shapes) and all(len(shape) == 2 and shape[1] != 1 for shape in shapes)
    return Objective.KL if scores else Objective.SQUARED
