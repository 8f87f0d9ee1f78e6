"""What is reported of an engine: when a start by it has ended, and what it costs next to its containers."""

from enum import StrEnum

import msgspec


class StartedBy(StrEnum):
    """What people call the end of a start: published figures follow one of these, and seldom say which.

    ``returned``: the engine's command, or the call to its daemon, returned. ``instruction``: the first user-space code
    inside ran. ``exec``: the first command executed by the engine's own means was answered. ``service``: the service
    inside answered its first request. ``event``: the engine itself calls the instance running.
    """

    RETURNED = "returned"
    INSTRUCTION = "instruction"
    EXEC = "exec"
    SERVICE = "service"
    EVENT = "event"


class EngineShare(msgspec.Struct, frozen=True):
    """What an engine costs next to its containers: in seconds of CPU so far, and bytes (PSS) now.

    What a daemon has used so far counts from when the instance was asked for.

    ``cpu_s`` and ``memory_bytes`` are those of the instance's own helpers (shim, conmon, monitor, the engine's
    commands): part of the instance's ``Usage`` and ``Footprint``. ``daemon_cpu_s`` and ``daemon_memory_bytes`` are
    those of daemons, one for all instances, and part of none; None where there is no daemon, or nobody can tell.
    """

    cpu_s: float | None
    memory_bytes: int | None
    daemon_cpu_s: float | None = None
    daemon_memory_bytes: int | None = None
