"""Servers and their clients in real instances, and what is told when a server does not do as it should."""

from pathlib import Path

import msgspec
import pytest

from tare.backends.bare_metal import BareMetal
from tare.backends.native.backend import Native
from tare.bench.errors import WorkloadError
from tare.bench.experiments.work import Work
from tare.bench.interfaces import Instance
from tare.bench.ledger import Ledger
from tare.bench.limits_met import raise_if_failed
from tare.bench.model import Command, Commands, Completed, Image
from tare.bench.units import decode_quantity
from tare.workloads.mariadb import MariaDB
from tare.workloads.nginx import Nginx
from tare.workloads.postgresql import PostgreSQL
from tare.workloads.redis import Redis
from tests.privileged.host_kernel import ENVELOPE, spec, start_backend

pytestmark = [pytest.mark.root, pytest.mark.image]


class Run:
    """The part of ``InstanceRun`` that ``Work`` needs."""

    def execute(self, instance: Instance, command: Command, role: str) -> tuple[Completed, str]:
        completed = instance.execute(command)
        return completed, self.keep(command, completed, role)

    def keep(self, command: Command, completed: Completed, role: str) -> str:
        raise_if_failed(command, completed, ENVELOPE)
        return role


def prepare(instance: Instance, commands: Commands) -> Work:
    return Work(Run(), commands, instance)  # type: ignore[arg-type]  # as much of a run as it needs


@pytest.fixture(scope="module", params=[Native, BareMetal], ids=lambda kind: kind.name)
def backend(request, catalogue_image: Image, tmp_path_factory: pytest.TempPathFactory):
    folder: Path = tmp_path_factory.mktemp("applications")
    with (
        Ledger(folder / "ledger") as ledger,
        start_backend(request.param.name, catalogue_image, folder / "w", ledger) as started,
    ):
        yield started


SMALL = [
    (Redis, {"requests": 2000, "clients": 10, "pipeline": 4}),
    (Nginx, {"connections": 2}),
    (PostgreSQL, {}),
    (MariaDB, {"rows": 100}),
]


@pytest.mark.parametrize(("kind", "params"), SMALL, ids=lambda value: getattr(value, "name", ""))
def test_a_server_answers_its_client(backend, catalogue_image, kind, params):
    if kind in (PostgreSQL, MariaDB) and backend.name != Native.name:
        pytest.skip("databases take their time, and one kind of instance shows that they work")
    workload = kind()
    envelope = msgspec.structs.replace(ENVELOPE, memory_bytes=512 * 2**20)
    commands = workload.commands(msgspec.convert(params, workload.Params, dec_hook=decode_quantity), envelope)
    with backend.start(spec(workload.name, catalogue_image, envelope)) as instance:
        work = prepare(instance, commands)
        completed, _ = work.measure()
        assert {found.metric for found in workload.parse(completed)} == {metric.name for metric in workload.metrics}
        assert all(sum(histogram.counts) > 10 for histogram in workload.histograms(completed))
        work.end()


def serve(instance: Instance, commands: Commands) -> None:
    work = prepare(instance, commands)
    work.measure()
    work.end()


REDIS = Redis().commands(Redis.Params(requests=1000, clients=2), ENVELOPE)
(SERVER_OF_REDIS,) = REDIS.services


def faulty(**changes: object) -> Commands:
    return msgspec.structs.replace(REDIS, services=(msgspec.structs.replace(SERVER_OF_REDIS, **changes),))


TWICE = msgspec.structs.replace(
    REDIS, services=(SERVER_OF_REDIS, msgspec.structs.replace(SERVER_OF_REDIS, name="second"))
)
LONG = Redis().commands(Redis.Params(requests=1_000_000_000, clients=2), ENVELOPE).measured
DIES = msgspec.structs.replace(
    REDIS,
    measured=Command(
        ("sh", "-c", '(sleep 0.2; redis-cli -h "$3" -p 26379 shutdown nosave) & exec "$@"', "sh", *LONG.argv),
        timeout_s=60.0,
    ),
)


@pytest.mark.parametrize(
    ("commands", "message", "said"),
    [
        (faulty(command=Command(("no-such-server",))), "the service redis ended before it was ready", "not found"),
        (
            faulty(command=Command(("sleep", "60")), ready_within_s=0.2),
            "the service redis did not become ready",
            "Connection refused",
        ),
        (TWICE, "the service second ended", "Address already in use"),
        (DIES, "the service redis ended while it was used", "User requested shutdown"),
    ],
    ids=["missing", "never-ready", "port-taken", "dies"],
)
def test_a_server_that_fails_is_told_with_its_last_words(backend, catalogue_image, commands, message, said):
    with backend.start(spec("faulty", catalogue_image)) as instance, pytest.raises(WorkloadError) as caught:
        serve(instance, commands)
    assert message in caught.value.message
    assert said in caught.value.evidence
