"""Docker's daemon: killed, hanging, of the user's, without room; what Docker says of its containers itself.

Only for ``nox -s engines``: preparing takes some seconds each time.
"""

import contextlib
import gc
import os
import random
import secrets
import signal
import sys
import threading
import warnings
from pathlib import Path

import msgspec
import pytest

from tare.backends.cgroups.layout import find_layout
from tare.backends.engines import docker_server
from tare.backends.engines.docker import LABEL, Docker, DockerOptions
from tare.backends.engines.docker_container import parse_stats
from tare.backends.engines.docker_server import Place, PrivateServer
from tare.backends.engines.groups import Groups, start_groups
from tare.backends.native.zygote import find_program
from tare.bench.engine import StartedBy
from tare.bench.errors import BackendError, TareError
from tare.bench.interfaces import BackendContext
from tare.bench.ledger import Ledger, clean, work_folder
from tare.bench.linux.mounts import read_mounts
from tare.bench.locations import cache_directory, work_directory
from tare.bench.model import Command, Envelope
from tare.bench.process import DEVNULL, PIPE, Popen, TimeoutExpired, run
from tare.bench.registry import find_backends
from tare.bench.testing.subject import start_subject, traces_of

KILLS = 30
CPU = max(os.sched_getaffinity(0))

pytestmark = [
    pytest.mark.root,
    pytest.mark.image,
    pytest.mark.tools,
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),  # as ``collect`` says
    pytest.mark.skipif(os.environ.get("TARE_TEST_ENGINES") != "all", reason="nox -s engines"),
]


def collect():
    """The library leaves sockets whose daemon is gone to the garbage collector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(autouse=True)
def collected():
    yield
    collect()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A ledger and a work folder, in neither of which anything is left at the end."""
    work = work_directory() / secrets.token_hex(4)
    with Ledger(tmp_path_factory.mktemp("ledger")) as ledger, work_folder(ledger, work):
        yield ledger, work
        assert list(work.iterdir()) == []


@pytest.fixture(scope="module")
def subject(place, image):
    ledger, work = place
    with start_subject(Docker, ledger, work, image) as made:
        yield made
    collect()


def kill_daemon(daemon, number=signal.SIGKILL):
    with contextlib.suppress(ProcessLookupError):
        os.kill(daemon.pid, number)


def assert_works(subject):
    identifier, starting = subject.start()
    with starting as instance:
        assert instance.execute(Command(("true",))).returncode == 0
    assert traces_of(identifier, subject.backend.context.work_directory) == []


def test_it_agrees_with_what_docker_measures_itself(subject):
    _, starting = subject.start()
    with starting as instance:
        busy = "import time\nheld = bytearray(b'x') * 60_000_000\nwhile time.process_time() < 1.0: pass"
        instance.execute(Command(("python3", "-c", busy)))
        instance.execute(Command(("sh", "-c", "head -c 40000000 /dev/zero > /dev/shm/held")))
        container = subject.backend.server.api
        cpu_s, memory_bytes = parse_stats(container.stats(box_of(instance).identifier))
        usage = instance.cgroup.meter.usage()
    assert cpu_s > 1.0
    assert usage.cpu_s == pytest.approx(cpu_s, rel=0.02)
    assert memory_bytes > 40_000_000
    assert usage.memory_current_bytes == pytest.approx(memory_bytes, rel=0.05)


def box_of(instance):
    return instance._box


def test_shim_and_daemon_are_told_apart(subject):
    _, starting = subject.start()
    with starting as instance:
        share, footprint = instance.engine_share(), instance.footprint()
        names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in box_of(instance).groups.meter.members()}
        event_s = instance.engine_running_s()
        began = instance.timeline.started
    assert "containerd-shim" in names
    assert 3_000_000 < share.memory_bytes < footprint.pss_bytes < 40_000_000, "one shim, and what is inside"
    assert share.daemon_memory_bytes > 40_000_000, "dockerd and containerd"
    assert share.cpu_s > 0
    assert 0 < share.daemon_cpu_s < 2
    assert abs(event_s - began[StartedBy.RETURNED]) < 0.2, "the event is of about when the call returns"
    assert event_s > began[StartedBy.INSTRUCTION] - 0.2


