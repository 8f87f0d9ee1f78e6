"""Limits that this host does not enforce, told as confounds before anything is measured."""

import secrets
from collections.abc import Iterator
from pathlib import Path

from tare.backends.cgroups.interface import Limits
from tare.backends.cgroups.layout import Layout, Version
from tare.backends.cgroups.lifecycle import begin_cgroup, complete_cgroup
from tare.bench.ledger import Ledger
from tare.bench.model import Confound

_KEYS = {
    "swap_bytes": "swap",
    "cpu_quota": "cpu_quota",
    "cpu_weight": "cpu_weight",
    "io_read_bytes_per_s": "io_read_bytes_per_s",
    "io_write_bytes_per_s": "io_write_bytes_per_s",
    "io_read_ops_per_s": "io_read_ops_per_s",
    "io_write_ops_per_s": "io_write_ops_per_s",
}
"""Limits to their keys in a suite. CPUs, memory and processes are named by ``Layout.confounds``."""


def try_limits(ledger: Ledger, limits: Limits, layout: Layout) -> dict[str, str]:
    """What a cgroup made for trial says it cannot enforce: field of ``limits`` to the reason.

    Raises BackendError if the kernel refuses a limit.
    """
    with begin_cgroup(ledger, f"trial-{secrets.token_hex(4)}", layout) as cgroup:
        return complete_cgroup(cgroup, limits)


def limit_confounds(
    backend: str, limits: Limits, unenforced: dict[str, str], version: Version, root: Path = Path("/")
) -> Iterator[Confound]:
    """One confound for each limit that ``backend`` does not enforce, and for what a version enforces only in part.

    ``root`` holds the ``proc`` that is asked for swap.
    """
    has_swap = have_swap(root)
    for name, reason in unenforced.items():
        if name in _KEYS and (name != "swap_bytes" or has_swap):
            yield Confound(f"no-limit-{_KEYS[name]}", f"the limit {_KEYS[name]} is not enforced: {reason}", backend)
    if limits.swap_bytes and not has_swap:
        yield Confound("no-swap", "the envelope allows swap, and this host has none", backend)
    writes = limits.io_write_bytes_per_s is not None or limits.io_write_ops_per_s is not None
    if writes and version in {Version.V1, Version.HYBRID}:
        yield Confound(
            "io-limit-direct-only",
            "cgroups v1 throttle what a process writes to the device itself (direct, synced); what goes through the "
            "page cache is written back unthrottled",
            backend,
        )


def have_swap(root: Path = Path("/")) -> bool:
    """Whether any swap is on; the first line of ``/proc/swaps`` is a heading."""
    try:
        return len((root / "proc/swaps").read_text().splitlines()) > 1
    except OSError:
        return False
