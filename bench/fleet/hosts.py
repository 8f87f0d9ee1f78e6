"""Hosts files: which hosts a suite runs on, what they are called, and how they are reached.

Nothing here opens a connection. Whatever is wrong is one message with the file, the key and the host.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from tare.bench.errors import SuiteError
from tare.bench.suite_file import Section, convert, read_toml

HostName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?\Z",
        description="letters, digits, dots, hyphens and underscores, at most 64, with a letter or digit at both ends",
    ),
]
_Port = Annotated[int, Meta(ge=1, le=65535)]
_Text = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]*\Z", description="text without control characters")]
_Address = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9:._-]{1,253}\Z", description="an IP address, or a host name without user or port")
]


class Start(StrEnum):
    """How the worker of a host is started."""

    SSH = "ssh"
    HAND = "hand"
    """By whoever runs ``tare fleet worker`` there."""


class SshSection(Section, frozen=True):
    """``[ssh]``: what holds for every host that does not say otherwise. Without a ``user``, as ssh does."""

    user: _Text = ""
    port: _Port = 22
    key: _Text = ""
    known_hosts: _Text = ""


class _HostSection(Section, frozen=True):
    """``[[host]]``."""

    name: HostName
    address: _Address
    type: _Text = ""
    labels: Mapping[str, _Text] = {}
    start: Start = Start.SSH
    user: _Text | None = None
    port: _Port | None = None
    key: _Text | None = None
    tare: _Text = "tare"
    work: _Text = ""


class _HostsFile(Section, frozen=True):
    host: Annotated[tuple[_HostSection, ...], Meta(min_length=1)]
    ssh: SshSection = SshSection()


class Host(msgspec.Struct, frozen=True):
    """One host of a fleet.

    Hosts of one ``type`` count as alike (bought as one model); ``labels`` are the user's own. ``address`` is an IP
    address or a host name. ``tare`` is the command there, ``work`` the folder there for the runs of fleets (empty: in
    tare's state folder). ``known_hosts`` and ``key`` are files on the user's side; empty: those that ssh uses.
    """

    name: str
    address: str
    type: str = ""
    labels: Mapping[str, str] = {}
    start: Start = Start.SSH
    user: str = ""
    port: int = 22
    key: str = ""
    known_hosts: str = ""
    tare: str = "tare"
    work: str = ""

    @property
    def is_loopback(self) -> bool:
        """Whether the address is this machine's own loopback; a host name is one only if it is ``localhost``."""
        try:
            return ipaddress.ip_address(self.address).is_loopback
        except ValueError:
            return self.address == "localhost"

    def matches(self, types: Iterable[str], labels: Mapping[str, str]) -> bool:
        """Whether it is of one of these types (any, if there are none) and has all these labels."""
        wanted = tuple(types)
        return (not wanted or self.type in wanted) and labels.items() <= self.labels.items()


def load_hosts(path: Path) -> tuple[Host, ...]:
    """Read a hosts file. Raises SuiteError with the file and the key."""
    file = convert(read_toml(path), _HostsFile, path, "")
    hosts = tuple(_host(section, file.ssh, path.parent) for section in file.host)
    names: set[str] = set()
    ways: dict[str, str] = {}
    for number, host in enumerate(hosts):
        place = f"{path}: host[{number}]"
        if host.name.lower() in names:  # names are folders, also where file systems ignore case
            problem = f"{host.name!r} is there twice"
            raise SuiteError(f"{place}.name", problem, remedy="give each host a name of its own")
        names.add(host.name.lower())
        way = f"{host.address}:{host.port}"
        if host.start is Start.SSH and ways.setdefault(way, host.name) != host.name:
            raise SuiteError(
                f"{place}.address",
                f"{host.name!r} and {ways[way]!r} are both at {way}: a host would run two suites at once",
                remedy="name each host once; hosts behind one address differ in their port",
            )
    return hosts


def select_hosts(
    hosts: Iterable[Host], types: Iterable[str], labels: Mapping[str, str], place: str
) -> tuple[Host, ...]:
    """The hosts of these types and labels. Raises SuiteError at ``place`` if there is none."""
    given, wanted = tuple(hosts), tuple(types)
    chosen = tuple(host for host in given if host.matches(wanted, labels))
    if not chosen:
        known = sorted({host.type for host in given if host.type})
        pairs = sorted({f"{name}={value}" for host in given for name, value in host.labels.items()})
        raise SuiteError(
            place,
            "selects none of the hosts",
            remedy=f"types are: {', '.join(known) or 'none'}; labels are: {', '.join(pairs) or 'none'}",
        )
    return chosen


def _host(section: _HostSection, ssh: SshSection, folder: Path) -> Host:
    def file(name: str) -> str:
        return str(folder / Path(name).expanduser()) if name else ""

    return Host(
        name=section.name,
        address=section.address,
        type=section.type,
        labels=section.labels,
        start=section.start,
        user=ssh.user if section.user is None else section.user,
        port=ssh.port if section.port is None else section.port,
        key=file(ssh.key if section.key is None else section.key),
        known_hosts=file(ssh.known_hosts),
        tare=section.tare,
        work=section.work,
    )
