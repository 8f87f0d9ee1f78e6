"""Whose identities exist in an instance: the host's, a range that root lends each container, or an ordinary user's.

Without root there is one user namespace around the zygote, in which all instances of a run are made. ``unshare``
(util-linux) makes it and becomes the zygote, so that this needs no protocol of its own. Root inside is the user
outside. With ranges from ``/etc/subuid`` and ``/etc/subgid`` (newuidmap, newgidmap) the other identities up to 65535
exist inside too; without, none but root does.
"""

import getpass
import os
from enum import StrEnum
from pathlib import Path

import msgspec

from tare.bench.errors import BackendError, TareError
from tare.bench.model import Availability, Confound
from tare.bench.process import find_tool, run

IdMap = tuple[tuple[int, int, int], ...]
"""Ranges of identities as user_namespaces(7) writes them: (first inside, first outside, how many)."""
REMAPPED: IdMap = ((0, 0x70000000, 65536),)
"""Root's and everybody's identities in a container, and the host's that stand for them, as Docker's userns-remap.

The range lies above those that distributions and systemd hand out, so it is no user's of the host.
"""
_CAP_SYS_ADMIN = 21
_SWITCHES = (
    ("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=65536"),
    ("kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile that grants userns",
    ),
)
"""Below /proc/sys: the value that forbids user namespaces to ordinary users, and the command that allows them."""
RANGE_REMEDY = (
    "apt-get install uidmap, and `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER` as root"
)
CGROUP_REMEDY = (
    "on a v2 host with systemd: systemd-run --user --scope -p Delegate=yes sh -c 'cd /sys/fs/cgroup$(cut -d: -f3 "
    "/proc/self/cgroup) && mkdir tare && echo $$ > tare/cgroup.procs && exec tare run SUITE'"
)


class Identities(StrEnum):
    """Whose identities exist in an instance: the host's, as root makes it; a range of the user's own; only root."""

    HOST = "host"
    RANGE = "range"
    ONE = "one"


class Privileges(msgspec.Struct, frozen=True):
    """How the zygote is started: behind which command, and with what identities. ``shortfall`` is why no range."""

    identities: Identities
    prefix: tuple[str, ...] = ()
    shortfall: str = ""


AS_ROOT = Privileges(Identities.HOST)
_ONE = ("unshare", "--user", "--map-root-user", "--")
_RANGE = ("unshare", "--user", "--map-root-user", "--map-auto", "--")


def is_privileged(root: Path = Path("/")) -> bool:
    """Whether this process may make namespaces and mounts by itself. Raises OSError, ValueError without /proc."""
    status = (root / "proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) >> _CAP_SYS_ADMIN & 1)


def probe_switches(root: Path = Path("/")) -> Availability | None:
    """Which sysctl below ``root`` keeps ordinary users from making user namespaces, with its value; None if none."""
    for name, forbids, remedy in _SWITCHES:
        try:
            value = (root / "proc/sys" / name).read_text().strip()
        except OSError:
            continue
        if value == forbids:
            reason = f"it needs root, or user namespaces, which {name.replace('/', '.')} = {value} forbids"
            return Availability.no(reason, f"run tare as root, or as root: {remedy}")
    return None


def find_privileges() -> Privileges:
    """How this user can make instances, tried out. Raises TareError with what the kernel or a helper said."""
    shortfall = _why_no_range()
    if not shortfall:
        try:
            run([*_RANGE, "true"], timeout_s=30)
        except TareError as error:
            shortfall = f"the range was refused: {error.message}"
        else:
            return Privileges(Identities.RANGE, _RANGE)
    run([*_ONE, "true"], timeout_s=30)
    return Privileges(Identities.ONE, _ONE, shortfall)


def probe_without_root(found: Availability, network: str) -> Availability:
    """``found`` with what this user can do and lacks, tried out; unavailable if nothing."""
    if network != "none":
        reason = f"network = {network!r} needs root: another network namespace than the instance's own"
        return Availability.no(reason, "run tare as root, or set network = 'none'")
    try:
        privileges = find_privileges()
    except TareError as error:
        return Availability.no(
            f"it needs root, or user namespaces, which are refused here: {error.message}",
            "run tare as root; a container or its seccomp filter may forbid them",
        )
    if not privileges.shortfall:
        return found
    remedies = [f"other users than root inside: {RANGE_REMEDY}", *([found.remedy] if found.remedy else [])]
    reason = f"{found.reason}; one identity, because {privileges.shortfall}"
    return Availability(available=True, reason=reason, remedy="; ".join(remedies))


def confounds_of(privileges: Privileges, rootfs: Path, backend: str) -> list[Confound]:
    """What running without root changes about the instances."""
    if privileges.identities is Identities.HOST:
        return []
    found = [
        Confound(
            "unprivileged",
            "made without root, in a user namespace: each permission check goes through it, and the overlay keeps its "
            "marks in user.* attributes",
            backend,
        )
    ]
    if privileges.identities is Identities.ONE:
        detail = f"only root exists inside, no other user or group: {privileges.shortfall}"
        found.append(Confound("single-identity", detail, backend))
    if rootfs.stat().st_uid != os.geteuid():
        detail = "the image's files belong to another user of the host, so they are nobody's inside, not root's"
        found.append(Confound("image-of-another-user", detail, backend))
    return found


def _why_no_range(etc: Path = Path("/etc")) -> str:
    for tool in ("newuidmap", "newgidmap"):
        if find_tool(tool) is None:
            return f"{tool} is not installed (package uidmap)"
    try:
        names = {getpass.getuser(), str(os.geteuid())}
    except (KeyError, OSError):
        return f"user {os.geteuid()} has no entry in /etc/passwd, which newuidmap asks for"
    for file in ("subuid", "subgid"):
        try:
            lines = (etc / file).read_text().splitlines()
        except OSError:
            lines = []
        if not any(line.split(":")[0] in names and line.count(":") == 2 for line in lines):
            return f"/etc/{file} has no line for this user"
    return ""


def write_maps(uid_map: IdMap, gid_map: IdMap, pid: int) -> None:
    """Tell a new user namespace, that of ``pid``, its identities. Raises BackendError with the file.

    For the host's root; anybody else may map the own identity alone, or asks newuidmap(1).
    """
    try:
        Path(f"/proc/{pid}/gid_map").write_bytes(map_lines(gid_map))
        Path(f"/proc/{pid}/uid_map").write_bytes(map_lines(uid_map))
    except OSError as error:
        raise BackendError(
            f"the user namespace could not be given its identities: {error.strerror}: {error.filename}",
            remedy='user_namespace = false in the options of "native"',
        ) from error


def map_lines(ids: IdMap) -> bytes:
    """The map as the kernel reads it."""
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in ids).encode()


def describe_map(ids: IdMap) -> str:
    """A map in words: ``0-65535 as 1879048192-1879113727``."""
    return ", ".join(
        f"{inside}-{inside + count - 1} as {outside}-{outside + count - 1}" if count > 1 else f"{inside} as {outside}"
        for inside, outside, count in ids
    )


def outside_id(inside: int, ids: IdMap) -> int:
    """The host's identity for one inside. Raises ValueError if it has none."""
    for first, outside, count in ids:
        if first <= inside < first + count:
            return outside + inside - first
    raise ValueError(f"{inside} is not mapped")
