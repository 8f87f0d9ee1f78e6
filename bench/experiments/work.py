"""What experiments run in instances: a workload with its services ready, and programs left running meanwhile."""

import time
from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from tare.bench import inside
from tare.bench.errors import BackendError, WorkloadError
from tare.bench.interfaces import Instance, InstanceRun, Workload
from tare.bench.interrupts import sleep
from tare.bench.model import SCRATCH, SERVER, Command, Commands, Completed, Service
from tare.bench.network_path import LOOPBACK, own_loopback
from tare.bench.service import PORT, ResolvedService, ServiceRequest, resolve_service

_START = 'log=$1; shift; "$@" >"$log" 2>&1 </dev/null & echo $!'
_ALIVE = '{ read -r line || [ -n "$line" ]; } 2>/dev/null <"/proc/$1/cmdline"'
"""A process that is ending has no command line from before its connections are closed, and a pid until it is reaped."""
_TAIL_LINES = "12"


class Background:
    """A program that runs in ``instance`` until that is stopped. One thread at a time, as the instance."""

    def __init__(self, instance: Instance, what: str, name: str, command: Command) -> None:
        """Start it. ``what`` is how errors call it; ``name`` names its log in the scratch folder.

        Raises WorkloadError if it could not be started.
        """
        self.instance = instance
        self.what = what
        self._log = f"{SCRATCH}/{name}.log"
        argv = ("sh", "-c", _START, "sh", self._log, *command.argv)
        started = instance.execute(Command(argv, env=command.env, cwd=command.cwd))
        pid = started.stdout.strip()
        if started.returncode != 0 or not pid.isdigit():
            raise WorkloadError(f"{what} could not be started", evidence=_said(started))
        self._pid = pid.decode()

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self.instance.execute(Command(("sh", "-c", _ALIVE, "sh", self._pid))).returncode == 0

    def stop(self) -> None:
        """End it, and wait until it is gone. Raises WorkloadError if it is not."""
        self.instance.execute(Command(("sh", "-c", 'kill "$1"', "sh", self._pid)))
        deadline = time.monotonic() + _STOPS_WITHIN_S
        while self.is_alive():
            if time.monotonic() >= deadline:
                raise WorkloadError(f"{self.what} did not end within {_STOPS_WITHIN_S:g} s", evidence=self.said())
            sleep(_ASKED_EVERY_S)

    def said(self) -> str:
        """The last lines of what it printed."""
        return _said(self.instance.execute(Command(("tail", "-n", _TAIL_LINES, self._log))))


class ImageService:
    """The image's own service, running in ``instance``; ``answered_s`` is when the host knew that it answers."""

    def __init__(self, run: InstanceRun, request: ServiceRequest, instance: Instance) -> None:
        """Start it, and wait until it answers. Raises WorkloadError with what it said last."""
        try:
            self.service: ResolvedService = resolve_service(request, run.image.process)
        except ValueError as error:
            raise WorkloadError(str(error)) from None
        self._instance = instance
        command = inside.serve(self.service)
        completed = instance.execute(command)
        self.answered_s = completed.ended_s
        try:
            self._pid = inside.read_served(self.service, completed)
        except WorkloadError as error:
            evidence = "\n".join(part for part in (error.evidence, self.said()) if part)
            raise WorkloadError(error.message, remedy=error.remedy, evidence=evidence) from None
        run.keep(command, completed, f"serve-{request.name}")

    def is_alive(self) -> bool:
        """Whether its main process still runs."""
        return self._instance.execute(inside.is_alive(self._pid)).returncode == 0

    def said(self) -> str:
        """The last of what it printed."""
        return _said(self._instance.execute(inside.tail(self.service.name)))


class Running(Protocol):
    """A service that runs until its instance ends."""

    def is_alive(self) -> bool:
        """Whether it still runs."""

    def said(self) -> str:
        """The last of what it printed."""


def _said(completed: Completed) -> str:
    return (completed.stdout + completed.stderr).decode(errors="replace").strip()


_ASKED_EVERY_S = 0.05
"""Between two questions to a service that does not answer yet: they take its CPU while it starts."""
_STOPS_WITHIN_S = 20.0
"""stress-ng waits for its workers, which an emulated guest may have many of."""
_ENDS_WITHIN_S = 1.0
"""A service that ends refuses its clients before it has ended."""


