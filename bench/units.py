"""Units: base SI inside, human forms only at the edges.

Sizes are bytes with IEC prefixes (``512MiB``), durations are seconds. Everything stored is in the
base unit of its metric; ``format_value`` is for display only.
"""

import difflib
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple, Self


class Unit(StrEnum):
    """The units a metric may have, each the base unit in which values are stored."""

    SECOND = "s"
    BYTE = "B"
    BYTES_PER_SECOND = "B/s"
    OPERATIONS_PER_SECOND = "1/s"
    COUNT = "1"
    RATIO = "ratio"
    SHARE = "share"
    """A part of a whole, from 0 to 1, shown in per cent."""
    CPU = "CPUs"
    """CPUs kept busy: seconds of CPU time in a second."""


_SIZE = re.compile(r"(?P<number>\d{1,30}(?:\.\d{1,30})?)\s*(?P<prefix>[KMGT]i)?B?", re.ASCII)
_IEC = {None: 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_DURATION = re.compile(r"(?P<number>\d{1,30}(?:\.\d{1,30})?)\s*(?P<unit>ms|s|min|m|h)?", re.ASCII)
_SECONDS = {None: 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_size(text: str) -> int:
    """Bytes of a size such as ``512MiB``, ``4KiB`` or ``1073741824``.

    Decimal prefixes (``MB``) are refused, because half of the tools mean one thing by them and half
    the other. Raises ValueError.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write it like 512MiB or 4KiB (powers of 1024)")
    # In whole numbers, because a float holds only 53 bits of a count of bytes.
    whole, _, decimals = match["number"].partition(".")
    denominator: int = 10 ** len(decimals)
    return (2 * int(whole + decimals) * _IEC[match["prefix"]] + denominator) // (2 * denominator)


def parse_duration(text: str) -> float:
    """Seconds of a duration such as ``90s``, ``10m``, ``1h`` or ``250ms``. Raises ValueError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write it like 90s, 10m or 250ms")
    return float(match["number"]) * _SECONDS[match["unit"]]


class Size(int):
    """Bytes, which a suite gives as a number or as a text such as ``512MiB``; ``str`` is what was given.

    Raises ValueError, also for less than ``least``.
    """

    least: ClassVar[int] = 0

    def __new__(cls, given: str | int) -> Self:  # noqa: D102 - the class says it
        size = super().__new__(cls, parse_size(given) if isinstance(given, str) else given)
        if size < cls.least:
            raise ValueError(f"must be at least {cls.least} B, not {given}")
        size._given = str(given)
        return size

    def __str__(self) -> str:
        return self._given

    _given: str


class ByteRate(Size):
    """Bytes a second: a page at least, because with less an instance cannot even read its programs."""

    least = 4096


_LONGEST_S = 500 * 3600
"""poll() waits 2**31 milliseconds at most, which is a little more."""


class Duration(float):
    """Seconds, more than 0, which a suite gives as a text such as ``90s`` or ``10m``; ``str`` is what was given.

    Raises ValueError.
    """

    def __new__(cls, given: str) -> Self:  # noqa: D102 - the class says it
        duration = super().__new__(cls, parse_duration(given))
        if duration <= 0:
            raise ValueError(f"must be more than 0, not {given}")
        if duration > _LONGEST_S:
            raise ValueError(f"must be at most {_LONGEST_S // 3600}h, not {given}")
        duration._given = given
        return duration

    def __str__(self) -> str:
        return self._given

    _given: str


def decode_quantity(kind: type[Any], given: Any) -> Any:
    """``dec_hook`` of msgspec for ``Size`` and ``Duration``. Raises ValueError."""
    wanted = (str, int) if issubclass(kind, Size) else (str,)
    if isinstance(given, wanted) and not isinstance(given, bool):
        return kind(given)
    example = "size such as 512MiB" if issubclass(kind, Size) else "duration such as 90s"
    raise ValueError(f"Expected a {example}, got `{type(given).__name__}`")


class Scale(NamedTuple):
    """A unit in which a tool prints: ``factor`` times ten to the ``exponent`` of ``unit``."""

    unit: Unit
    exponent: int = 0
    factor: int = 1

    def to_base(self, digits: str) -> float:
        """The number written as ``digits`` in the base unit. Raises ArithmeticError where it has no such value.

        The point is moved in the text, so that the float is the one nearest to what was printed: 0.015 ms is 1.5e-05 s.
        """
        return float(Decimal(digits).scaleb(self.exponent) * self.factor)


def _scales() -> Iterator[tuple[str, Scale]]:
    for name, exponent in (("s", 0), ("ms", -3), ("us", -6), ("µs", -6), ("ns", -9)):
        yield name, Scale(Unit.SECOND, exponent)
    yield "min", Scale(Unit.SECOND, factor=60)
    yield "h", Scale(Unit.SECOND, factor=3600)
    for unit, suffix in ((Unit.BYTE, ""), (Unit.BYTES_PER_SECOND, "/s")):
        for prefix, exponent in (("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12)):
            yield f"{prefix}B{suffix}", Scale(unit, exponent)
            yield f"{prefix}bit{suffix}", Scale(unit, exponent - 3, 125)
        for binary in ("Ki", "Mi", "Gi", "Ti"):
            yield f"{binary}B{suffix}", Scale(unit, factor=_IEC[binary])
    for name, exponent in (("1/s", 0), ("k/s", 3), ("M/s", 6), ("G/s", 9), ("1/ms", 3)):
        yield name, Scale(Unit.OPERATIONS_PER_SECOND, exponent)
    yield "1", Scale(Unit.COUNT)
    yield "ratio", Scale(Unit.RATIO)
    yield "%", Scale(Unit.SHARE, -2)
    yield "CPUs", Scale(Unit.CPU)


SCALES = dict(_scales())
"""The units that ``parse_unit`` knows, by their name. ``k`` and ``M`` are powers of 1000, ``Ki`` and ``Mi`` of 1024."""


def parse_unit(text: str) -> Scale:
    """The unit that a tool prints in, such as ``ms``, ``MiB/s``, ``Mbit/s`` or ``%``. Raises ValueError."""
    if text in SCALES:
        return SCALES[text]
    folded = {name.lower(): name for name in SCALES}
    close = difflib.get_close_matches(text.lower().replace("sec", "s"), folded, n=3)
    # Half of the tools that print KB mean 1000 bytes, the others 1024: whoever writes the suite has to know.
    named = [folded[name] for name in close] or list(SCALES)
    raise ValueError(f"{text!r} is no unit that is known; there are: {', '.join(named)}")


_BOUND = re.compile(r"(?P<number>\d{1,30}(?:\.\d{1,30})?)\s*(?P<unit>\D\S*)", re.ASCII)


def parse_bound(given: float | str | None, unit: Unit) -> float | None:
    """A bound on a metric in its base ``unit``: a number as it is, a text such as ``50ms`` with its unit.

    Raises ValueError, also for a unit of something else.
    """
    if given is None or not isinstance(given, str):
        return given
    match = _BOUND.fullmatch(given.strip())
    if match is None:
        raise ValueError(f"{given!r} is no bound; write a number with its unit, such as 50ms or 20MiB")
    scale = parse_unit(match["unit"])
    if scale.unit is not unit:
        raise ValueError(f"{given!r} is in {scale.unit}, but the metric is in {unit}")
    return scale.to_base(match["number"])


def format_size(value: float) -> str:
    """A size for people, with an IEC prefix and three significant digits."""
    if not math.isfinite(value):
        return "–"
    for prefix, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        # 1023.9 KiB is already shown in the next prefix: as 1.00 MiB, not as 1024 KiB.
        if abs(value) >= factor * (1 - 1 / 2048):
            return f"{_significant(value / factor)} {prefix}"
    return f"{_significant(value)} B"


def format_duration(seconds: float) -> str:
    """A duration for people: ``1.85 ms``, ``4.3 s``, ``2 min 05 s``."""
    if not math.isfinite(seconds):
        return "–"
    if abs(seconds) >= 119.5:
        minutes, rest = divmod(round(abs(seconds)), 60)
        return f"{'-' if seconds < 0 else ''}{minutes} min {rest:02d} s"
    for suffix, factor in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(seconds) >= factor * 0.9995:
            return f"{_significant(seconds / factor)} {suffix}"
    return "0 s" if seconds == 0 else f"{_significant(seconds / 1e-9)} ns"


def format_value(value: float, unit: Unit) -> str:
    """A value of a metric for people, with its unit."""
    if not math.isfinite(value):
        return "–"
    match unit:
        case Unit.SECOND:
            return format_duration(value)
        case Unit.BYTE:
            return format_size(value)
        case Unit.BYTES_PER_SECOND:
            return f"{format_size(value)}/s"
        case Unit.OPERATIONS_PER_SECOND:
            millions = abs(value) >= 999_500
            return f"{_significant(value / 1e6)} million/s" if millions else f"{_thousands(value)}/s"
        case Unit.COUNT:
            return f"{value:,.0f}" if value == round(value) else _thousands(value)
        case Unit.RATIO:
            return f"{_significant(value)}×"
        case Unit.SHARE:
            percent = value * 100
            return f"{_significant(percent)} %" if math.isfinite(percent) else "–"
        case Unit.CPU:
            return f"{_significant(value)} CPUs"


def _significant(value: float) -> str:
    """Three significant digits without an exponent."""
    if value == 0:
        return "0"
    # The exponent after rounding: 9.999 is 10.0, not 10.00.
    exponent = int(f"{value:.2e}".partition("e")[2])
    return f"{value:.{max(0, 2 - exponent)}f}"


def _thousands(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 999.5 else _significant(value)