def test_a_daemon_killed_at_any_moment_fails_one_instance_and_is_started_again(subject):
    chance, failures = random.Random(20), []
    for _ in range(KILLS):
        subject.backend.require_daemon()
        daemon = subject.backend.daemon
        timer = threading.Timer(chance.uniform(0.0, 0.6), kill_daemon, (daemon,))
        identifier, starting = subject.start()
        timer.start()
        try:
            with starting as instance:
                assert instance.execute(Command(("true",))).returncode == 0
                timer.join()
        except TareError as error:
            failures.append(error.message)
        timer.join()
        assert traces_of(identifier, subject.backend.context.work_directory) == []
        assert len(subject.ledger.entries()) <= 12, "what has ended is struck out"
    assert failures
    assert [message for message in failures if "Docker" not in message and "dockerd" not in message] == []
    assert_works(subject)


def test_a_daemon_that_hangs_in_a_start_is_ended_at_the_deadline(subject, monkeypatch):
    subject.backend.require_daemon()
    monkeypatch.setattr(Docker, "start_deadline_s", 1.5)
    kill_daemon(subject.backend.daemon, signal.SIGSTOP)
    identifier, starting = subject.start()
    with pytest.raises(BackendError, match="within its deadline"), starting:
        pass
    assert traces_of(identifier, subject.backend.context.work_directory) == []
    monkeypatch.undo()
    assert_works(subject)


def test_a_daemon_that_hangs_in_a_stop_is_ended_at_the_deadline(subject):
    identifier, starting = subject.start()
    starting.__enter__()
    subject.backend.server.api.client.timeout = 1.0
    kill_daemon(subject.backend.daemon, signal.SIGSTOP)
    with pytest.raises(BackendError, match="did not remove the container: it did not answer in time"):
        starting.__exit__(None, None, None)
    assert traces_of(identifier, subject.backend.context.work_directory) == []
    assert_works(subject)


def test_a_container_that_is_killed_from_outside_is_one_failed_instance(subject):
    identifier, starting = subject.start()
    with starting as instance:
        subject.backend.server.api.client.kill(identifier)
        with pytest.raises(BackendError, match="instance"):
            instance.execute(Command(("true",)))
    assert traces_of(identifier, subject.backend.context.work_directory) == []
    assert_works(subject)


def test_a_container_that_is_removed_from_outside_too(subject):
    identifier, starting = subject.start()
    with starting:
        subject.backend.server.api.remove(identifier)
    assert traces_of(identifier, subject.backend.context.work_directory) == []


def test_a_start_that_docker_refuses_says_why_and_leaves_nothing(subject, monkeypatch):
    whole = subject.backend.container
    monkeypatch.setattr(subject.backend, "container", lambda box: whole(box) | {"Image": "nobody/has-this:latest"})
    identifier, starting = subject.start()
    with pytest.raises(BackendError, match="could not create the container: No such image"), starting:
        pass
    monkeypatch.setattr(subject.backend, "container", lambda box: whole(box) | {"Entrypoint": ["/nothing/here"]})
    identifier, starting = subject.start()
    with pytest.raises(BackendError, match=r"could not start the container: .*nothing/here"), starting:
        pass
    assert traces_of(identifier, subject.backend.context.work_directory) == []
    monkeypatch.undo()
    assert_works(subject)


def context_of(ledger, work, options):
    return BackendContext(ledger, work, cache_directory(), options, ())


def prepare(place, image, options, work=None):
    """A backend with ``options``, prepared; closed by itself if that fails."""
    backend = Docker(context_of(place[0], work or place[1], options))
    try:
        return backend, backend.prepare(image, Envelope((CPU,), 320 << 20, 256 << 20, 512))
    finally:
        backend.close()


