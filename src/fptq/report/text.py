"""Numbers as a person reads them. A number that was not measured is a dash."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

from fptq.report.records import Score, Variant

DASH = "–"
MINUS = "−"
ELLIPSIS = "\xa0…\xa0"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent between 1e-4 and 1e6.

    >>> number(1234.5), number(0.012345), number(1.5e-9), number(None), number(math.inf)
    ('1,230', '0.0123', '1.50e−9', '–', '∞')
    """
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if not value:
        return "0"
    rounded = f"{value:.{digits - 1}e}"
    mantissa, _, power = rounded.partition("e")
    if not -4 <= int(power) < 6:
        return _signed(f"{mantissa}e{int(power)}")
    return _signed(f"{float(rounded):,.{max(0, digits - 1 - int(power))}f}")


def ratio(value: float | None) -> str:
    """A factor.

    >>> ratio(1.9412), ratio(13.08)
    ('1.94×', '13.1×')
    """
    return DASH if value is None else f"{number(value)}×"


def decibels(value: float | None) -> str:
    """A level with one decimal.

    >>> decibels(-3.04)
    '−3.0'
    """
    return DASH if value is None else _signed(f"{value:.1f}")


def percent(share: float | None, digits: int = 2) -> str:
    """A share of one, with so many significant digits; what is not all of it never reads 100 %.

    >>> percent(0.99999), percent(0.0213), percent(0), percent(1)
    ('> 99.99 %', '2.1 %', '0 %', '100 %')
    """
    if share is None:
        return DASH
    if 0.9999 < share < 1:
        return "> 99.99 %"
    if 0.99 < share < 1:
        return f"{share:.2%}".replace("%", " %")
    return f"{number(100 * share, digits)} %" if share < 1 else "100 %"


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    r"""Two ends.

    >>> interval(-1, 2.5)
    '−1.00\xa0…\xa02.50'
    """
    return DASH if low is None or high is None else f"{number(low, digits)}{ELLIPSIS}{number(high, digits)}"


def score(value: float | None, unit: str = "") -> str:
    """A metric's value: four decimals up to 1, fewer above.

    >>> score(0.94941), score(12.3456, "mm")
    ('0.9494', '12.35 mm')
    """
    if value is None:
        return DASH
    text = _signed(f"{value:.{4 if abs(value) <= 1 else 3 if abs(value) < 10 else 2}f}")
    return f"{text} {unit}" if unit else text


def enumeration(parts: Sequence[str]) -> str:
    """Parts of a sentence, joined.

    >>> enumeration(["is fast", "is small", "agrees"])
    'is fast, is small and agrees'
    """
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part) if parts else ""


def percent_change(before: float | None, after: float | None) -> str:
    """How much more (or less) `after` is, in percent of `before`.

    >>> percent_change(8.0, 2.0), percent_change(1.0, 1.004), percent_change(1, 14)
    ('−75 %', '+0.4 %', '+1,300 %')
    """
    if not before or after is None:
        return DASH
    change = 100 * (after - before) / before
    digits = 0 if abs(change) >= 10 else 1
    return f"{'+' if change > 0 else ''}{_signed(f'{change:,.{digits}f}')} %"


def ends(low: float | None, high: float | None) -> str:
    r"""The two ends of a score's interval.

    >>> ends(-0.00012, 0.0008)
    '−0.0001\xa0…\xa00.0008'
    """
    return f"{score(low)}{ELLIPSIS}{score(high)}"


def difference(value: float | None, unit: str = "") -> str:
    """How far apart two scores are; what is there but does not show in four decimals is said to be there.

    >>> difference(0.0012), difference(0.00001), difference(0)
    ('0.0012', '< 0.0001', '0.0000')
    """
    return "< 0.0001" if value and abs(value) < 0.00005 else score(value, unit)


def change(before: Score | None, after: Score | None) -> str:
    """After minus before.

    >>> change(Score(value=0.9), Score(value=0.8995))
    '−0.0005'
    """
    if before is None or after is None or before.value is None or after.value is None:
        return DASH
    text = difference(after.value - before.value)
    return f"+{text}" if after.value > before.value and text[0].isdigit() else text


def date(value: str) -> str:
    """A date and time as a person writes them; anything but ISO 8601 is left alone.

    >>> date("2026-11-23T21:30:00+00:00")
    '2026-11-23 21:30 UTC'
    """
    try:
        when = datetime.fromisoformat(value)
    except ValueError:
        return value
    return f"{when:%Y-%m-%d %H:%M} {when.tzname() or ''}".rstrip()


def median_ms(variant: Variant | None) -> float | None:
    """The median latency [ms], where it was measured."""
    return variant.latency_ms.median if variant and variant.latency_ms else None


def p95_ms(variant: Variant | None) -> float | None:
    """The 95th percentile of the latency [ms], where it was measured."""
    return variant.latency_ms.p95 if variant and variant.latency_ms else None


def counted(count: int, one: str, many: str) -> str:
    """A number of things.

    >>> counted(1, "node", "nodes"), counted(1200, "node", "nodes")
    ('1 node', '1,200 nodes')
    """
    return f"{count:,} {one if count == 1 else many}"


def shortened(name: str, length: int = 60) -> str:
    """A name that is too long without its middle.

    >>> shortened("encoder.block.conv", 9)
    'enco…conv'
    """
    half = length // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"


def precision(name: str) -> str:
    """A format in words: 8 bits on both sides are what everyone calls int8.

    >>> precision("w8a8"), precision("w4a8")
    ('int8', 'w4a8')
    """
    return {"w8a8": "int8"}.get(name, name)


def cost(name: str, value: float | None) -> str:
    """A cost with its unit.

    >>> cost("size", 2_240_000), cost("latency", 158.2), cost("bops", 3.1e12)
    ('2.24 MB', '158 ms', '3,100 GBOPs')
    """
    if value is None:
        return DASH
    match name:
        case "size":
            return f"{number(value / 1e6)} MB"
        case "latency":
            return f"{number(value)} ms"
        case "bops":
            return f"{number(value / 1e9)} GBOPs"
        case _:
            return number(value)


def loss(value: float | None, objective: str) -> str:
    """A loss as it is shown: the output SQNR [dB] of a squared one, a divergence [nats] as it is.

    >>> loss(0.001, "squared"), loss(0.0, "squared"), loss(0.001, "kl")
    ('30.0', '∞', '0.00100')
    """
    if value is None or objective != "squared":
        return number(value)
    return decibels(-10 * math.log10(value)) if value > 0 else "∞"


def _signed(text: str) -> str:
    if not any(digit in text for digit in "123456789"):  # -0.0000 is 0
        return text.removeprefix("-")
    return text.replace("-", MINUS)
