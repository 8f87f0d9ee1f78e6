"""A workload made ready in its instance: set up, its services answering, what it wants loaded there."""

import time
from collections.abc import Mapping

import msgspec

from bench.errors import BackendError, WorkloadError
from bench.experiments.background import Background
from bench.experiments.base import InstanceRun
from bench.interfaces import Instance
from bench.model import SERVER, Command, Commands, Completed, Service
from bench.network_path import LOOPBACK


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
        self._address = LOOPBACK if serving is None else _address_of(serving)
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
        try:
            self._await(service, program)
        except WorkloadError as error:
            how = "did not become ready" if program.is_alive() else "ended before it was ready"
            evidence = "\n".join(part for part in (program.said(), error.evidence) if part)
            raise WorkloadError(f"{what} {how}: {error.message}", remedy=error.remedy, evidence=evidence) from error
        self._services.append((service, program))
        self.check()  # something else may answer on its port

    def _await(self, service: Service, program: Background) -> None:
        ready = self._addressed(service.ready)
        deadline = time.monotonic() + service.ready_within_s
        while True:
            try:
                self._run.execute(self._instance, ready, f"ready-{service.name}")
            except WorkloadError:
                if time.monotonic() >= deadline or not program.is_alive():
                    raise
            else:
                return

    def _execute(self, command: Command, role: str) -> tuple[Completed, str]:
        try:
            return self._run.execute(self._instance, self._addressed(command), role)
        except WorkloadError:
            self.check()
            raise

    def _addressed(self, command: Command) -> Command:
        argv = tuple(argument.replace(SERVER, self._address) for argument in command.argv)
        env: Mapping[str, str] = {name: value.replace(SERVER, self._address) for name, value in command.env.items()}
        return msgspec.structs.replace(command, argv=argv, env=env)


def _address_of(serving: Instance) -> str:
    if serving.address is None:
        raise BackendError(
            "the instance that is to serve has no network that another can reach it by",
            remedy="give the backend a network (its option network), or state server = 'same-instance'",
        )
    return serving.address
