"""What the zygote is told about one instance."""

from backends.native.wire import join_list, split_list


class Plan:
    """Where an instance's parts lie on the host, all absolute paths.

    ``root`` is the folder that the overlay of ``lower``, ``upper``
    and ``work`` is mounted on; mount namespaces are private, so all instances share it. ``empty`` is a folder that
    stays empty. ``join_files`` are written by the instance itself. ``kill_file`` is its ``cgroup.kill`` or empty.
    """

    def __init__(
        self,
        *,
        hostname: str,
        root: str,
        empty: str,
        lower: str,
        upper: str,
        work: str,
        scratch: str,
        cpus: tuple[int, ...],
        join_files: tuple[str, ...],
        kill_file: str,
    ) -> None:
        self.hostname = hostname
        self.root = root
        self.empty = empty
        self.lower = lower
        self.upper = upper
        self.work = work
        self.scratch = scratch
        self.cpus = cpus
        self.join_files = join_files
        self.kill_file = kill_file

    def encode(self) -> tuple[bytes, ...]:
        """The fields of a message."""
        places = (self.root, self.empty, self.lower, self.upper, self.work, self.scratch)
        return (
            join_list((self.hostname, *places, self.kill_file)),
            join_list([str(cpu) for cpu in self.cpus]),
            join_list(self.join_files),
        )


def decode_plan(fields: list[bytes]) -> Plan:
    """The plan of ``Plan.encode``."""
    single, cpus, join_files = (split_list(field) for field in fields)
    hostname, root, empty, lower, upper, work, scratch, kill_file = single
    return Plan(
        hostname=hostname,
        root=root,
        empty=empty,
        lower=lower,
        upper=upper,
        work=work,
        scratch=scratch,
        cpus=tuple(map(int, cpus)),
        join_files=tuple(join_files),
        kill_file=kill_file,
    )
