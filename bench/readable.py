"""Text that comes from outside (names, hosts, tools) on its way to a reader: nothing in it may act."""

import itertools

_OVERRIDES = "\u202a\u202b\u202d\u202e"
_ISOLATES = "\u2066\u2067\u2068"
_DIRECTIONS = frozenset(f"{_OVERRIDES}{_ISOLATES}\u202c\u2069\u200e\u200f")
_END_OVERRIDE, _END_ISOLATE, _FIRST_STRONG = "\u202c", "\u2069", "\u2068"


def readable(text: str) -> str:
    """The text without what a terminal or a page could take as an order: control characters become U+FFFD.

    Directional marks stay, closed and isolated, so that they cannot turn what follows.
    """
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    if not plain.isprintable():
        kept = "\n\t"
        plain = "".join(
            char if char in kept or char.isprintable() or char in _DIRECTIONS or _is_space(char) else "\ufffd"
            for char in plain
        )
    return isolated(plain)


def _is_space(char: str) -> bool:
    """Spaces and separators, without the control characters that Python counts among them."""
    return char >= "\xa0" and char.isspace()


def isolated(text: str) -> str:
    """The text with its directional overrides kept to itself; unchanged if it has none."""
    if _DIRECTIONS.isdisjoint(text) or text.startswith(_FIRST_STRONG):
        return text
    closing: list[str] = []
    for char in text:
        if char in _OVERRIDES:
            closing.append(_END_OVERRIDE)
        elif char in _ISOLATES:
            closing.append(_END_ISOLATE)
        elif closing and char == closing[-1]:
            closing.pop()
    return "".join(itertools.chain((_FIRST_STRONG, text), reversed(closing), (_END_ISOLATE,)))


def as_markup(text: str) -> str:
    """The text for what rich prints with markup: readable, and without a tag of its own."""
    from rich.markup import escape

    return escape(readable(text))


def one_line(text: str, most: int = 0) -> str:
    """The text on one line, cut after ``most`` characters if that is given."""
    line = " ".join(readable(text).split())
    return line if not most or len(line) <= most else isolated(f"{line[: most - 1]}…")
