"""What lies between the two ends of a workload that has a server: told by backends, shown by reports.

A backend states it among its facts, one for each place where the server can be (``steady``'s option ``server``).
"""

from collections.abc import Mapping
from enum import StrEnum

LOOPBACK = "127.0.0.1"
"""Where a program reaches what listens on the same network stack."""


class ServerPlace(StrEnum):
    """Where a workload's services run, as seen from the measured command."""

    SAME_INSTANCE = "same-instance"
    OTHER_INSTANCE = "other-instance"
    HOST = "host"


def describe_paths(*, inside: str, other: str = "", host: str = "") -> dict[str, str]:
    """The facts of a backend: what is passed within an instance, to another, to the host's side; empty for no way."""
    ways = {ServerPlace.SAME_INSTANCE: inside, ServerPlace.OTHER_INSTANCE: other, ServerPlace.HOST: host}
    return {_fact(place): way or "none" for place, way in ways.items()}


def find_path(facts: Mapping[str, str], place: str) -> str | None:
    """What a backend with ``facts`` says of its way to ``place``, or None if it says nothing."""
    return facts.get(_fact(place))


def _fact(place: str) -> str:
    return f"path to {place}"
