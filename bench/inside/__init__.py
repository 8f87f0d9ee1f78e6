"""What tare runs inside of instances by itself, the same on every backend: the image's service, and load on it.

Not every image has a shell, so nothing of the image's is used. The C sources are compiled into the program that is
inside of an instance anyway (``backends/native/zygote.c``, ``bench/image/guest``), which runs them for a command whose
first argument is ``OWN_PROGRAM``. Commands are built and their answers read here; service.c says what they are.
"""

import re
from pathlib import Path

from tare.bench.errors import WorkloadError
from tare.bench.model import SCRATCH, Command, Completed
from tare.bench.service import ResolvedService

FOLDER = Path(__file__).parent
HEADER = FOLDER / "inside.h"
SOURCES = tuple(sorted(FOLDER.glob("*.c")))
OWN_PROGRAM = "@tare@"

_LATE_S = 15.0
"""What a command may take beyond the wait that it was asked for."""
_ENDS_WITHIN_S = 20.0


def serve(service: ResolvedService) -> Command:
    """Starts the service and waits until it answers; ``read_served`` reads the answer."""
    given = [f"log={log_of(service.name)}", f"cwd={service.cwd}", f"user={service.user}"]
    given += [f"within_ms={round(service.within_s * 1000)}"]
    given += [f"arg={argument}" for argument in service.argv]
    given += [f"env={name}={value}" for name, value in service.env.items()]
    if service.port is not None:
        given.append(f"port={service.port}")
    if service.ready == "http":
        given.append(f"path={service.path}")
    if service.ready == "healthcheck" and service.healthcheck is not None:
        given += [f"check={argument}" for argument in service.healthcheck.command]
        given.append(f"check_ms={round(service.healthcheck.timeout_s * 1000)}")
    return Command((OWN_PROGRAM, "serve", *given), timeout_s=service.within_s + _LATE_S)


def log_of(name: str) -> str:
    """Where a service's output goes."""
    return f"{SCRATCH}/{name}.log"


def is_alive(pid: int) -> Command:
    """Ends with 0 if the process lives."""
    return Command((OWN_PROGRAM, "alive", str(pid)))


def end(pid: int) -> Command:
    """Ends a process, and waits until it is gone."""
    return Command(
        (OWN_PROGRAM, "end", str(pid), str(round(1000 * _ENDS_WITHIN_S))), timeout_s=_ENDS_WITHIN_S + _LATE_S
    )


def tail(name: str) -> Command:
    """Prints the last 4 KiB of what a service printed."""
    return Command((OWN_PROGRAM, "tail", log_of(name)))


def load(port: int | str, path: str, connections: int, duration_s: float) -> Command:
    """Asks the service that listens on ``port`` again and again; see load.c for what it prints."""
    given = (f"port={port}", f"path={path}", f"connections={connections}", f"duration_ms={round(1000 * duration_s)}")
    return Command((OWN_PROGRAM, "load", *given), timeout_s=duration_s + 2 * _LATE_S)


_ANSWERED = re.compile(rb"answered (\d+) (\d+)\n")
_FAILED = re.compile(rb"failed (\w+) (.*?)(?:\n|$)")


def read_served(service: ResolvedService, completed: Completed) -> int:
    """The process of a service that answers. Raises WorkloadError with the reason, and its health check's output."""
    answered = _ANSWERED.fullmatch(completed.stdout)
    if answered is not None and completed.returncode == 0:
        return int(answered[1])
    told = _FAILED.match(completed.stdout)
    if told is None:
        how = "within its deadline" if completed.timed_out else f"(status {completed.returncode}, {completed.signal})"
        raise WorkloadError(
            f"the service {service.name} was not started {how}",
            evidence=(completed.stdout + completed.stderr).decode(errors="replace").strip(),
        )
    what, detail = told[1].decode(), told[2].decode(errors="replace").strip()
    problem, remedy = _problem(service, what, detail)
    evidence = completed.stdout[told.end() :].decode(errors="replace").strip()
    raise WorkloadError(f"the service {service.name}: {problem}", remedy=remedy, evidence=evidence)


_Problem = tuple[str, str | None]


def _problem(service: ResolvedService, what: str, detail: str) -> _Problem:
    match what:
        case "user":
            problem = f"its user {detail!r} is not in the image's /etc/passwd"
            return problem, 'state user = "NUMBER", or add the user to the image'
        case "group":
            return f"its group {detail!r} is not in the image's /etc/group", 'state user = "USER:NUMBER"'
        case "taken":
            return (
                f"something else listens on port {service.port} already",
                'end what listens there; bare metal and network = "host" have the host\'s ports',
            )
        case "start":
            return _not_started(service, detail)
        case "ended":
            return (
                f"ended with {detail} before it answered",
                "see what it printed; it has to stay in the foreground, as a container's main process does",
            )
        case "deadline":
            return _deadline(service, detail)
    return f"could not be started ({what}): {detail}", None


def _not_started(service: ResolvedService, detail: str) -> _Problem:
    step, number, text = (*detail.split(" ", 2), "", "")[:3]
    program = service.argv[0]
    match step, number:
        case "exec", ("2" | "20"):
            return (
                f"its program {program!r} is not in the image, or the interpreter that it names is not",
                "compare entrypoint and cmd with what is in the image",
            )
        case "exec", ("8" | "13"):
            return (
                f"its program {program!r} cannot be executed: {text}",
                "see its mode, for which architecture it is, and whether a script begins with #!",
            )
        case "cwd", _:
            return f"its working directory {service.cwd!r}: {text}", 'state cwd = "/..."'
        case "identity", _:
            return (
                f"it may not become its user {service.user!r}: {text}",
                "give the backend capabilities and identities for it, or state user",
            )
    return f"could not be started ({step}): {text}", None


def _deadline(service: ResolvedService, detail: str) -> _Problem:
    kind, _, rest = detail.partition(" ")
    late = f"did not answer within {service.within_s:g} s"
    longer = "see what it printed; give it longer with within = ..."
    match kind:
        case "status":
            problem = f"{late}: GET {service.path} on port {service.port} has status {rest}"
            return problem, 'state a path that is answered with 200, or ready = "tcp"'
        case "protocol":
            return f"{late} by HTTP: what listens on port {service.port} says something else", 'state ready = "tcp"'
        case "silent":
            return f"{late}: it takes connections on port {service.port} and says nothing ({rest})", longer
        case "refused":
            return f"{late}: nothing listens on port {service.port} ({rest})", f"{longer}, or state its port"
        case "check":
            last = f"did not end within {rest[8:]} ms" if rest.startswith("timeout ") else f"ended with {rest}"
            return f"did not become healthy within {service.within_s:g} s: its health check {last}", longer
    return f"{late}: {detail}", longer
