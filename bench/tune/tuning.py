"""Changes settings one by one with their originals on disk beforehand, and restores them, also after kill -9.

At every moment the journal holds the original of whatever may differ from it. It is written, and durable, before the
first change; a second ``apply`` adds what it does not hold yet and replaces nothing; ``restore`` takes out only what it
has read back as restored. So a kill at any point leaves a state that ``restore`` repairs.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from tare.bench.errors import PrivilegeError, TuningError
from tare.bench.linux.files import HERE, HostRoots
from tare.bench.tune.journal import Journal, JournalFile, Original, boot_id
from tare.bench.tune.settings import Setting, Target, find_value, obstacle, read_value, same_value


class Wish(msgspec.Struct, frozen=True):
    """A setting with the value it shall have."""

    setting: Setting
    value: str


class Changed(msgspec.Struct, frozen=True):
    """A file that was changed."""

    setting: str
    path: Path
    before: str
    now: str


class Refused(msgspec.Struct, frozen=True):
    """A file that could not be changed or restored, with the reason."""

    setting: str
    path: Path
    reason: str


class Applied(msgspec.Struct, frozen=True):
    """What an ``apply`` did. ``already`` are settings that stood as asked, ``skipped`` those not possible with why."""

    changed: tuple[Changed, ...]
    refused: tuple[Refused, ...]
    already: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


class Restored(msgspec.Struct, frozen=True):
    """What a ``restore`` did. ``gone`` are files that no longer exist; ``rebooted`` means that there was nothing to do.

    ``kept`` stay in the journal: they could not be restored.
    """

    restored: tuple[Changed, ...]
    kept: tuple[Refused, ...]
    gone: tuple[str, ...]
    rebooted: bool


def write_value(path: Path, value: str) -> None:
    """Write to a file of the kernel, which has to exist. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode() + b"\n")
    finally:
        os.close(descriptor)


class _Step(NamedTuple):
    """One file of a setting to change or keep; ``now`` is what stands in it."""

    setting: str
    target: Target
    now: str


