"""What the zygote is told: once about all its instances (Settings), and about each of them (Plan).

Standard library only, because the zygote imports it.
"""

from tare.backends.native.wire import join_list, split_list

IdMap = tuple[tuple[int, int, int], ...]
"""Ranges of identities as user_namespaces(7) writes them: (first inside, first outside, how many)."""

_SEPARATOR = " "


class Settings:
    """What all instances of one zygote have in common; paths are absolute without a user namespace.

    ``style`` is one of ``order.STYLES``. ``root`` is the folder that the overlay is mounted on; mount namespaces are
    private, so all instances share it. ``empty`` is a folder that stays empty, ``memory`` one to mount the tmpfs on
    that holds the upper layer, of ``memory_bytes`` (0: the upper layer is on disk, where the Plan says).
    ``capabilities`` are the numbers of those that are kept. ``inherited_filter`` and ``own_filter`` are seccomp
    programs, empty for none: see ``seccomp.Filters``. ``uid_map`` and ``gid_map`` are empty for no user namespace.
    With one, the zygote enters ``folder``, and all paths but ``image`` are relative to it, so that nothing above it
    needs to be open to the identities outside. ``image`` is mounted at ``lower`` with its owners mapped.
    ``boot_offset_s`` is added to the boot clock, None for no time namespace; the monotonic clock, by which commands
    are timed, stays the host's.
    ``mount_points`` are made in an upper layer in memory; on disk the harness makes them. ``identities`` are those of
    the user namespace that the zygote itself is in (``unprivileged.Identities``). ``also_masked`` are paths to hide
    beside ``order.MASKED``. ``system`` has systemd boot the image's distribution before an instance is ready.
    """

    def __init__(
        self,
        *,
        style: str,
        root: str,
        empty: str,
        memory: str = "",
        memory_bytes: int = 0,
        mount_points: tuple[str, ...] = (),
        network: str = "none",
        capabilities: tuple[int, ...] = (),
        inherited_filter: bytes = b"",
        own_filter: bytes = b"",
        uid_map: IdMap = (),
        gid_map: IdMap = (),
        folder: str = "",
        image: str = "",
        lower: str = "",
        boot_offset_s: int | None = None,
        identities: str = "host",
        also_masked: tuple[str, ...] = (),
        system: bool = False,
    ) -> None:
        self.style = style
        self.root = root
        self.empty = empty
        self.memory = memory
        self.memory_bytes = memory_bytes
        self.mount_points = mount_points
        self.network = network
        self.capabilities = capabilities
        self.inherited_filter = inherited_filter
        self.own_filter = own_filter
        self.uid_map = uid_map
        self.gid_map = gid_map
        self.folder = folder
        self.image = image
        self.lower = lower
        self.boot_offset_s = boot_offset_s
        self.identities = identities
        self.also_masked = also_masked
        self.system = system

    def encode(self) -> tuple[bytes, ...]:
        """The fields of a message."""
        return (
            join_list(
                (
                    *(self.style, self.root, self.empty, self.memory, str(self.memory_bytes), self.network),
                    *(self.identities, "system" if self.system else ""),
                )
            ),
            join_list(self.mount_points),
            join_list(self.also_masked),
            _numbers(self.capabilities),
            self.inherited_filter,
            self.own_filter,
            _numbers([number for line in self.uid_map for number in line]),
            _numbers([number for line in self.gid_map for number in line]),
            join_list((self.folder, self.image, self.lower)),
            b"" if self.boot_offset_s is None else str(self.boot_offset_s).encode(),
        )


def decode_settings(fields: list[bytes]) -> Settings:
    """The settings of ``Settings.encode``."""
    single, mount_points, also_masked, capabilities, inherited_filter, own_filter, uid_map, gid_map, places, boot = (
        fields
    )
    style, root, empty, memory, memory_bytes, network, identities, system = split_list(single)
    folder, image, lower = split_list(places)
    return Settings(
        style=style,
        root=root,
        empty=empty,
        memory=memory,
        memory_bytes=int(memory_bytes),
        mount_points=tuple(split_list(mount_points)),
        network=network,
        capabilities=_split_numbers(capabilities),
        inherited_filter=inherited_filter,
        own_filter=own_filter,
        uid_map=_split_map(uid_map),
        gid_map=_split_map(gid_map),
        folder=folder,
        image=image,
        lower=lower,
        boot_offset_s=int(boot) if boot else None,
        identities=identities,
        also_masked=tuple(split_list(also_masked)),
        system=bool(system),
    )


class Plan:
    """One instance; paths as in the Settings.

    The root is an overlay of ``lower``, ``upper`` and ``work``. ``join_files`` are written by the instance itself.
    ``kill_file`` is its ``cgroup.kill`` or empty.
    """

    def __init__(
        self,
        *,
        hostname: str,
        lower: str,
        upper: str,
        work: str,
        scratch: str,
        cpus: tuple[int, ...],
        join_files: tuple[str, ...],
        kill_file: str,
    ) -> None:
        self.hostname = hostname
        self.lower = lower
        self.upper = upper
        self.work = work
        self.scratch = scratch
        self.cpus = cpus
        self.join_files = join_files
        self.kill_file = kill_file

    def encode(self) -> tuple[bytes, ...]:
        """The fields of a message."""
        places = (self.lower, self.upper, self.work, self.scratch)
        return join_list((self.hostname, *places, self.kill_file)), _numbers(self.cpus), join_list(self.join_files)


def decode_plan(fields: list[bytes]) -> Plan:
    """The plan of ``Plan.encode``."""
    single, cpus, join_files = fields
    hostname, lower, upper, work, scratch, kill_file = split_list(single)
    return Plan(
        hostname=hostname,
        lower=lower,
        upper=upper,
        work=work,
        scratch=scratch,
        cpus=_split_numbers(cpus),
        join_files=tuple(split_list(join_files)),
        kill_file=kill_file,
    )


def _numbers(numbers: tuple[int, ...] | list[int]) -> bytes:
    return _SEPARATOR.join(map(str, numbers)).encode()


def _split_numbers(field: bytes) -> tuple[int, ...]:
    return tuple(map(int, field.split()))


def _split_map(field: bytes) -> IdMap:
    numbers = _split_numbers(field)
    return tuple((numbers[at], numbers[at + 1], numbers[at + 2]) for at in range(0, len(numbers), 3))
