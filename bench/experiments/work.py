"""A workload made ready in its instance: set up, its services answering, what it wants loaded there."""

import time
from collections.abc import Mapping

import msgspec

from tare.bench.errors import BackendError, WorkloadError
from tare.bench.experiments.background import Background
from tare.bench.experiments.base import InstanceRun
from tare.bench.interfaces import Instance
from tare.bench.model import SERVER, Command, Commands, Completed, Service
from tare.bench.network_path import LOOPBACK, own_loopback

_ASKED_EVERY_S = 0.05
"""Between two questions to a service that does not answer yet: they take its CPU while it starts."""


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
        self._address = _loopback_of(instance) if serving is None else _address_of(serving)
        self._services: list[tuple[Service, Background]] = []
        self.measured = self._addressed(commands.measured)
        for command in commands.setup:
            run.execute(self._serving, self._addressed(command), "setup")
        for service in commands.services:
            self._start(service)
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
        for service, program in self._services:
            if not program.is_alive():
                raise WorkloadError(f"the service {service.name} ended while it was used", evidence=program.said())

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
        self._services.append((service, program))

    def _ask(self, service: Service, ready: Command, program: Background) -> Completed:
        """How ``ready`` ended the last time: well, too late, or without a service to ask."""
        deadline = time.monotonic() + service.ready_within_s
        while True:
            asked = self._instance.execute(ready)
            if asked.returncode == 0 or time.monotonic() >= deadline or not program.is_alive():
                return asked
            time.sleep(_ASKED_EVERY_S)

    def _execute(self, command: Command, role: str) -> tuple[Completed, str]:
        addressed = self._addressed(command)
        completed = self._instance.execute(addressed)
        try:
            return completed, self._run.keep(addressed, completed, role)
        except WorkloadError:
            # A timeout may have ended the services too, together with the command.
            if not completed.timed_out:
                self.check()
            raise

    def _addressed(self, command: Command) -> Command:
        argv = tuple(argument.replace(SERVER, self._address) for argument in command.argv)
        env: Mapping[str, str] = {name: value.replace(SERVER, self._address) for name, value in command.env.items()}
        return msgspec.structs.replace(command, argv=argv, env=env)


def _loopback_of(instance: Instance) -> str:
    """Where it reaches itself, and nothing else listens: beside it may be others that share the host's network."""
    return own_loopback() if instance.address == LOOPBACK else LOOPBACK


def _address_of(serving: Instance) -> str:
    if serving.address is None:
        raise BackendError(
            "the instance that is to serve has no network that another can reach it by",
            remedy="give the backend a network (its option network), or state server = 'same-instance'",
        )
    return own_loopback() if serving.address == LOOPBACK else serving.address
