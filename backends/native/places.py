"""Where an instance's parts lie: below the backend's folder, one folder an instance; what the zygote is told of it."""

import os
from pathlib import Path

from tare.backends.cgroups.lifecycle import Cgroup
from tare.backends.native.identities import outside_id
from tare.backends.native.plan import Plan, Settings
from tare.bench.errors import BackendError
from tare.bench.model import SCRATCH, InstanceSpec

_HOSTNAME_MAX = 64
_MODE = 0o755


def make_shared_folders(folder: Path, settings: Settings) -> None:
    """The folders that all instances mount on. Raises OSError."""
    for name in ("root", "empty", *(("memory",) if settings.memory else ()), *(("lower",) if settings.lower else ())):
        (folder / name).mkdir()
    if settings.uid_map:  # root of the user namespace is somebody else here, and has to find its way from this folder
        folder.chmod(0o711)


def make_folders(folder: Path, settings: Settings, missing: tuple[str, ...]) -> None:
    """One instance's folders; ``missing`` are mount points that its root needs. Raises BackendError.

    Plain os.mkdir: this is on the measured path. No ledger entry: the backend's own folder has one.
    """
    upper = ("/upper", "/work", f"/upper{SCRATCH}", *(f"/upper/{name}" for name in missing))
    names = ("", "/scratch", *(() if settings.memory else upper))
    try:
        for name in names:
            os.mkdir(f"{folder}{name}")  # noqa: PTH102 - see above
            os.chmod(f"{folder}{name}", _MODE)  # noqa: PTH101 - whatever the umask: the container's root is among them
        if settings.uid_map:
            owner, group = outside_id(0, settings.uid_map), outside_id(0, settings.gid_map)
            for name in names:
                os.chown(f"{folder}{name}", owner, group)
    except OSError as error:
        raise BackendError(
            f"could not make the instance's folders: {error.strerror}: {error.filename}",
            remedy=f"see that {folder.parent} is writable and has space left",
        ) from error


def make_plan(settings: Settings, spec: InstanceSpec, folder: Path, cgroup: Cgroup) -> Plan:
    """What the zygote is told about the instance of ``spec`` whose folder is ``folder``."""
    # Without a pid namespace of its own, an instance that lost its harness is killed by its cgroup.
    kill = cgroup.clone_into is not None and settings.style != "native"
    own = folder.name if settings.folder else str(folder)
    layers = settings.memory or own
    return Plan(
        hostname=spec.identifier[:_HOSTNAME_MAX],
        lower=settings.lower or str(spec.image.rootfs),
        upper=f"{layers}/upper",
        work=f"{layers}/work",
        scratch=f"{own}/scratch",
        cpus=spec.envelope.cpus,
        join_files=tuple(map(str, cgroup.join_files_after_clone)),
        kill_file=f"{cgroup.clone_into}/cgroup.kill" if kill else "",
    )
