"""What an image says of the program that it is made for, and what a suite says of it: data that both sides know.

The fields of ``ImageProcess`` are those of the image configuration of OCI (config.md, v1.1) and of Docker, which adds
the health check.
"""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

_NANOSECONDS = 1e9
_MOST_TEXT = 64 * 1024
_MOST_ENTRIES = 4096
_DEFAULT_CHECK_S = 30.0

PORT = "@port@"
"""In the arguments of a command: the port on which the image's service answers."""
ReadyBy = Literal["http", "tcp", "healthcheck"]


class _Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what is stored here."""


class HealthCheck(_Data, frozen=True):
    """The image's own check: a command that ends with status 0 if the service is well, and its timeout."""

    command: tuple[str, ...]
    timeout_s: float = _DEFAULT_CHECK_S


class ImageProcess(_Data, frozen=True):
    """The program that an image is made for, as its configuration has it.

    ``user`` is a name or number, perhaps with ``:GROUP``; empty for root. ``env`` has the variables by name, ``ports``
    those that it says it listens on (``8080/tcp``).
    """

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: Mapping[str, str] = {}
    cwd: str = "/"
    user: str = ""
    ports: tuple[str, ...] = ()
    healthcheck: HealthCheck | None = None

    @property
    def argv(self) -> tuple[str, ...]:
        """The command that starts it; empty if the image names none."""
        return (*self.entrypoint, *self.cmd)


class ServiceRequest(_Data, frozen=True):
    """What a workload asks of the image's own service: how it is started, and when it answers.

    Of ``entrypoint``, ``cmd``, ``cwd`` and ``user``, None is what the image says; ``env`` adds to the image's. ``port``
    None is the one that the image says it listens on; ``ready`` None: by HTTP where there is a port, else by the
    image's health check. ``within_s`` bounds the wait.
    """

    name: str
    port: int | None = None
    path: str = "/"
    ready: ReadyBy | None = None
    within_s: float = 60.0
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: Mapping[str, str] = {}
    cwd: str | None = None
    user: str | None = None


class ResolvedService(_Data, frozen=True):
    """A service with all that starts it and says that it answers; ``port`` is None only for a health check."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    user: str
    ready: ReadyBy
    port: int | None
    path: str
    within_s: float
    healthcheck: HealthCheck | None = None


def read_process(config: Any) -> ImageProcess:
    """The program in the ``config`` of an image configuration (JSON). Raises ValueError with the key at fault."""
    if config is None:
        return ImageProcess()
    if not isinstance(config, dict):
        raise ValueError("config is no object")  # noqa: TRY004 - one kind of refusal
    return ImageProcess(
        entrypoint=_texts(config, "Entrypoint"),
        cmd=_texts(config, "Cmd"),
        env=_variables(_texts(config, "Env")),
        cwd=_folder(config),
        user=_text(config.get("User") or "", "User"),
        ports=tuple(sorted(_ports(config))),
        healthcheck=_health_check(config.get("Healthcheck")),
    )


def resolve_service(request: ServiceRequest, process: ImageProcess | None) -> ResolvedService:
    """What ``request`` means for an image with this ``process``. Raises ValueError, beginning with the key at fault."""
    process = process or ImageProcess()
    entrypoint = process.entrypoint if request.entrypoint is None else request.entrypoint
    # As Docker does: an entry point of one's own takes no arguments that were meant for the image's.
    inherited = process.cmd if request.entrypoint is None else ()
    argv = (*entrypoint, *(inherited if request.cmd is None else request.cmd))
    if not argv:
        raise ValueError(
            "service: the image has no entry point and no command; state entrypoint = [...], or use an OCI or docker "
            "archive of an image that has one"
        )
    port = _only_port(process) if request.port is None else request.port
    ready = request.ready or ("healthcheck" if port is None and process.healthcheck is not None else "http")
    if ready == "healthcheck" and process.healthcheck is None:
        raise ValueError('ready: the image has no health check; state ready = "http" or "tcp" with a port')
    if ready != "healthcheck" and port is None:
        listed = f"the image lists {', '.join(process.ports)}" if process.ports else "the image lists none"
        raise ValueError(f"port: say on which port the service answers ({listed})")
    return ResolvedService(
        name=request.name,
        argv=argv,
        env={**process.env, **request.env},
        cwd=process.cwd if request.cwd is None else request.cwd,
        user=process.user if request.user is None else request.user,
        ready=ready,
        port=port,
        path=request.path,
        within_s=request.within_s,
        healthcheck=process.healthcheck,
    )


def _only_port(process: ImageProcess) -> int | None:
    listed = [port.removesuffix("/tcp") for port in process.ports if not port.endswith("/udp")]
    return int(listed[0]) if len(listed) == 1 and listed[0].isdigit() else None


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key} is no text")  # noqa: TRY004 - one kind of refusal
    if "\0" in value or len(value) > _MOST_TEXT:
        raise ValueError(f"{key} holds a text with a NUL in it, or longer than {_MOST_TEXT} characters")
    return value


def _texts(config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = config.get(key) or ()
    if not isinstance(value, list | tuple) or len(value) > _MOST_ENTRIES:
        raise ValueError(f"{key} is no list of at most {_MOST_ENTRIES} texts")
    return tuple(_text(one, key) for one in value)


def _variables(lines: tuple[str, ...]) -> dict[str, str]:
    """Of lines ``NAME=VALUE``; what has no name or no ``=`` is nothing that a program could read."""
    parts = [line.partition("=") for line in lines]
    return {name: value for name, equals, value in parts if name and equals}


def _folder(config: Mapping[str, Any]) -> str:
    folder = _text(config.get("WorkingDir") or "/", "WorkingDir")
    if not folder.startswith("/"):
        raise ValueError(f"WorkingDir {folder!r} is not an absolute path")
    return folder


def _ports(config: Mapping[str, Any]) -> list[str]:
    value = config.get("ExposedPorts") or {}
    if not isinstance(value, dict) or len(value) > _MOST_ENTRIES:
        raise ValueError("ExposedPorts is no object")
    return [_text(port, "ExposedPorts") for port in value]


def _health_check(value: Any) -> HealthCheck | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError("Healthcheck is no object")  # noqa: TRY004 - one kind of refusal
    match _texts(value, "Test"):
        case ("CMD", *command) if command:
            argv = tuple(command)
        case ("CMD-SHELL", shell):
            argv = ("/bin/sh", "-c", shell)
        case () | ("NONE",):
            return None
        case _:
            raise ValueError("Healthcheck.Test is neither NONE, CMD with a program, nor CMD-SHELL with one text")
    timeout = value.get("Timeout") or 0
    if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 0:
        raise ValueError("Healthcheck.Timeout is no number of nanoseconds")
    return HealthCheck(argv, timeout / _NANOSECONDS or _DEFAULT_CHECK_S)
