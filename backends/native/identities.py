"""User and time namespaces: the steps that make an instance's identities and clocks its own, and the maps.

Standard library only and few imports, because the zygote imports it.
"""

import os

from tare.backends.native import syscalls
from tare.backends.native.operations import Operation, write_file
from tare.backends.native.plan import IdMap

REMAPPED: IdMap = ((0, 0x70000000, 65536),)
"""Root's and everybody's identities in a container, and the host's that stand for them, as Docker's userns-remap.

The range lies above those that distributions and systemd hand out, so it is no user's of the host.
"""


def write_maps(pid: int, uid_map: IdMap, gid_map: IdMap) -> None:
    """Tell a new user namespace, that of ``pid``, its identities. Raises OSError with the file.

    For the host's root; anybody else may map the own identity alone, or asks newuidmap(1).
    """
    write_file(f"/proc/{pid}/gid_map", _lines(gid_map))
    write_file(f"/proc/{pid}/uid_map", _lines(uid_map))


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


class BecomeRoot(Operation):
    """Be root of the user namespace, after having been what root is outside."""

    def describe(self) -> str:
        """The step in words."""
        return "become root of the user namespace"

    def execute(self) -> None:
        """Do it. Raises OSError."""
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        # The kernel takes this away with the old identity, and with it the ownership of /proc/PID.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)


class MountWithOwners(Operation):
    """Attach a copy of a tree whose owners are mapped, so that the host's root's files are the container's root's.

    An idmapped mount (Linux 5.12, as a layer of an overlay 5.19): nothing on disk is changed.
    """

    def __init__(self, source: str, target: str, uid_map: IdMap, gid_map: IdMap) -> None:
        self.source = source
        self.target = target
        self.uid_map = uid_map
        self.gid_map = gid_map

    def describe(self) -> str:
        """The step in words."""
        return f"mount {self.source} on {self.target} with owners {describe_map(self.uid_map)}"

    def execute(self) -> None:
        """Do it. Raises OSError."""
        tree = syscalls.open_tree(self.source, syscalls.OPEN_TREE_CLONE)
        try:
            namespace = _open_user_namespace(self.uid_map, self.gid_map)
            try:
                syscalls.mount_setattr(tree, 0, syscalls.MOUNT_ATTR_IDMAP, namespace)
            except OSError as error:
                error.filename = self.source
                raise
            finally:
                os.close(namespace)
            syscalls.move_mount(tree, self.target)
        finally:
            os.close(tree)


class OffsetBootClock(Operation):
    """Make the time namespace whose offsets those of the instances start from, and set them.

    The kernel lets only a process's children enter it, so the caller's own clock stays.
    """

    def __init__(self, offset_s: int) -> None:
        self.offset_s = offset_s

    def describe(self) -> str:
        """The step in words."""
        return f"prepare a time namespace with the boot clock {self.offset_s:+d} s"

    def execute(self) -> None:
        """Do it. Raises OSError."""
        syscalls.unshare(syscalls.CLONE_NEWTIME)
        write_file("/proc/self/timens_offsets", f"boottime {self.offset_s} 0".encode())


def _open_user_namespace(uid_map: IdMap, gid_map: IdMap) -> int:
    """A user namespace with these maps that lives as long as the descriptor. Raises OSError."""
    ended, hold = os.pipe()
    made, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(hold)
            syscalls.unshare(syscalls.CLONE_NEWUSER)
            os.write(told, b"1")
            os.read(ended, 1)
        finally:
            os._exit(0)
    os.close(told)
    os.close(ended)
    try:
        if not os.read(made, 1):
            raise OSError(28, "no user namespace could be made", "/proc/sys/user/max_user_namespaces")
        write_maps(pid, uid_map, gid_map)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(made)
        os.close(hold)


def _lines(ids: IdMap) -> bytes:
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in ids).encode()
