"""A whole history as its pages need it: the nights of each suite and host, with what their gates told."""

from collections.abc import Sequence

import msgspec

from tare.bench.history.acks import AckFile
from tare.bench.history.entries import RunEntry
from tare.bench.history.gate import Judgement, Told, judge, load_judged, load_told
from tare.bench.history.index import History
from tare.bench.history.nights import Nights


class Chapter(msgspec.Struct, frozen=True):
    """The nights of one suite on one host, and the judgement of the newest."""

    suite: str
    host: str
    nights: Nights
    judgement: Judgement


class Story(msgspec.Struct, frozen=True):
    """All chapters, the runs in their order, and what was told of them."""

    chapters: Sequence[Chapter]
    entries: Sequence[RunEntry]
    told: Sequence[Told]


def tell(history: History, acks: AckFile) -> Story:
    """Judge the newest night of each suite on each host."""
    newest: dict[tuple[str, str], RunEntry] = {}
    for entry in history.entries:
        if entry.is_night:
            newest[entry.suite, entry.host] = entry
    chapters = []
    for (suite, host), entry in newest.items():
        chapters.append(Chapter(suite, host, load_judged(history, entry, acks), judge(history, entry, acks)))
    return Story(chapters, history.entries, load_told(history))
