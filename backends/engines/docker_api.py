"""The Docker Engine's API by the library docker, which nothing else imports: deadlines, and errors translated."""

import contextlib
import importlib.util
import json
import os
import socket as sockets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, TypeVar

from tare.bench.errors import BackendError, UnavailableError

OLDEST = (1, 41)
"""Docker 20.10: the first whose containers have a cgroup namespace of their own by an option."""
_HEADER_BYTES = 8
_REMEDY = "see whether the daemon runs, and its log"

Result = TypeVar("Result")


class NoAnswerError(BackendError):
    """The daemon is gone, or does not answer in time: nobody knows what it still does."""


class NotFoundError(BackendError):
    """There is no such container, image or exec."""


def have_library() -> bool:
    """Whether the library is installed. Does not import it."""
    return importlib.util.find_spec("docker") is not None


class Api:
    """A daemon's API behind a socket. Usable by many threads at once."""

    def __init__(self, socket: str, *, timeout_s: float) -> None:
        """``socket`` is a path; each call has ``timeout_s`` for its answer. Raises NoAnswerError, UnavailableError.

        ``client`` is the library's own object.
        """
        import docker
        import requests

        self._errors = docker.errors
        self._lost = (requests.exceptions.ConnectionError, requests.exceptions.Timeout, OSError)
        self.ask("tell its version", lambda: _connect(socket, timeout_s))
        self.client = self.ask(
            "tell its version",
            lambda: docker.APIClient(base_url=f"unix://{socket}", version="auto", timeout=timeout_s, max_pool_size=64),
        )
        have = tuple(int(part) for part in self.client.api_version.split("."))
        if have < OLDEST:
            wanted = ".".join(map(str, OLDEST))
            raise UnavailableError(
                f"Docker's daemon speaks version {self.client.api_version} of its API, and tare needs {wanted}",
                remedy="install Docker 20.10 or later",
            )

    def ask(self, what: str, call: Callable[[], Result]) -> Result:
        """What ``call`` returns. Raises NotFoundError, NoAnswerError, BackendError: what could not be done, and why."""
        try:
            return call()
        except self._errors.NotFound as error:
            raise NotFoundError(f"Docker could not {what}: {_said(error)}") from error
        except self._errors.APIError as error:
            raise BackendError(f"Docker could not {what}: {_said(error)}", evidence=str(error)) from error
        except (self._errors.DockerException, *self._lost) as error:
            raise NoAnswerError(
                f"Docker's daemon did not {what}: {_root_of(error)}", remedy=_REMEDY, evidence=repr(error)
            ) from error

    def version(self) -> Mapping[str, Any]:
        """``GET /version``."""
        found: Mapping[str, Any] = self.ask("tell its version", self.client.version)
        return found

    def info(self) -> Mapping[str, Any]:
        """``GET /info``."""
        found: Mapping[str, Any] = self.ask("describe itself", self.client.info)
        return found

    def import_image(self, content: Iterable[bytes], name: str, changes: Sequence[str]) -> None:
        """Make the image ``name`` (with a tag) of a tar archive, as ``docker import`` does. It has no deadline."""

        def call() -> str:
            repository, _, tag = name.partition(":")
            said: str = self.client.import_image_from_data(content, repository, tag, list(changes))
            return said

        for line in self.ask("import the image", call).splitlines():
            with contextlib.suppress(ValueError):
                if "error" in (told := json.loads(line)):
                    raise BackendError(f"Docker could not import the image: {told['error']}")

    def have_image(self, name: str) -> bool:
        """Whether the daemon has an image of that name."""
        try:
            self.ask("look for an image", lambda: self.client.inspect_image(name))
        except NotFoundError:
            return False
        return True

    def remove_image(self, name: str) -> bool:
        """Remove an image; False if there is none."""
        try:
            self.ask("remove the image", lambda: self.client.remove_image(name))
        except NotFoundError:
            return False
        return True

    def create(self, name: str, config: Mapping[str, Any]) -> str:
        """Make a container that does not run yet; its id."""
        made = self.ask("create the container", lambda: self.client.create_container_from_config(config, name))
        return str(made["Id"])

    def start(self, container: str) -> None:
        """Start it; returns when the daemon does."""
        self.ask("start the container", lambda: self.client.start(container))

    def remove(self, container: str) -> None:
        """Kill and remove a container with its volumes, as ``docker rm --force --volumes``."""
        self.ask("remove the container", lambda: self.client.remove_container(container, v=True, force=True))

    def labels(self, container: str) -> Mapping[str, str]:
        """The labels of a container."""
        found = self.ask("describe the container", lambda: self.client.inspect_container(container))
        return dict(found["Config"]["Labels"] or {})

    def layer(self, container: str) -> Path | None:
        """Where what a container has written is kept; None if its storage driver does not name a folder."""
        found = self.ask("describe the container", lambda: self.client.inspect_container(container))
        named = (found.get("GraphDriver", {}).get("Data") or {}).get("UpperDir")
        return None if named is None else Path(named)

    def address(self, container: str) -> str:
        """A running container's address on Docker's own bridge."""
        found = self.ask("describe the container", lambda: self.client.inspect_container(container))
        return str(found["NetworkSettings"]["Networks"]["bridge"]["IPAddress"])

    def bridge_address(self) -> str:
        """The address of Docker's own bridge: the first of its network unless another is stated."""
        found = self.ask("describe its bridge", lambda: self.client.inspect_network("bridge"))
        network = found["IPAM"]["Config"][0]
        return str(network.get("Gateway") or IPv4Network(network["Subnet"])[1])

    def logs(self, container: str) -> str:
        """The end of what a container has printed."""
        text = self.ask("show what the container printed", lambda: self.client.logs(container, tail=20))
        return bytes(text).decode(errors="replace")

    def execute(self, container: str, argv: Sequence[str]) -> tuple[int, bytes]:
        """Execute a program in a container and wait for its end: exit code and output."""

        def call() -> tuple[int, bytes]:
            made = self.client.exec_create(container, list(argv))["Id"]
            printed = self.client.exec_start(made)
            return int(self.client.exec_inspect(made)["ExitCode"]), bytes(printed)

        return self.ask("execute a program in the container", call)

    def stats(self, container: str) -> Mapping[str, Any]:
        """What the daemon measures of a container now: ``GET /containers/ID/stats``."""
        found: Mapping[str, Any] = self.ask(
            "measure the container", lambda: self.client.stats(container, stream=False, one_shot=True)
        )
        return found

    def find_event_s(self, container: str, event: str, since_s: float, until_s: float) -> float | None:
        """When an event of a container was published, in seconds since 1970, by the daemon's clock."""

        def call() -> list[Mapping[str, Any]]:
            asked = {"container": container, "type": "container", "event": event}
            # The library takes seconds as numbers; the API also takes a fraction.
            stream = self.client.events(f"{since_s:.9f}", f"{until_s:.9f}", asked, decode=True)
            return list(stream)

        found = self.ask("tell its events", call)
        return found[0]["timeNano"] / 1e9 if found else None

    @contextlib.contextmanager
    def attach(self, container: str) -> Iterator[sockets.socket]:
        """The standard input and output of a container, the output in frames (``read_frame``)."""
        asked = {"stdin": 1, "stdout": 1, "stream": 1}
        held = self.ask("attach to the container", lambda: self.client.attach_socket(container, asked))
        stream: sockets.socket = getattr(held, "_sock", held)
        with contextlib.closing(held), contextlib.closing(stream):  # the library's is a file over the socket
            stream.settimeout(None)
            yield stream

    def close(self) -> None:
        """Close its connections."""
        self.client.close()


