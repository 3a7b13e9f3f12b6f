"""The parts of a report that say what was decided and what ran: refusals, the measured gate, engine nodes, pictures."""

from __future__ import annotations

from fptq.report.records import Number, Record


class RefusalRecord(Record):
    """A node kept in float, and why.

    Attributes:
        node: Name of the node.
        op: Its operation.
        module: Where it is in the user's model.
        reason: Why it stays float.
    """

    node: str
    op: str
    module: str = ""
    reason: str


class Trial(Record):
    """A placement that the gate compiled and timed.

    Attributes:
        name: What was tried.
        latency_ms: Median time of one run [ms].
        kept: Whether the result uses it.
        note: Anything else worth knowing.
    """

    name: str
    latency_ms: Number
    kept: bool = False
    note: str = ""


class Reverted(Record):
    """A node whose quantizers the gate took back.

    Attributes:
        node: Name of the node.
        op: Its operation.
        module: Where it is in the user's model.
        reason: Why, with the times that decided it.
        weights_kept: Whether its weights stay integers behind a DequantizeLinear, for the size.
    """

    node: str
    op: str
    module: str = ""
    reason: str
    weights_kept: bool = False


class Gate(Record):
    """What was measured before the placement was settled.

    Attributes:
        tried: The variants timed.
        reverted: The nodes taken back to float.
        margin: The share of the latency that a less accurate variant had to gain at least, in [0, 1].
        conclusion: One sentence.
    """

    tried: tuple[Trial, ...] = ()
    reverted: tuple[Reverted, ...] = ()
    margin: Number = None
    conclusion: str = ""


class NodeRecord(Record):
    """One node of the engine's own graph.

    Attributes:
        nodes: The ONNX nodes that it covers (fusion makes them several).
        op: The engine's name for the operation.
        precision: What it ran in.
        kernel: The engine's kernel.
        time_ms: Mean time of one run [ms]; null where the engine does not say.
    """

    nodes: tuple[str, ...]
    op: str
    precision: str
    kernel: str = ""
    time_ms: Number = None


class Panel(Record):
    """One image of a picture.

    Attributes:
        title: What it shows.
        image: PNG in base64.
        overlay: A transparent PNG of the same size in base64, drawn over the image; null where there is none.
        note: One short line below it.
    """

    title: str
    image: str
    overlay: str | None = None
    note: str = ""


class Picture(Record):
    """Images that belong side by side: one slice of one case.

    Attributes:
        title: The case and the slice.
        note: How the slice was chosen, or anything else worth knowing.
        panels: The images, from left to right.
    """

    title: str
    note: str = ""
    panels: tuple[Panel, ...]
