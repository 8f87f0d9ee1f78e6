"""A whole history as its pages need it: the nights of each suite and host, with what their gates told."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from tare.bench.history.acks import AckFile
from tare.bench.history.entries import RunEntry, digest_of
from tare.bench.history.gate import Judgement, Told, judge, load_judged, load_told
from tare.bench.history.index import History
from tare.bench.history.nights import Nights


class Chapter(msgspec.Struct, frozen=True):
    """The nights of one suite on one host, and the judgement of the newest."""

    suite: str
    host: str
    nights: Nights
    judgement: Judgement
    runs_folder: Path

    @property
    def key(self) -> str:
        """Four characters that name it in the names of files."""
        return digest_of([self.suite, self.host])[:4]


class Story(msgspec.Struct, frozen=True):
    """All chapters, the runs in their order, and what was told of them."""

    chapters: Sequence[Chapter]
    entries: Sequence[RunEntry]
    told: Sequence[Told]
    runs_folder: Path


def tell(history: History, acks_of: Callable[[RunEntry], AckFile]) -> Story:
    """Judge the newest night of each suite on each host; ``acks_of`` has what is known of a run's suite."""
    newest: dict[tuple[str, str], RunEntry] = {}
    for entry in history.entries:
        if entry.is_night:
            newest[entry.suite, entry.host] = entry
    chapters = []
    for (suite, host), entry in newest.items():
        acks = acks_of(entry)
        nights = load_judged(history, entry, acks)
        chapters.append(Chapter(suite, host, nights, judge(history, entry, acks), history.runs_folder))
    return Story(chapters, history.entries, load_told(history), history.runs_folder)
