"""What ``tare tune show``, ``apply`` and ``restore`` do and print."""

import json
import os
from collections.abc import Sequence

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from tare.bench.cli.values import named_values
from tare.bench.errors import ExitCode, UnavailableError, UnknownNameError
from tare.bench.linux.cpus import parse_cpus
from tare.bench.linux.files import HostRoots
from tare.bench.linux.processes import read_statuses
from tare.bench.readable import as_markup
from tare.bench.tune.journal import JournalFile, boot_id, journal_file
from tare.bench.tune.settings import SETTINGS, describe_now, obstacle
from tare.bench.tune.tuning import Applied, Changed, Restored, Tuning, Wish, require_root


def show_command(cpus: str, *, as_json: bool) -> None:
    """Print the table of settings."""
    roots, chosen = HostRoots(), read_cpus(cpus)
    journal = JournalFile(journal_file()).load()
    ours = dict(journal.wanted) if journal is not None and journal.boot_id == boot_id(roots) else {}
    rows = [
        {
            "setting": setting.name,
            "title": setting.title,
            "now": describe_now(setting, roots, chosen),
            "recommended": setting.recommended,
            "why": setting.why,
            "obstacle": obstacle(setting, roots, chosen),
            "only_on_request": setting.only_on_request,
            "set_by_tare": ours.get(setting.name),
        }
        for setting in SETTINGS
    ]
    if as_json:
        typer.echo(json.dumps({"settings": rows, "irqbalance": _irqbalance_runs(roots)}, indent=2))
        return
    console = Console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("setting", "now", "better", "can be changed here"):
        table.add_column(column, overflow="fold")
    for row in rows:
        changeable = row["obstacle"] or ("on request: --only smt" if row["only_on_request"] else "yes")
        now = f"{row['now']} (by tare)" if row["set_by_tare"] else row["now"] or "–"
        table.add_row(*(as_markup(str(cell)) for cell in (row["setting"], now, row["recommended"], changeable)))
    console.print(table)
    for setting in SETTINGS:
        console.print(f"[bold]{setting.name}[/bold]: {as_markup(setting.title)}. [dim]{as_markup(setting.why)}[/dim]")
    if _irqbalance_runs(roots):
        console.print("irqbalance runs, and will move interrupts again: stop it while you measure")
    if ours:
        console.print(f"tare has changed {', '.join(sorted(ours))}; put back with: tare tune restore", soft_wrap=True)


def apply_command(only: Sequence[str], cpus: str, *, as_json: bool) -> ExitCode:
    """Change settings and print what was changed."""
    wishes = read_wishes(only)
    roots, chosen = HostRoots(), read_cpus(cpus)
    require_root()
    reasons = [(wish.setting, reason) for wish in wishes if (reason := obstacle(wish.setting, roots, chosen))]
    if only and reasons:
        listed = "; ".join(f"{setting.name}: {reason}" for setting, reason in reasons)
        raise UnavailableError(f"cannot be changed here: {listed}", remedy="see `tare tune show` for what can")
    applied = Tuning(JournalFile(journal_file()), roots).apply(wishes, chosen)
    if as_json:
        typer.echo(json.dumps(msgspec.to_builtins(applied, enc_hook=str), indent=2))
        return ExitCode.OK
    for line in _applied_lines(applied):
        typer.echo(line)
    if applied.changed:
        typer.echo("put everything back with: tare tune restore (a reboot does so too)")
    return ExitCode.OK


def restore_command(*, as_json: bool) -> ExitCode:
    """Put everything back and print what was put back."""
    file = JournalFile(journal_file())
    journal = file.load()
    if journal is not None:
        require_root()
    restored = Tuning(file).restore()
    code = ExitCode.ENVIRONMENT if restored.kept else ExitCode.OK
    if as_json:
        typer.echo(json.dumps(msgspec.to_builtins(restored, enc_hook=str), indent=2))
        return code
    for line in _restored_lines(restored, nothing=journal is None):
        typer.echo(line)
    return code


def read_wishes(only: Sequence[str]) -> list[Wish]:
    """What ``--only NAME[=VALUE]`` asks for, in the order of ``SETTINGS``; all that need no request without it.

    Raises UnknownNameError with the known names or values.
    """
    if not only:
        return [Wish(setting, setting.recommended) for setting in SETTINGS if not setting.only_on_request]
    known = {setting.name: setting for setting in SETTINGS}
    asked: dict[str, str] = {}
    for name, value in named_values("--only", only, alone="").items():
        if name not in known:
            raise UnknownNameError(f"there is no setting {name!r}; there are: {', '.join(known)}")
        asked[name] = value or known[name].recommended
        if asked[name] not in known[name].values:
            raise UnknownNameError(f"{name} cannot be {value!r}; it can be: {', '.join(known[name].values)}")
    return [Wish(setting, asked[setting.name]) for setting in SETTINGS if setting.name in asked]


def read_cpus(text: str) -> frozenset[int]:
    """The CPUs that an option names; the last usable one, as for a suite that names none. Raises BadParameter."""
    if not text:
        return frozenset(sorted(os.sched_getaffinity(0))[-1:])
    try:
        cpus = parse_cpus(text)
    except ValueError:
        raise typer.BadParameter(f"--cpus {text}: write it like 1 or 2-3,6") from None
    if not cpus:
        raise typer.BadParameter("--cpus names no CPU")
    return cpus


def _applied_lines(applied: Applied) -> list[str]:
    lines = _by_setting(applied.changed, "set")
    lines += [f"{name}: stands as asked already" for name in applied.already]
    lines += [f"{name}: left alone, {reason}" for name, reason in applied.skipped]
    for name in dict.fromkeys(one.setting for one in applied.refused):
        each = [one for one in applied.refused if one.setting == name]
        lines.append(f"{name}: {len(each)} stay as they are, such as {each[0].path}: {each[0].reason}")
    return lines


def _restored_lines(restored: Restored, *, nothing: bool) -> list[str]:
    if nothing:
        return ["nothing was changed by tare"]
    if restored.rebooted:
        return ["the host was started anew since: its settings are the boot's own, and there is nothing to restore"]
    lines = _by_setting(restored.restored, "put back")
    if not restored.restored and not restored.kept:
        lines.append("everything stands as it was before")
    lines += [f"{path} is gone, and needs no restoring" for path in restored.gone]
    lines += [f"{one.setting}: {one.path} could not be put back: {one.reason}" for one in restored.kept]
    if restored.kept:
        lines.append("what could not be put back is still recorded: run `tare tune restore` again")
    return lines


def _by_setting(changed: Sequence[Changed], verb: str) -> list[str]:
    lines = []
    for name in dict.fromkeys(one.setting for one in changed):
        each = [one for one in changed if one.setting == name]
        pairs = dict.fromkeys(f"{one.before} to {one.now}" for one in each)
        shown = next(iter(pairs)) if len(pairs) == 1 else f"{len(each)} files"
        lines.append(f"{name}: {verb} from {shown}" if len(pairs) == 1 else f"{name}: {verb}, {shown}")
    return lines


def _irqbalance_runs(roots: HostRoots) -> bool:
    return any(status.name == "irqbalance" for status in read_statuses(roots).values())
