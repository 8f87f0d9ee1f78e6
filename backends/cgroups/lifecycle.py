"""Making and removing cgroups."""

import contextlib
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

from tare.backends.cgroups.interface import KILL_DEADLINE_S, Cgroup, Limits, read_text, write_text
from tare.backends.cgroups.layout import Layout, Version, find_layout
from tare.backends.cgroups.tree import ProcessTree
from tare.backends.cgroups.v1 import V1Cgroup
from tare.backends.cgroups.v2 import V2Cgroup
from tare.bench.errors import BackendError, UnavailableError
from tare.bench.ledger import Ledger, ResourceKind
from tare.bench.removers import remove_cgroup

PREFIX = "tare-"


@contextlib.contextmanager
def start_cgroup(ledger: Ledger, name: str, limits: Limits, layout: Layout | None = None) -> Iterator[Cgroup]:
    """A cgroup ``tare-<name>`` below our own in each hierarchy, with ``limits`` set.

    A name that begins with ``tare-`` is taken as it is. Its folders are in the ledger before they are made. On
    exit whatever is left in it is killed and it is removed. Raises UnavailableError where there are no cgroups,
    BackendError if the kernel refuses one.
    """
    with begin_cgroup(ledger, name, layout) as cgroup:
        complete_cgroup(cgroup, limits)
        yield cgroup


@contextlib.contextmanager
def begin_cgroup(ledger: Ledger, name: str, layout: Layout | None = None) -> Iterator[Cgroup]:
    """``start_cgroup`` as far as a process can be cloned into it: nothing but ``clone_into`` is made.

    The rest, and every limit, is for ``complete_cgroup``, which can run while the kernel makes the process. Where an
    ordinary user may make no cgroup, it is a ``ProcessTree``.
    """
    layout = find_layout() if layout is None else layout
    if layout.version is Version.NONE and layout.unprivileged:
        tree = ProcessTree()
        try:
            yield tree
        finally:
            tree.kill()
            tree.emptied_s = time.monotonic()
        return
    if layout.version is Version.NONE:
        raise UnavailableError("no cgroup hierarchy is mounted", remedy="mount -t cgroup2 none /sys/fs/cgroup")
    kind = V2Cgroup if layout.version is Version.V2 else V1Cgroup
    cgroup = kind(layout, name if name.startswith(PREFIX) else PREFIX + name)
    entries = ledger.enter_all(ResourceKind.CGROUP, cgroup.folders)
    try:
        if cgroup.clone_into is not None:
            _make(cgroup.clone_into)
        yield cgroup
    finally:
        stop_cgroup(cgroup)
        ledger.strike_all(entries)


def complete_cgroup(cgroup: Cgroup, limits: Limits) -> dict[str, str]:
    """Make what ``begin_cgroup`` left out, and set the limits. Raises BackendError if the kernel refuses.

    Returns those that are not enforced, and why, as ``Cgroup.set_limits`` does.
    """
    for folder in cgroup.folders:
        if folder != cgroup.clone_into:
            _make(folder)
    try:
        return cgroup.set_limits(limits)
    except OSError as error:
        raise _refused(error) from error


def _make(folder: Path) -> None:
    try:
        os.mkdir(folder)  # noqa: PTH102 - on the measured start path
    except OSError as error:
        raise _refused(error) from error


def _refused(error: OSError) -> BackendError:
    return BackendError(
        f"the kernel refused a cgroup: {error.strerror}: {error.filename}",
        remedy="check that tare runs as root, and that the limits fit those of the cgroup tare itself is in",
    )


def stop_cgroup(cgroup: Cgroup) -> None:
    """Kill what is left in a cgroup and remove it. Safe on one half made or already removed. Raises BackendError."""
    if not _kill_at_once(cgroup):
        cgroup.kill()
    cgroup.emptied_s = time.monotonic()
    for folder in cgroup.folders:
        try:
            os.rmdir(folder)  # noqa: PTH106 - on the measured stop path
        except FileNotFoundError:
            continue
        except OSError:
            _remove_patiently(folder)


def _kill_at_once(cgroup: Cgroup) -> bool:
    """Kill by ``cgroup.kill`` (Linux 5.14) and wait until the cgroup is empty; False where that cannot be done."""
    folder = cgroup.clone_into
    if folder is None:
        return False
    try:
        events = os.open(folder / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        write_text(folder / "cgroup.kill", "1")
        return _wait_empty(events, folder)
    except OSError:
        return False
    finally:
        os.close(events)


def _wait_empty(events: int, folder: Path) -> bool:
    """Wait for ``populated 0``; the kernel raises POLLPRI on ``cgroup.events`` at each change."""
    deadline = time.monotonic() + KILL_DEADLINE_S
    poll = select.poll()
    poll.register(events, select.POLLPRI)
    while "populated 1" in os.pread(events, 4096, 0).decode():
        if time.monotonic() > deadline:
            stuck = read_text(folder / "cgroup.procs").split()
            raise BackendError(f"processes {stuck} in {folder} did not end within {KILL_DEADLINE_S:g} s of SIGKILL")
        poll.poll(1000)
    return True


def _remove_patiently(folder: Path) -> None:
    """For a group with children of its own, or one whose last process the kernel has not let go of yet."""
    try:
        remove_cgroup(folder)
    except OSError as error:
        raise BackendError(f"could not remove the cgroup {folder}: {error.strerror}") from error
