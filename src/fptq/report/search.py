"""The parts of a report that say which layer hurts, which mix of precisions was searched, and what was tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fptq.report.records import Count, Number, Record


class SensitivityRow(Record):
    """One layer, or layers that share a scale.

    Attributes:
        layer: Name of its first node.
        module: Where that is in the user's model; empty where unknown.
        parameters: Number of weights.
        loss: Predicted output error by format, of the network with this layer alone in that format.
        local_db: SQNR of its output in the compared format, on float inputs [dB].
        accumulated_db: The same in the network with all layers in the compared format [dB].
        precision: What it became: "float", or a format such as "w4a8"; empty where nothing was decided.
    """

    layer: str
    module: str = ""
    parameters: Count = 0
    loss: Mapping[str, Number]
    local_db: Number = None
    accumulated_db: Number = None
    precision: str = ""

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self.module or self.layer

    @property
    def own_share(self) -> float | None:
        """The share of the error at its output that it makes itself, in [0, 1]; the rest came from before."""
        if self.local_db is None or self.accumulated_db is None:
            return None
        return float(min(1.0, 10 ** ((self.accumulated_db - self.local_db) / 10)))


class Sensitivity(Record):
    """The layers by how much they hurt.

    Attributes:
        objective: What a loss is: "squared", the sum of squared output differences over that of squared outputs, or
            "kl", the divergence of the class probabilities [nats], or "binary", that of yes/no answers [nats].
        method: How losses were found: "fisher", estimated from gradients, or "leave-one-in", run one by one.
        samples: Samples that were run.
        formats: The formats of `loss`: "w4a8" is 4-bit weights and 8-bit activations.
        compared: The format of the local and accumulated errors.
        rows: The layers, in the order of execution.
    """

    objective: Literal["squared", "kl", "binary"]
    method: Literal["fisher", "leave-one-in"]
    samples: Count
    formats: tuple[str, ...]
    compared: str
    rows: tuple[SensitivityRow, ...]


class Point(Record):
    """One mix of precisions.

    Attributes:
        costs: By name: size [bytes], latency [ms], bops.
        predicted: Sum of the layers' predicted losses.
        verified: Loss of the network so quantized; null where it was not run.
        drop: Mean loss of the metric against the float network, positive is worse; null where it was not measured.
        upper: One-sided upper confidence limit of the drop.
        passes: Whether that limit is within the drop allowed; null where it was not tested.
        layers: Number of layers by precision.
        peak_activations: Largest sum of the activations that are alive together [bytes].
        chosen: Whether this is the answer.
    """

    costs: Mapping[str, Number]
    predicted: Number = None
    verified: Number = None
    drop: Number = None
    upper: Number = None
    passes: bool | None = None
    layers: Mapping[str, Count] = {}
    peak_activations: Number = None
    chosen: bool = False


class Search(Record):
    """The mixes that lose least at every price, and the one chosen.

    Attributes:
        objective: What a loss is, as in `Sensitivity`.
        cost: Name of the cost that was swept.
        limits: What was not to be exceeded, by name of the cost.
        float_costs: The float network's costs.
        points: From the cheapest to the dearest.
        max_drop: How much the metric may drop; null where nothing was asked.
        confidence: Level of the upper limits of the drop, in (0, 1).
        metric: Name of the metric; empty where none was measured.
        evaluations: How many networks the metric was measured on.
        complete: Whether the search came to its end; false where time ran out.
        emulated: Formats that the engine has no kernel for: it runs them in an int8 container, or in float.
        notes: What else to know, one line each.
    """

    objective: Literal["squared", "kl", "binary"]
    cost: str
    limits: Mapping[str, Number] = {}
    float_costs: Mapping[str, Number] = {}
    points: tuple[Point, ...]
    max_drop: Number = None
    confidence: Number = None
    metric: str = ""
    evaluations: Count = 0
    complete: bool = True
    emulated: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def chosen(self) -> Point | None:
        """The answer."""
        return next((point for point in self.points if point.chosen), None)

    def relative(self, name: str, value: float | None) -> float | None:
        """A cost as a share of the float network's."""
        base = self.float_costs.get(name)
        return None if value is None or not base else value / base


class Tried(Record):
    """A method that was tried on top, judged on samples held out.

    Attributes:
        name: What was tried.
        before_db: SQNR of the output without it [dB].
        after_db: SQNR of the output with it [dB].
        kept: Whether the result uses it.
    """

    name: str
    before_db: Number = None
    after_db: Number = None
    kept: bool = False

    @property
    def gain_db(self) -> float | None:
        """What it brought [dB]."""
        return None if self.before_db is None or self.after_db is None else self.after_db - self.before_db
