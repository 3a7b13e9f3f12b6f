"""The part of a report about a network of few bits: how it was repaired, and whether that holds on other data."""

from __future__ import annotations

from fptq.report.records import Number, Record


class RepairedUnit(Record):
    """One layer or block.

    Attributes:
        name: Its name.
        before: Its error with nearest rounding, in the unit of the method's own loss.
        after: Its error with what the method found.
        kept: Whether that was kept.
    """

    name: str
    before: Number = None
    after: Number = None
    kept: bool = True


class Repair(Record):
    """How codes of few bits were found.

    Attributes:
        format: Such as "w4a4".
        method: Its name.
        setting: What kept eight bits at the ends: "qdrop" or "brecq".
        seconds: Time of the method.
        nearest_db: SQNR of the output with nearest rounding, on samples held out [dB].
        held_out_db: The same with the method.
        calibration_db: With the method, on samples that it learned from.
        packed_mb: Size of the file whose weights share bytes [MB]; null where there is none.
        units: Its layers or blocks, in order.
    """

    format: str
    method: str
    setting: str
    seconds: Number = None
    nearest_db: Number = None
    held_out_db: Number = None
    calibration_db: Number = None
    packed_mb: Number = None
    units: tuple[RepairedUnit, ...] = ()
