"""Values on the command line: ``name=value``, and a suite that is made of options."""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tare.bench.errors import SuiteError

_OPTION_OF = (
    (re.compile(r"backend\[0\]\.options\.?(.*)"), "--option {0}"),
    (re.compile(r"backend\[\d+\]\.type"), "BACKEND"),
    (re.compile(r"experiment\[0\]\.params\.?(.*)"), "--param {0}"),
    (re.compile(r"host\[0\]\.(.*)"), "--{0}"),
    (re.compile(r"(?:envelope|sampling|experiment\[0\]|experiment\[0\]\.options)\.(\w+)"), "--{1}"),
)
"""The option that a key of a suite comes from."""


def named_values(option: str, given: Sequence[str], *, alone: str | None = None) -> dict[str, str]:
    """What a repeatable option gives as ``name=value``; ``alone`` is the value of a name without one, if it may be so.

    Raises SuiteError.
    """
    found: dict[str, str] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not name.strip() or not (separator or alone is not None):
            raise SuiteError(option, f"{text!r} is not name=value")
        found[name.strip()] = value.strip() if separator else alone or ""
    return found


def typed_values(option: str, given: Sequence[str]) -> dict[str, Any]:
    """As ``named_values``, but a value that reads as JSON (a number, true, a list) is what it reads as."""
    return {name: _typed(value) for name, value in named_values(option, given).items()}


def _typed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


@contextlib.contextmanager
def suite_of_options(place: Path) -> Iterator[None]:
    """What is wrong in a suite that was made of options, and stands at ``place``, is said of the option."""
    try:
        yield
    except SuiteError as error:
        prefix = f"{place}: "
        key, problem = error.place.removeprefix(prefix), error.message.removeprefix(f"{error.place}: ")
        for pattern, option in _OPTION_OF:
            if error.place.startswith(prefix) and (found := pattern.fullmatch(key)):
                given = "".join(found.groups())
                name = option.format(given, given.replace("_", "-")).strip()
                raise SuiteError(name, problem, remedy=error.remedy) from None
        raise
