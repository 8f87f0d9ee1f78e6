"""Where tare keeps what outlives one command: the cache, the state and the work folder.

Each folder has an environment variable that overrides it. Nothing here makes a folder: whoever writes there does.
"""

import os
from pathlib import Path

CACHE_VARIABLE = "TARE_CACHE_DIR"
STATE_VARIABLE = "TARE_STATE_DIR"
WORK_VARIABLE = "TARE_WORK_DIR"


def cache_directory() -> Path:
    """Images and proofs: can be deleted at any time, and is made again at the cost of a build."""
    # platformdirs takes a few milliseconds to import, which `tare --help` should not pay.
    from platformdirs import user_cache_path

    return _overridden(CACHE_VARIABLE) or user_cache_path("tare")


def state_directory() -> Path:
    """What has to survive: the ledger of things that may have to be cleaned up."""
    from platformdirs import user_state_path

    return _overridden(STATE_VARIABLE) or user_state_path("tare")


def ledger_directory() -> Path:
    """The folder of the ledger files (``tare.bench.ledger``), one a process."""
    return state_directory() / "ledger"


def work_directory() -> Path:
    """Overlays, disks and scratch folders of live instances, where the suite names no storage of its own.

    On a disk and not in /tmp, which is often a tmpfs and would turn I/O workloads into memory workloads. An ordinary
    user has one of its own, ``/var/tmp/tare-UID``.
    """
    own = "tare" if os.geteuid() == 0 else f"tare-{os.geteuid()}"
    return _overridden(WORK_VARIABLE) or Path("/var/tmp") / own  # noqa: S108 - each instance makes a folder of its own


def _overridden(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value).absolute() if value else None
