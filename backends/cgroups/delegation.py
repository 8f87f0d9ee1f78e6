"""Which v2 cgroup can hand controllers on to its children, and making it do so.

Rules: Linux ``Documentation/admin-guide/cgroup-v2.rst``, "Top-down Constraint" and "No Internal Process Constraint".
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tare.backends.cgroups.interface import read_text, write_text

CONTROLLERS = frozenset({"cpu", "cpuset", "io", "memory", "pids"})
"""Those that enforce or account for an envelope."""


def find_parent(own: Path, top: Path) -> tuple[Path, frozenset[str]]:
    """The group, ours or one above, whose children can have the most controllers, and which; the nearest of equals.

    Nothing is changed. Ours has processes in it, at least this one, so it hands on nothing unless it is the root.
    """
    parent, most = own, frozenset[str]()
    for folder, handed_on in _walk_down(own, top):
        if len(handed_on) >= len(most) and os.access(folder, os.W_OK):
            parent, most = folder, handed_on
    return parent, most


def prepare_parent(own: Path, top: Path) -> Path:
    """The parent that ``find_parent`` finds, made to hand on what it can. What the kernel refuses is passed over."""
    parent, possible = find_parent(own, top)
    if possible <= find_handed_on(parent):
        return parent
    for folder, handed_on in _walk_down(parent, top):
        for name in sorted(handed_on - find_handed_on(folder)):
            with contextlib.suppress(OSError):  # one refused (cpu, where there are realtime tasks) leaves the others
                write_text(folder / "cgroup.subtree_control", f"+{name}")
    return parent


def find_handed_on(folder: Path) -> frozenset[str]:
    """The controllers that children of ``folder`` have as things are."""
    try:
        return CONTROLLERS & _words(folder / "cgroup.subtree_control")
    except OSError:
        return frozenset()


def _walk_down(own: Path, top: Path) -> Iterator[tuple[Path, frozenset[str]]]:
    """Each group from ``top`` to ``own``, and what its children have or could have; up to where there is no way on."""
    steps = [folder for folder in (own, *own.parents) if folder.is_relative_to(top)]
    with contextlib.suppress(OSError):
        given = CONTROLLERS & _words(top / "cgroup.controllers")
        for folder in reversed(steps):
            kind = folder / "cgroup.type"
            is_root = not kind.exists()
            if not is_root and read_text(kind).strip() != "domain":
                return  # threaded: its children take no process of another group
            enabled = _words(folder / "cgroup.subtree_control")
            if not given <= enabled and not (is_root or _is_free(folder)):
                given &= enabled
            yield folder, given


def _is_free(folder: Path) -> bool:
    """Whether it has no processes, and we may change it.

    The kernel would let cpu, cpuset and pids be enabled beside processes, and thereby make the group threaded.
    """
    return not read_text(folder / "cgroup.procs").strip() and os.access(folder / "cgroup.subtree_control", os.W_OK)


def _words(file: Path) -> frozenset[str]:
    return frozenset(read_text(file).split())
