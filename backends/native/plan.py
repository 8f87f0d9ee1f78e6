"""What the zygote is told about one instance."""

from backends.native.wire import join_list, split_list


class Plan:
    """Where an instance's parts lie on the host, all absolute paths.

    ``style`` is ``native`` or ``bare-metal``. ``root`` is the folder that the overlay of ``lower``, ``upper``
    and ``work`` is mounted on; mount namespaces are private, so all instances share it. ``join_files`` are
    written by the instance itself. ``kill_file`` is its ``cgroup.kill`` or empty.
    """

    def __init__(
        self,
        *,
        style: str,
        hostname: str,
        root: str,
        lower: str,
        upper: str,
        work: str,
        scratch: str,
        cpus: tuple[int, ...],
        join_files: tuple[str, ...],
        kill_file: str,
    ) -> None:
        self.style = style
        self.hostname = hostname
        self.root = root
        self.lower = lower
        self.upper = upper
        self.work = work
        self.scratch = scratch
        self.cpus = cpus
        self.join_files = join_files
        self.kill_file = kill_file

    def encode(self) -> tuple[bytes, ...]:
        """The fields of a message."""
        single = (self.style, self.hostname, self.root, self.lower, self.upper, self.work, self.scratch, self.kill_file)
        return join_list(single), join_list([str(cpu) for cpu in self.cpus]), join_list(self.join_files)


def decode_plan(fields: list[bytes]) -> Plan:
    """The plan of ``Plan.encode``."""
    single, cpus, join_files = (split_list(field) for field in fields)
    style, hostname, root, lower, upper, work, scratch, kill_file = single
    return Plan(
        style=style,
        hostname=hostname,
        root=root,
        lower=lower,
        upper=upper,
        work=work,
        scratch=scratch,
        cpus=tuple(map(int, cpus)),
        join_files=tuple(join_files),
        kill_file=kill_file,
    )
