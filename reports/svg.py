"""Makes the SVG that Vega writes small: what repeats in neighbouring marks is said once.

The input is vl-convert's own output, never foreign text, so patterns over its fixed form are enough.
"""

import itertools
import re

_MARK = re.compile(r'<path transform="translate\(([^)]*)\)" d="([^"]*)"([^>]*?)/>')
_MARKS = re.compile(rf"(?:{_MARK.pattern}){{2,}}")
_LINE = re.compile(r'<line transform="translate\(([^)]*)\)" x2="([^"]*)" y2="([^"]*)"([^>]*?)/>')
_LINES = re.compile(rf"(?:{_LINE.pattern}){{2,}}")
_TEXT = re.compile(r'<text text-anchor="([^"]*)" transform="translate\(([^)]*)\)"([^>]*)>([^<]*)</text>')
_TEXTS = re.compile(rf"(?:{_TEXT.pattern}){{2,}}")
_NAMES = re.compile(r' xmlns(?::xlink)?="[^"]*"| version="1.1"| role="[^"]*"| aria-[a-z]+="[^"]*"| opacity="1"')


def compact_svg(svg: str, identifier: str) -> str:
    """The same picture in fewer bytes, hidden from screen readers. ``identifier`` is unique within the page."""
    svg = _NAMES.sub("", svg)
    svg = re.sub(r"-?\d+\.\d{2,}", lambda match: f"{float(match[0]):.1f}", svg)
    svg = re.sub(r'<path class="(?:background|foreground)"[^>]*>(?:</path>)?', "", svg)
    svg = re.sub(r' class="[^"]*"| pointer-events="none"', "", svg)
    svg = _LINES.sub(_merge_lines, svg)
    svg = _TEXTS.sub(_merge_texts, svg)
    counter = itertools.count()
    svg = _MARKS.sub(lambda match: _merge_marks(match[0], f"{identifier}-{next(counter)}"), svg)
    svg = re.sub(r"<g></g>", "", svg)
    return re.sub(r"^<svg ", '<svg aria-hidden="true" focusable="false" ', svg)


def _merge_marks(text: str, identifier: str) -> str:
    parts = []
    marks = _MARK.findall(text)
    for number, ((shape, rest), group) in enumerate(itertools.groupby(marks, key=lambda mark: (mark[1], mark[2]))):
        name = f"{identifier}-{number}"
        uses = "".join('<use href="#{}" x="{}" y="{}"/>'.format(name, *place.split(",")) for place, *_ in group)
        parts.append(f'<defs><path id="{name}" d="{shape}"/></defs><g{rest}>{uses}</g>')
    return "".join(parts)


def _merge_lines(match: re.Match[str]) -> str:
    parts = []
    for rest, group in itertools.groupby(_LINE.findall(match[0]), key=lambda line: line[3]):
        moves = "".join(f"M{place}l{x},{y}" for place, x, y, _ in group)
        parts.append(f'<path d="{moves}" fill="none"{rest}/>')
    return "".join(parts)


def _merge_texts(match: re.Match[str]) -> str:
    parts = []
    for (anchor, rest), group in itertools.groupby(_TEXT.findall(match[0]), key=lambda text: (text[0], text[2])):
        texts = "".join(
            '<text x="{}" y="{}">{}</text>'.format(*place.split(","), content) for _, place, _, content in group
        )
        parts.append(f'<g text-anchor="{anchor}"{rest}>{texts}</g>')
    return "".join(parts)