def test_a_storage_driver_that_is_refused(place, image):
    options, before = msgspec.structs.replace(DockerOptions(), storage="btrfs"), sorted(place[1].iterdir())
    with pytest.raises(BackendError, match=r"dockerd ended before it was ready: .*driver"):
        prepare(place, image, options)
    assert sorted(place[1].iterdir()) == before


def test_no_space_for_the_image(place, image, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(small)], timeout_s=10)
    try:
        with pytest.raises(BackendError, match=r"could not import the image: .*no space left"):
            prepare(place, image, DockerOptions(), small)
        assert list(small.iterdir()) == []
    finally:
        run(["umount", str(small)], timeout_s=10)


@contextlib.contextmanager
def users_daemon(tmp_path):
    """Somebody's daemon, with a container that runs and an image."""
    folder = work_directory() / f"tare-users-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    launcher = folder / "program"
    launcher.write_bytes(find_program(cache_directory(), tmp_path).content)
    launcher.chmod(0o755)
    groups = Groups(find_layout(), folder.name, at_top=True, container="*")
    with Ledger(tmp_path / "users-ledger") as own, start_groups(own, groups):
        groups.make({"cpus": (CPU,)}, (), premade=False)
        server = PrivateServer(
            Place(own, folder, launcher, find_layout(), (CPU,), "overlay2", hosts_network=False, gvisor=()),
            30.0,
        )
        try:
            tree = tmp_path / "tree"
            tree.mkdir()
            (tree / "program").write_bytes(launcher.read_bytes())
            (tree / "program").chmod(0o755)
            docker_server.import_tree(server.api, tree, "users:own", "whose=theirs")
            held = server.api.create(
                "theirs",
                {
                    "Image": "users:own",
                    "Entrypoint": ["/program", "hold"],
                    "OpenStdin": True,
                    "HostConfig": {"NetworkMode": "none", "CgroupParent": f"/{groups.name}"},
                },
            )
            server.api.start(held)
            yield server, folder / "daemon-1/run/docker.sock"
        finally:
            server.close()
            run(["rm", "-rf", str(folder)], timeout_s=60)


def what_they_have(server):
    client = server.api.client
    containers = {one["Id"]: one["State"] for one in client.containers(all=True)}
    running = {one: client.inspect_container(one)["State"]["StartedAt"] for one in containers}
    return containers, running, sorted(tag for one in client.images() for tag in one["RepoTags"] or ())


def test_the_users_own_daemon_keeps_what_is_the_users(place, image, tmp_path):
    with users_daemon(tmp_path) as (server, socket):
        before = what_they_have(server)
        assert list(before[0].values()) == ["running"]
        with start_subject(Docker, *place, image, [f"socket={socket}"]) as subject:
            identifier, starting = subject.start()
            with starting as instance:
                assert instance.execute(Command(("true",))).returncode == 0
                assert instance.engine_share().daemon_cpu_s is None, "whose it is, nobody knows"
                assert instance.engine_share().memory_bytes > 3_000_000, "its shim"
                assert len(what_they_have(server)[0]) == 2
            assert traces_of(identifier, place[1]) == []
        assert what_they_have(server) == before
        assert server.daemon.is_alive()

        # Without an import there is more time in which a container is made, lives, or goes.
        docker_server.import_tree(server.api, image.rootfs, f"{LABEL}:{image.digest[:16]}", f"{LABEL}=others")
        before = what_they_have(server)
        ledger = tmp_path / "killed-ledger"
        work = work_directory() / f"tare-kill-{secrets.token_hex(4)}"
        work.mkdir()
        given, chance = msgspec.json.encode(image, enc_hook=str).decode(), random.Random(7)
        argv = [sys.executable, "-m", "tare.bench.testing.subject", "docker", str(ledger), str(work), given]
        left = 0
        for _ in range(KILLS):
            with Popen([*argv, f"socket={socket}"], stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL) as owner:
                with contextlib.suppress(TimeoutExpired):
                    owner.wait(chance.uniform(1.0, 6.0))
                owner.kill()
            left += what_they_have(server) != before
            assert clean(ledger, lambda kind: find_backends().get(kind).reclaim).failure() is None
            assert what_they_have(server) == before
            assert list(work.iterdir()) == []
        assert left, "some kill left something that was then removed"
        work.rmdir()


