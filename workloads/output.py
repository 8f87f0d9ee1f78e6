"""What every parser here needs: the text of a command that ended well, and numbers that are worth keeping.

Nothing is repaired or skipped: whatever is not exactly what a tool's known version prints is a ParseError
that shows the text.
"""

import math
import re
from collections.abc import Iterable
from typing import NoReturn, TypeVar

import msgspec

from tare.bench.errors import ParseError
from tare.bench.model import Completed

EVIDENCE_CHARACTERS = 4000
"""How much of an offending output an error carries; the whole is in the run's raw files."""

LINES = re.MULTILINE | re.ASCII
"""How patterns here look at a whole output."""

_Report = TypeVar("_Report")
_Value = TypeVar("_Value")
_DECIMAL = re.compile(r"\d+(?:\.\d+)?", re.ASCII)


def read_output(tool: str, completed: Completed, *, stream: str = "stdout") -> str:
    """What ``tool`` printed to stdout, which errors call ``stream``.

    Raises ParseError if it did not end well, or did not print UTF-8 text.
    """
    if completed.timed_out or completed.returncode != 0:
        how = _describe_end(completed)
        text = (completed.stdout + b"\n" + completed.stderr).decode(errors="backslashreplace")
        raise ParseError(f"{tool} {how}, so its output is not a measurement", evidence=excerpt(text))
    try:
        text = completed.stdout.decode("utf-8")
    except UnicodeDecodeError as error:
        shown = excerpt(completed.stdout.decode(errors="backslashreplace"))
        raise ParseError(f"{tool} printed bytes that are not UTF-8 text: {error.reason}", evidence=shown) from None
    if not text.strip():
        said = excerpt(completed.stderr.decode(errors="backslashreplace"))
        raise ParseError(f"{tool} printed nothing to {stream}", evidence=said or "(empty)")
    return text


def one_match(tool: str, what: str, pattern: re.Pattern[str], text: str) -> re.Match[str]:
    """The only match of ``pattern`` in ``text``. Raises ParseError if there is none or more than one."""
    matches = list(pattern.finditer(text))
    if len(matches) != 1:
        refuse(tool, f"{what} occurs {len(matches)} times instead of once", text)
    return matches[0]


def one_number(tool: str, what: str, pattern: re.Pattern[str], text: str, *, exponent: int = 0) -> float:
    """The number in the only match of ``pattern``, as ``one_match`` and ``positive`` read it."""
    return positive(tool, what, one_match(tool, what, pattern, text)[1], text, exponent=exponent)


def nearest_rank(counts: Iterable[tuple[_Value, int]], total: int, per_mille: int) -> _Value | None:
    """The smallest value that ``per_mille`` of ``total`` do not exceed; None if ``counts``, rising, end before it."""
    seen = 0
    for value, count in counts:
        seen += count
        if seen * 1000 >= total * per_mille:
            return value
    return None


def read_json(tool: str, text: str, kind: type[_Report]) -> _Report:
    """``text`` as the JSON of a ``kind``. Raises ParseError if it is not."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        refuse(tool, f"its JSON cannot be read: {error}", text)


def positive(tool: str, what: str, digits: str, text: str, *, exponent: int = 0) -> float:
    """The number written as ``digits`` times ten to the ``exponent``. Raises ParseError unless it is finite and not 0.

    The point is moved in the text, so that the float is the one nearest to what was printed: 0.015 ms is 1.5e-05 s.
    No metric of these tools can be zero in a run that did something, and a ratio to zero says nothing.
    """
    value = float(f"{digits}e{exponent}") if _DECIMAL.fullmatch(digits) else math.nan
    if not math.isfinite(value) or value <= 0:
        refuse(tool, f"{what} is {digits}, which a working run cannot produce", text)
    return value


def refuse(tool: str, problem: str, text: str) -> NoReturn:
    """Raise ParseError: what is wrong with the output of ``tool``, with the output."""
    raise ParseError(
        f"the output of {tool} is not what its known versions print: {problem}",
        remedy="compare the version in the image with docs/workloads.md",
        evidence=excerpt(text),
    )


def excerpt(text: str) -> str:
    """``text`` for an error: whole if it is short, else its beginning and its end."""
    if len(text) <= EVIDENCE_CHARACTERS:
        return text
    half = EVIDENCE_CHARACTERS // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters ...]\n{text[-half:]}"


def _describe_end(completed: Completed) -> str:
    if completed.timed_out:
        return "did not finish in time"
    if completed.signal is not None:
        return f"was ended by signal {completed.signal}"
    return f"ended with exit status {completed.returncode}"
