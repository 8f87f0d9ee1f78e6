"""Shows how the hosts of a fleet stand: one live table in a terminal, a line a change elsewhere."""

import sys
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tare.bench.fleet.collection import FleetManifest, HostRow
from tare.bench.readable import as_markup, one_line, readable

_BAR = 20


class FleetDisplay:
    """The watcher of a fleet that a person looks at. Use as a context manager."""

    def __init__(self, console: Console, manifest: FleetManifest) -> None:
        self._console = console
        self._before = {row.name: row for row in manifest.hosts}
        self._live = Live(view_of(manifest), console=console, transient=True, auto_refresh=False)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def step(self, text: str) -> None:
        """Say what is being done."""
        self._console.print(as_markup(text), highlight=False, soft_wrap=True)

    def changed(self, manifest: FleetManifest) -> None:
        """Show the rows that are others."""
        if self._console.is_terminal:
            self._live.update(view_of(manifest), refresh=True)
            return
        for row in manifest.hosts:
            before = self._before.get(row.name)
            if before is None or (before.state, before.reason) != (row.state, row.reason):
                counted = f" {row.done}/{row.planned}" if row.planned else ""
                reason = f": {one_line(row.reason)}" if row.reason else ""
                line = f"{row.name}  {row.state}{counted}{reason}"
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)
            self._before[row.name] = row


def console_of(*, stderr: bool = False) -> Console:
    """A console that folds nothing where standard output is no terminal."""
    return Console(stderr=stderr, soft_wrap=not sys.stdout.isatty())


def view_of(manifest: FleetManifest) -> Group:
    """The hosts, a row each, and below them the reasons of those that have one."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("host", "type", "state", "progress"):
        table.add_column(column, overflow="fold", no_wrap=column in {"state", "progress"})
    for row in manifest.hosts:
        table.add_row(as_markup(row.name), as_markup(row.type), row.state.value, _progress(row))
    reasons = [Text(readable(f"{row.name}: {row.reason}")) for row in manifest.hosts if row.reason]
    return Group(table, *([Text("")] if reasons else []), *reasons)


def _progress(row: HostRow) -> str:
    if not row.planned:
        return ""
    filled = round(_BAR * row.done / row.planned)
    failed = f", {row.failed} failed" if row.failed else ""
    return f"{'█' * filled}{'·' * (_BAR - filled)} {row.done}/{row.planned}{failed}"