@pytest.mark.parametrize(
    "options", [{"runtime": "crun"}, {"runtime": "runsc"}, {"network": "host"}, {"seccomp": "none"}, {"storage": "vfs"}]
)
def test_options(place, image, options):
    with start_subject(Docker, *place, image, [f"{name}={value}" for name, value in options.items()]) as subject:
        identifier, starting = subject.start()
        with starting as instance:
            busy = "import time\nwhile time.process_time() < 0.5: pass"
            assert instance.execute(Command(("python3", "-c", busy))).returncode == 0
            said = instance.execute(Command(("sh", "-c", "grep Seccomp: /proc/self/status; cat /proc/net/dev"))).stdout
            usage, share, footprint = instance.usage(), instance.engine_share(), instance.footprint()
        gvisor = options.get("runtime") == "runsc"  # whose own clock runs on while the host gives it no CPU
        assert usage.cpu_s == pytest.approx((0.1 if gvisor else 0.5) + share.cpu_s, abs=0.4 if gvisor else 0.25)
        assert share.memory_bytes > 3_000_000
        assert footprint.disk_owned_bytes > 0
        assert (b"eth0" in said) == (options.get("network") == "host" and Path("/sys/class/net/eth0").exists())
        if not gvisor:  # its kernel has no filters inside
            assert (b"Seccomp:\t0" in said) == (options.get("seccomp") == "none")
        assert traces_of(identifier, place[1]) == []


SERVE = """
import socket, threading
listener = socket.create_server(("0.0.0.0", 0))
print(listener.getsockname()[1], flush=True)
import os
if os.fork() == 0:
    os.setsid()
    for stream in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), stream)
    peer, address = listener.accept()
    peer.sendall(b"hello " + address[0].encode())
"""
CONNECT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 60) as peer:
    print(peer.makefile().read())
"""


def test_containers_on_dockers_bridge_reach_one_another_and_the_hosts_side(place, image):
    def python(instance, script, *arguments):
        done = instance.execute(Command(("python3", "-c", script, *map(str, arguments))))
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    with start_subject(Docker, *place, image, ["network=bridge"]) as subject:
        _, first = subject.start()
        _, second = subject.start()
        with first as one, second as two, subject.backend.host_side(subject.spec("side")) as side:
            assert len({one.address, two.address, side.address}) == 3
            for server, client in ((one, two), (one, side), (side, two)):
                port = python(server, SERVE)
                assert python(client, CONNECT, server.address, port) == f"hello {client.address}"
            gate = python(one, "print(open('/proc/net/route').read())")
            assert "eth0" in gate


def test_the_hosts_network_and_folders_are_as_they_were(place, image):
    def seen():
        links = sorted(path.name for path in Path("/sys/class/net").iterdir())
        forward = Path("/proc/sys/net/ipv4/ip_forward").read_text()
        folders = [
            path
            for path in (
                "/var/lib/docker",
                "/var/lib/containerd",
                "/run/docker",
                "/run/containerd",
                "/opt/containerd",
                "/etc/docker/key.json",
            )
            if Path(path).exists()
        ]
        return links, forward, folders, sorted(str(mount.point) for mount in read_mounts())

    before = seen()
    for network in ("none", "host", "bridge"):
        with start_subject(Docker, *place, image, [f"network={network}"]) as subject:
            assert_works(subject)
        assert seen() == before
