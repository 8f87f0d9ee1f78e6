"""What a written report says, taken apart without any module of tare's: rows of tables, quantities, attributes.

Wording is not looked at. A row is the numbers of its cells after the first (the name), in order; a quantity is a number
with its unit, wherever it stands; an interval counts as two.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from html.parser import HTMLParser
from typing import Any

NUMBER = r"(?<![\w.])[-−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
UNITS = r"×|\s?%|\s?(?:ns|µs|ms|min|h|s|[KMGT]iB|B|Hz|[kMG]Hz)(?:/s)?(?!\w)|/s(?!\w)"
QUANTITY = re.compile(rf"(?:({NUMBER})({UNITS})?(?:–| to ))?({NUMBER})({UNITS})")
_NUMBER = re.compile(NUMBER)
_VOID = frozenset(("meta", "link", "br", "img", "path", "use", "rect", "circle", "line", "input", "wbr"))


def quantities(text: str) -> Counter[str]:
    """Every number with a unit in ``text``, as often as it stands there."""
    found: Counter[str] = Counter()
    for low, low_unit, high, unit in QUANTITY.findall(" ".join(text.split())):
        if low:
            found[low + (low_unit or unit).strip()] += 1
        found[high + unit.strip()] += 1
    return found


CHANGE = re.compile(
    r"(?:(?P<sign>[+−]?)(?P<share>[\d,]*\d(?:\.\d+)?)(?: %)?|(?P<way>[×÷])(?P<factor>[\d,]+(?:\.\d+)?))$"
)


def says_change(text: str, ratio: float) -> bool:
    """Whether a printed difference (``−21 %``, ``+1.3``, ``×3.2``, ``÷6.3``) is this ratio, rounded."""
    match = CHANGE.match(text.strip())
    if match is None:
        return False
    if match["share"]:
        half = 0.5 * 10.0 ** -len(match["share"].partition(".")[2])
        value = float(match["share"].replace(",", "")) * (-1 if match["sign"] == "−" else 1)
        return abs(100 * (ratio - 1) - value) <= half * 1.01 and 0 < ratio < 11
    digits = match["factor"].replace(",", "")
    factor = ratio if match["way"] == "×" else 1 / ratio
    half = 0.05 if "." in digits else 0.5 * 10.0 ** max(len(digits) - 2, 0)
    return abs(factor - float(digits)) <= half * 1.01 and factor >= 1


def numbers(text: str) -> tuple[str, ...]:
    """Every number in ``text``, in order."""
    return tuple(_NUMBER.findall(text))


class Page(HTMLParser):
    """A page: ``rows`` of its tables, ``facts`` (of its definition lists), ``text`` that is seen, ``exact`` values."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.exact: list[tuple[str, ...]] = []
        """The ``data-csv`` of each row's cells: what the page's tables are downloaded as, in full precision."""
        self.facts: list[tuple[str, str]] = []
        self.data: list[tuple[str, str, str]] = []
        """Of each number that the page names: its key in the JSON form, its exact value, and how it is shown."""
        self._shown: list[str] | None = None
        self.words: list[str] = []
        self.scripts: dict[str, str] = {}
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self._cell: list[str] | None = None
        self._term = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "tr":
            self.rows.append([])
            self.exact.append(())
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.exact[-1] += (attributes.get("data-csv") or "",)
        if tag in ("td", "th", "dt", "dd"):
            self._cell = []
        if tag == "data":
            self._shown = []
        if tag in ("br", "small", "li"):
            self._say(" ")
        if tag not in _VOID:
            self._open.append((tag, attributes))

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID:
            return
        _, attributes = self._open.pop()
        if tag == "data" and self._shown is not None:
            self.data.append((attributes["data-key"] or "", attributes["value"] or "", "".join(self._shown)))
            self._shown = None
        if tag in ("td", "th", "dt", "dd") and self._cell is not None:
            text = " ".join("".join(self._cell).split())
            if tag in ("td", "th"):
                self.rows[-1][-1] = text
            elif tag == "dt":
                self._term = text
            else:
                self.facts.append((self._term, text))
            self._cell = None
        if tag in ("p", "li", "td", "th", "dd", "dt", "h1", "h2", "h3", "h4"):
            self._say("\n")

    def handle_data(self, data: str) -> None:
        inside = {tag for tag, _ in self._open}
        if "script" in inside:
            name = self._open[-1][1].get("id") or f"script-{len(self.scripts)}"
            self.scripts[name] = self.scripts.get(name, "") + data
        elif not inside & {"style", "svg"}:
            self._say(data)

    def _say(self, text: str) -> None:
        self.words.append(text)
        if self._shown is not None:
            self._shown.append(text)
        if self._cell is not None:
            self._cell.append(text)

    @property
    def text(self) -> str:
        """All that is seen, with spaces made one."""
        return " ".join("".join(self.words).split())


def markdown_rows(text: str) -> Iterator[list[str]]:
    """The cells of each line of a Markdown table, heads left out."""
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith("| ---"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def text_rows(text: str) -> Iterator[list[str]]:
    """The columns of each line of a terminal's table: what two spaces or more are between."""
    for line in text.splitlines():
        cells = re.split(r"\s{2,}", line.strip())
        if len(cells) > 1:
            yield cells


def rows_of_numbers(rows: Iterable[list[str]]) -> Counter[tuple[str, ...]]:
    """The numbers of each row without its first cell, for rows that have any; how often each is there."""
    return Counter(found for row in rows if (found := numbers(" ".join(row[1:]))))


def leaves(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every number, text, truth value and nothing in decoded JSON, with its place; items of lists by their number."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from leaves(one, (*place, str(name)))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from leaves(one, (*place, str(number)))
    else:
        yield place, value


def result_key(result: Mapping[str, Any]) -> str:
    """What names one entry of ``results`` in a JSON report."""
    names = ("experiment", "workload", "params", "metric", "backend")
    return json.dumps([result[name] for name in names], sort_keys=True)
