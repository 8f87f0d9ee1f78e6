"""What lies between the two ends of a workload that has a server: stated by backends, shown by reports.

A backend states it among its facts, one for each place where the server can be (``steady``'s option ``server``).
"""

import itertools
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Protocol

LOOPBACK = "127.0.0.1"
"""Where a program reaches what listens on the same network stack."""

_LOOPBACK_HOSTS = 2**24
_FEW = 256
_numbers = itertools.count(os.getpid() * _FEW)


def own_loopback() -> str:
    """An address of the loopback network that is given once in this process, and hardly ever in another that lives.

    Linux serves all of 127.0.0.0/8 on lo: so several servers can listen on one port of a shared network stack.
    """
    # Not the first and the last: 127.0.0.0 is the network and 127.255.255.255 its broadcast; 127.0.0.1 is for others.
    host = 2 + next(_numbers) % (_LOOPBACK_HOSTS - 3)
    return str(IPv4Address("127.0.0.0") + host)


class OtherSide(Protocol):
    """The other end of instances' network: ``address`` is its own, ``inside`` has this thread there meanwhile."""

    @property
    def address(self) -> str:
        """Where instances reach it."""

    def inside(self) -> AbstractContextManager[None]:
        """Processes that are started meanwhile stay there. Raises OSError."""


class ServerPlace(StrEnum):
    """Where a workload's services run, as seen from the measured command."""

    SAME_INSTANCE = "same-instance"
    OTHER_INSTANCE = "other-instance"
    HOST = "host"


def describe_paths(*, inside: str, other: str = "", host: str = "") -> dict[str, str]:
    """The facts of a backend: what is passed within an instance, to another, to the host's side; empty for no way."""
    ways = {ServerPlace.SAME_INSTANCE: inside, ServerPlace.OTHER_INSTANCE: other, ServerPlace.HOST: host}
    return {_fact(place): way or "none" for place, way in ways.items()}


def _fact(place: str) -> str:
    return f"path to {place}"


PATHS_OF_OWN_LO = describe_paths(inside="the container's lo")
"""Of a container whose network is its lo."""
PATHS_OF_HOST = describe_paths(inside="the host's lo", other="the host's lo", host="the host's lo")
"""Of whatever shares the host's network."""
PATHS_OF_BRIDGE = describe_paths(inside="the container's lo", other="veth, bridge, veth", host="veth, bridge")
"""Of containers on a bridge, which the host's side is on too."""


def find_path(facts: Mapping[str, str], place: str) -> str | None:
    """What a backend with ``facts`` says of its way to ``place``, or None if it says nothing."""
    return facts.get(_fact(place))