class Tuning:
    """The settings of one host, with the journal of what was changed."""

    def __init__(
        self, journal: JournalFile, roots: HostRoots = HERE, write: Callable[[Path, str], None] = write_value
    ) -> None:
        self.journal = journal
        self.roots = roots
        self._write = write

    def apply(self, wishes: Sequence[Wish], cpus: frozenset[int]) -> Applied:
        """Change what is asked for. A required change that fails undoes all of this call, and raises TuningError."""
        with self.journal.locked():
            return self._apply(wishes, cpus)

    def restore(self) -> Restored:
        """Put back everything that is recorded, in reverse order, and read it back."""
        with self.journal.locked():
            return self._restore()

    def _apply(self, wishes: Sequence[Wish], cpus: frozenset[int]) -> Applied:
        obstacles = [(wish, obstacle(wish.setting, self.roots, cpus)) for wish in wishes]
        skipped = tuple((wish.setting.name, reason) for wish, reason in obstacles if reason)
        possible = [wish for wish, reason in obstacles if not reason]
        plan = [_Step(wish.setting.name, *found) for wish in possible for found in self._differing(wish, cpus)]
        touched = {step.setting for step in plan}
        already = tuple(wish.setting.name for wish in possible if wish.setting.name not in touched)
        if not plan:
            return Applied((), (), already, skipped)
        earlier = self._journal_of_this_boot()
        known = {original.path for original in earlier.originals}
        found = (Original(step.setting, str(step.target.path), step.now) for step in plan)
        new = [original for original in found if original.path not in known]
        asked = {wish.setting.name: wish.value for wish in possible if wish.setting.name in touched}
        wanted = {**earlier.wanted, **asked}
        self.journal.save(msgspec.structs.replace(earlier, originals=(*earlier.originals, *new), wanted=wanted))
        changed: list[Changed] = []
        refused: list[Refused] = []
        try:
            for step in plan:
                self._change(step, changed, refused)
        except BaseException as error:
            self._roll_back(earlier, new, changed, error)
            raise
        # What refused was not changed: it needs no restoring, and might be changed by somebody else meanwhile.
        untouched = {str(one.path) for one in refused}
        originals = (*earlier.originals, *(one for one in new if one.path not in untouched))
        touched = {one.setting for one in changed} | set(earlier.wanted)
        kept = {name: value for name, value in wanted.items() if name in touched}
        self._save(msgspec.structs.replace(earlier, originals=originals, wanted=kept))
        return Applied(tuple(changed), tuple(refused), already, skipped)

    def _journal_of_this_boot(self) -> Journal:
        """What is recorded; nothing yet if that was for a boot that is over, whose settings went with it."""
        boot = boot_id(self.roots)
        journal = self.journal.load()
        return journal if journal is not None and journal.boot_id == boot else Journal(1, boot, (), {})

    def _save(self, journal: Journal) -> None:
        self.journal.save(journal if journal.originals else None)

    def _differing(self, wish: Wish, cpus: frozenset[int]) -> list[tuple[Target, str]]:
        """The setting's files with what stands in them, if any of them has to be changed; kept ones first."""
        read = []
        for target in wish.setting.targets(self.roots, wish.value, cpus):
            try:
                read.append((target, read_value(target.path)))
            except OSError as error:
                if target.wanted is not None and not target.may_refuse:
                    raise TuningError(f"{wish.setting.name}: cannot read {target.path}: {error.strerror}") from error
        differing = [
            (target, value)
            for target, value in read
            if target.wanted is not None and not same_value(target.path, value, target.wanted)
        ]
        return [*((target, value) for target, value in read if target.wanted is None), *differing] if differing else []

    def _change(self, step: _Step, changed: list[Changed], refused: list[Refused]) -> None:
        name, path, wanted = step.setting, step.target.path, step.target.wanted
        if wanted is None:
            return
        # Noted before it is made: whatever interrupts the write, the change may be there.
        changed.append(Changed(name, path, step.now, wanted))
        problem = self._set(path, wanted)
        if not problem:
            return
        if step.target.may_refuse:
            changed.pop()
            refused.append(Refused(name, path, problem))
            return
        raise TuningError(
            f"{name}: {path} cannot be set to {wanted!r}: {problem}",
            remedy="what was changed before it was set back; ask for the other settings with --only",
        )

    def _roll_back(
        self, earlier: Journal, new: Sequence[Original], changed: Sequence[Changed], error: BaseException
    ) -> None:
        """Undo one call's changes; what cannot be undone stays in the journal, and the message says so."""
        before = {one.path: one.value for one in new} | {str(one.path): one.before for one in changed}
        problems = {}
        for path, value in reversed(before.items()):
            if problem := self._set(Path(path), value):
                problems[path] = problem
        stuck = [one for one in new if one.path in problems]
        self._save(msgspec.structs.replace(earlier, originals=(*earlier.originals, *stuck)))
        if problems and isinstance(error, TuningError):
            listed = "\n".join(f"  {path}: {reason}" for path, reason in problems.items())
            error.message += f"\nand these could not be set back; `tare tune restore` tries again:\n{listed}"

    def _restore(self) -> Restored:
        journal = self.journal.load()
        if journal is None:
            return Restored((), (), (), rebooted=False)
        if journal.boot_id != boot_id(self.roots):
            self.journal.save(None)
            return Restored((), (), (), rebooted=True)
        restored: list[Changed] = []
        kept: list[Refused] = []
        gone: list[Original] = []
        for original in reversed(journal.originals):
            path = Path(original.path)
            before = find_value(path)
            problem = self._restore_one(path, original.value)
            if problem:
                kept.append(Refused(original.setting, path, problem))
            elif before is None:
                gone.append(original)
            elif before != original.value:
                restored.append(Changed(original.setting, path, before, original.value))
        if any(one.setting == "smt" for one in kept):
            # Their CPUs are still offline, and come back with whatever they had.
            kept += [Refused(one.setting, Path(one.path), "its CPU is offline as long as SMT is off") for one in gone]
            gone = []
        stuck = {str(one.path) for one in kept}
        left = tuple(one for one in journal.originals if one.path in stuck)
        names = {one.setting for one in left}
        wanted = {name: value for name, value in journal.wanted.items() if name in names}
        self._save(msgspec.structs.replace(journal, originals=left, wanted=wanted))
        return Restored(tuple(restored), tuple(kept), tuple(one.path for one in gone), rebooted=False)

    def _restore_one(self, path: Path, value: str) -> str:
        """Returns what is wrong, or nothing; a file that is gone, with its device or CPU, is nothing wrong."""
        if ".." in path.parts or not any(path.is_relative_to(root) for root in (self.roots.proc, self.roots.sys)):
            return "is no file of the kernel: the journal is damaged"
        return self._set(path, value) if path.exists() else ""

    def _set(self, path: Path, value: str) -> str:
        """Make a file hold a value, and read it back; returns what is wrong, or nothing. Writes only if it differs."""
        try:
            if same_value(path, read_value(path), value):
                return ""
            self._write(path, value)
            now = read_value(path)
        except OSError as error:
            return f"the kernel refuses it ({error.strerror or error})"
        return "" if same_value(path, now, value) else f"the kernel took it, and has {now!r} instead"


def require_root() -> None:
    """Raises PrivilegeError: without root no setting of a host can be changed."""
    if os.geteuid() != 0:
        raise PrivilegeError("changing a host's settings needs root", remedy="run it as root (sudo)")