def read_frame(stream: sockets.socket) -> bytes:
    """The next piece of output of an attached container; empty at its end."""
    header = stream.recv(_HEADER_BYTES, sockets.MSG_WAITALL)
    size = int.from_bytes(header[4:], "big") if len(header) == _HEADER_BYTES else 0
    return stream.recv(size, sockets.MSG_WAITALL) if size else b""


def _connect(path: str, timeout_s: float) -> None:
    """Whether anybody listens: the library leaves a socket that nobody answers to the garbage collector."""
    with contextlib.closing(sockets.socket(sockets.AF_UNIX)) as tried:
        tried.settimeout(timeout_s)
        tried.connect(path)


def _said(error: Any) -> str:
    return str(error.explanation or error).strip()


def _root_of(error: BaseException) -> str:
    """The innermost reason: the library wraps those of urllib3, which wrap the kernel's."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]  # one of both is there
    if isinstance(error, TimeoutError) or "timed out" in str(error):
        return "it did not answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def why_not_reached(socket: Path) -> str:
    """Why nobody answers at a socket, as far as its file tells; empty if it is there and permitted."""
    try:
        if not socket.exists():
            return f"there is no socket {socket}"
    except OSError as error:
        return f"{socket}: {error.strerror}"
    if not os.access(socket, os.W_OK):
        return f"this user may not use {socket}"
    return ""