class Work:
    """What a workload runs in ``instance``, with its services in there or in ``serving``."""

    def __init__(
        self, run: InstanceRun, commands: Commands, instance: Instance, *, serving: Instance | None = None
    ) -> None:
        """Run its set-up, start its services and load them. Raises WorkloadError with what a service said last."""
        self._run = run
        self._commands = commands
        self._instance = instance
        self._serving = instance if serving is None else serving
        self._address = _address_of(self._serving, is_own=serving is None)
        self._services: list[tuple[str, Running]] = []
        self.image_service: ImageService | None = None
        for command in commands.setup:
            run.execute(self._serving, self._addressed(command), "setup")
        for service in commands.services:
            self._start(service)
        if commands.image_service is not None:
            self.image_service = ImageService(run, commands.image_service, self._serving)
            self._services.append((commands.image_service.name, self.image_service))
        self.measured = self._addressed(commands.measured)
        for command in commands.load:
            self._execute(command, "load")

    def measure(self, role: str = "measured") -> tuple[Completed, str]:
        """Run the measured command once. Raises WorkloadError if it failed, with the service that had ended."""
        return self._execute(self._commands.measured, role)

    def end(self) -> None:
        """See that the services still run, and run the teardown. Raises WorkloadError."""
        self.check()
        for command in self._commands.teardown:
            self._execute(command, "teardown")

    def check(self) -> None:
        """Raises WorkloadError if a service has ended: what was measured was then something else."""
        for name, program in self._services:
            if not program.is_alive():
                raise WorkloadError(f"the service {name} ended while it was used", evidence=program.said())

    def _start(self, service: Service) -> None:
        what = f"the service {service.name}"
        program = Background(self._serving, what, service.name, self._addressed(service.command))
        ready = self._addressed(service.ready)
        asked = self._ask(service, ready, program)
        try:
            self._run.keep(ready, asked, f"ready-{service.name}")
        except WorkloadError as error:
            how = "did not become ready" if program.is_alive() else "ended before it was ready"
            evidence = "\n".join(part for part in (program.said(), error.evidence) if part)
            raise WorkloadError(f"{what} {how}: {error.message}", remedy=error.remedy, evidence=evidence) from error
        if not program.is_alive():
            raise WorkloadError(
                f"{what} ended, and something else answers where it was to listen",
                remedy="end what listens there, or give the backend a network of its own",
                evidence=program.said(),
            )
        self._services.append((service.name, program))

    def _ask(self, service: Service, ready: Command, program: Background) -> Completed:
        """How ``ready`` ended the last time: well, too late, or without a service to ask."""
        deadline = time.monotonic() + service.ready_within_s
        while True:
            asked = self._instance.execute(ready)
            if asked.returncode == 0 or time.monotonic() >= deadline or not program.is_alive():
                return asked
            sleep(_ASKED_EVERY_S)

    def _execute(self, command: Command, role: str) -> tuple[Completed, str]:
        addressed = self._addressed(command)
        completed = self._instance.execute(addressed)
        return completed, self.keep(addressed, completed, role)

    def keep(self, command: Command, completed: Completed, role: str) -> str:
        """As ``InstanceRun.keep``. Raises WorkloadError, with the service that had ended if that is why."""
        try:
            return self._run.keep(command, completed, role)
        except WorkloadError:
            # A timeout may have ended the services too, together with the command.
            deadline = time.monotonic() + _ENDS_WITHIN_S
            while not completed.timed_out and self._services:
                self.check()
                if time.monotonic() >= deadline:
                    break
                time.sleep(_ASKED_EVERY_S)
            raise

    def _addressed(self, command: Command) -> Command:
        port = "" if self.image_service is None else str(self.image_service.service.port)
        argv = tuple(argument.replace(SERVER, self._address).replace(PORT, port) for argument in command.argv)
        env: Mapping[str, str] = {name: value.replace(SERVER, self._address) for name, value in command.env.items()}
        return msgspec.structs.replace(command, argv=argv, env=env)


def prime_work(run: InstanceRun, workload: Workload) -> None:
    """Run a workload once in an instance, with its set-up and services. Raises as ``Work``."""
    with run.start() as instance:
        work = Work(run, workload.commands(run.params, run.envelope), instance)
        work.measure("prime")
        work.end()


def _address_of(serving: Instance, *, is_own: bool) -> str:
    """Where services in ``serving`` are reached, by itself or by another instance, and nothing else listens.

    Instances that share the host's network have a loopback address each.
    """
    if serving.address == LOOPBACK:
        return own_loopback()
    if is_own:
        return LOOPBACK
    if serving.address is None:
        raise BackendError(
            "the instance that is to serve has no network that another can reach it by",
            remedy="give the backend a network (its option network), or state server = 'same-instance'",
        )
    return serving.address


def difference(before: float | None, after: float | None) -> float | None:
    """What a meter counted between two readings; None where the host has no such meter."""
    return None if before is None or after is None else after - before


def total(values: Iterable[float | None]) -> float | None:
    """Their sum; None if one is not known."""
    known = 0.0
    for value in values:
        if value is None:
            return None
        known += value
    return known
