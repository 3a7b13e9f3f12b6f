"""A reconstruction method as a record; the published ones are presets of one loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, Self

from fptq.reconstruct.blocks import Extent

_FASTEST_ROUNDING, _FASTEST_SCALE = 3e-2, 1e-2


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Learning rates of Adam.

    Scales are learned as logarithms, so that their rates are relative steps: an absolute rate, as in the papers, means
    something else for every layer.

    Attributes:
        rounding: Of the rounding variables (alpha, code steps, or logarithms of divisors), constant.
        weight_scale: Of the logarithms of weight scales, falling to 0 along a cosine.
        activation_scale: Of the logarithms of activation scales, falling to 0 along a cosine.
        whole: Of the latent codes in the stage of all blocks together [code steps], falling to 0 along a cosine.
    """

    rounding: float = 1e-3
    weight_scale: float = 5e-4
    activation_scale: float = 2e-4
    whole: float = 5e-5


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """How much the network's outputs count, behind the block that is learned; see `Method.loss`.

    Attributes:
        weight: Factor of the term.
        temperature: Of the class probabilities.
        every: The term is computed in every so many-th iteration, and weighs that much more there.
        rows: On at most so many of the batch's samples.
    """

    weight: float = 1.0
    temperature: float = 4.0
    every: int = 4
    rows: int = 8


@dataclass(frozen=True, kw_only=True)
class Method:
    """What is learned, from what, by which loss and for how long.

    Attributes:
        name: For reports.
        unit: What is reconstructed at a time.
        pack_size: Blocks in a pack.
        inputs: What a block is fed in training: values of the float network; of the network quantized so far; each
            element float with probability `drop_prob` and quantized otherwise (QDrop); random convex mixtures of both
            (AE-QDrop). The activation quantizers inside the block are mixed alike.
        drop_prob: Probability that quantization is dropped, 0 to 1.
        loss: "mse": squared error at the block's output, summed over channels, mean over the rest. "fisher": the same,
            each element weighed by the squared gradient of the network's loss there. "prediction": "mse" plus the
            difference that the block makes at the network's outputs (PD-Quant).
        normalised: Every term is divided by what nearest rounding makes of it; the regulariser is then a mean over
            weights, otherwise a sum.
        rounding: "sigmoid": between the two neighbouring codes (AdaRound); "progressive": to any code, weights fixed
            step by step; "straight-through": to any code, always rounded; "flexround": by learned divisors.
        learn_weight_scale: The scales of weights too (Genie-M).
        activations: Activation scales stay as they are, are learned with the weights, or after all weights.
        correct: Float inputs are moved so that channel statistics behind the block agree with those of all samples.
        iterations: For each block.
        activation_iterations: For each block, where activations are learned afterwards.
        global_iterations: Of a last stage that learns all blocks together; 0: none.
        batch_size: Samples in an iteration; volumes need few, for every one of them runs in each iteration.
        rates: Learning rates.
        regulariser: Weight of the term that drives soft rounding to 0 or 1.
        beta: Exponent of that term at the start and at the end.
        warm_up: Share of the iterations without that term.
        prediction: About the term at the outputs.
        tolerance: A block has converged when a window of iterations improves on the one before by less than this share.
    """

    name: str
    unit: Extent = "block"
    pack_size: int = 2
    inputs: Literal["float", "quantized", "drop", "mixture"] = "quantized"
    drop_prob: float = 0.5
    loss: Literal["mse", "fisher", "prediction"] = "mse"
    normalised: bool = False
    rounding: Literal["sigmoid", "progressive", "straight-through", "flexround"] = "sigmoid"
    learn_weight_scale: bool = False
    activations: Literal["fixed", "joint", "after"] = "joint"
    correct: bool = False
    iterations: int = 20_000
    activation_iterations: int = 5_000
    global_iterations: int = 0
    batch_size: int = 32
    rates: Rates = field(default_factory=Rates)
    regulariser: float = 0.01
    beta: tuple[float, float] = (20.0, 2.0)
    warm_up: float = 0.2
    prediction: Prediction = field(default_factory=Prediction)
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.drop_prob <= 1:
            raise ValueError(f"drop_prob = {self.drop_prob}: a probability is between 0 and 1")
        if self.iterations < 1 or self.batch_size < 1 or self.prediction.every < 1:
            raise ValueError("iterations, batch size and the interval of predictions are at least 1")

    def shortened(self, iterations: int) -> Self:
        """The same method in another number of iterations, with rates that reach as far.

        Soft rounding starts up to 2.4 away from a decision: with the rates of a long run a short one would end
        before weights could change their mind. Rates stop growing at 0.03 (rounding) and 0.01 (scales).

        Args:
            iterations: For each block.
        """
        ratio = self.iterations / iterations
        rates = Rates(
            rounding=min(self.rates.rounding * ratio, max(_FASTEST_ROUNDING, self.rates.rounding)),
            weight_scale=min(self.rates.weight_scale * ratio, max(_FASTEST_SCALE, self.rates.weight_scale)),
            activation_scale=min(self.rates.activation_scale * ratio, max(_FASTEST_SCALE, self.rates.activation_scale)),
            whole=min(self.rates.whole * ratio, max(_FASTEST_ROUNDING, self.rates.whole)),
        )
        return replace(
            self,
            iterations=iterations,
            activation_iterations=_scaled(self.activation_iterations, ratio),
            global_iterations=_scaled(self.global_iterations, ratio),
            rates=rates,
        )


def _scaled(count: int, ratio: float) -> int:
    return max(1, round(count / ratio)) if count else 0


_QDROP = Method(name="qdrop", inputs="drop")

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        # Nagel et al. 2020, arXiv 2004.10568: layer by layer, quantized inputs, activation function in the loss.
        "adaround": Method(name="adaround", unit="layer", activations="fixed", iterations=10_000),
        # Li et al. 2021, arXiv 2102.05426: block by block, weights first; plain squared error as its release has it.
        "brecq": Method(name="brecq", activations="after"),
        # Wei et al. 2022, arXiv 2203.05740.
        "qdrop": _QDROP,
        # Jeon et al. 2023, arXiv 2212.04780: QDrop that learns the step of the weights' grid too.
        "genie": replace(_QDROP, name="genie", learn_weight_scale=True),
        # Liu et al. 2023, arXiv 2212.07048; its outputs are computed in every iteration and on whole batches.
        "pd-quant": replace(
            _QDROP,
            name="pd-quant",
            loss="prediction",
            correct=True,
            rates=Rates(rounding=3e-3),
            prediction=Prediction(weight=10.0),
        ),
        # Chen et al. 2024, Electronics 13(3) 644; the distribution of the mixture and the lengths of the two stages
        # are not published.
        "ae-qdrop": replace(
            _QDROP,
            name="ae-qdrop",
            inputs="mixture",
            rounding="progressive",
            global_iterations=4_000,
            rates=Rates(rounding=1e-4),
        ),
        # Ours: what was best on small trained networks in short runs (progressive rounding, learned grids, and all
        # blocks together at the end), where a prediction term in the blocks' loss did not help.
        "auto": replace(
            _QDROP,
            name="auto",
            inputs="mixture",
            rounding="progressive",
            learn_weight_scale=True,
            iterations=500,
            global_iterations=250,
            rates=Rates(rounding=4e-3, weight_scale=8e-3, activation_scale=8e-3, whole=1.2e-3),
            prediction=Prediction(temperature=1.0),
        ),
    }
)
"""The methods by name."""
