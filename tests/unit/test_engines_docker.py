"""What Docker is asked for, how its answers and its silence are told, and calls that block in a thread."""

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from tare.backends.cgroups.lifecycle import NEVER_REACHED
from tare.backends.engines import docker, docker_api
from tare.backends.engines.box import EngineOptions, Network
from tare.backends.engines.calls import Call
from tare.backends.engines.docker import Docker, DockerOptions
from tare.backends.engines.docker_api import Api, NoAnswerError, NotFoundError, why_not_reached
from tare.backends.engines.docker_container import LIMITED, describe_version, make_container, parse_stats
from tare.backends.engines.docker_server import configuration, start_archive
from tare.backends.engines.oci import Runc
from tare.backends.engines.oci_config import Bind, Plan
from tare.backends.native.seccomp import DEFAULT_CAPABILITIES
from tare.bench.errors import BackendError, UnavailableError
from tare.bench.interfaces import BackendContext
from tare.bench.ledger import Ledger
from tare.bench.model import Availability, Envelope, IsolationKind
from tare.bench.network_path import ServerPlace

pytest.importorskip("docker", reason="the extra docker is not installed")

LIMITS = {
    "cpus": (1, 3),
    "cpu_quota": 0.5,
    "cpu_weight": 50,
    "memory_bytes": 2**28,
    "swap_bytes": 2**20,
    "pids_max": 77,
    "io_device": "254:16",
    "io_write_bytes_per_s": 1_000_000,
    "io_read_ops_per_s": 30,
}


def make(limits=LIMITS, seccomp=True, **more):
    plan = Plan(
        root="tarebench:1",
        argv=("/.tare/program", "live"),
        hostname="tare-1",
        cgroup="/tare-1",
        limits=limits,
        binds=(Bind("/work/a:b", "/.tare", read_only=True), Bind("/work/scratch", "/scratch")),
        capabilities=tuple(dict(DEFAULT_CAPABILITIES).values()),
        seccomp=seccomp,
    )
    given = {"labels": {"tarebench": "tare-1"}, "runtime": "runc", "network": "none", "device": "/work/device"}
    return make_container(plan, **{**given, **more})


def test_the_envelope_in_dockers_units():
    host = make()["HostConfig"]
    assert set(LIMITS) - {"io_device"} <= set(LIMITED)
    assert (host["CpusetCpus"], host["CpuQuota"], host["CpuPeriod"], host["CpuShares"]) == ("1,3", 50_000, 100_000, 512)
    assert (host["Memory"], host["MemorySwap"], host["PidsLimit"]) == (2**28, 2**28 + 2**20, 77)
    assert host["BlkioDeviceWriteBps"] == [{"Path": "/work/device", "Rate": 1_000_000}]
    assert host["BlkioDeviceReadIOps"] == [{"Path": "/work/device", "Rate": 30}]
    assert "BlkioDeviceReadBps" not in host


def test_v1_counts_a_device_by_rules_that_no_device_reaches():
    host = make(counts_by_rules=True)["HostConfig"]
    assert host["BlkioDeviceReadBps"] == [{"Path": "/work/device", "Rate": NEVER_REACHED}]
    assert host["BlkioDeviceWriteBps"] == [{"Path": "/work/device", "Rate": 1_000_000}]


def test_without_a_limit_docker_is_told_of_none():
    host = make({}, device=None, counts_by_rules=True)["HostConfig"]
    assert [key for key in host if key.startswith(("Cpu", "Memory", "Pids", "Blkio"))] == []
    assert make({"memory_bytes": 2**28})["HostConfig"]["MemorySwap"] == 2**28, "no swap where none is allowed"


def test_the_profile_and_what_is_given():
    made = make()
    host = made["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert len(host["CapAdd"]) == 14
    kind, _, profile = host["SecurityOpt"][1].partition("=")
    assert (host["SecurityOpt"][0], kind) == ("no-new-privileges", "seccomp")
    assert json.loads(profile)["defaultAction"] == "SCMP_ACT_ERRNO"
    assert make(seccomp=False)["HostConfig"]["SecurityOpt"][1] == "seccomp=unconfined"
    assert [mount["Source"] for mount in host["Mounts"]] == ["/work/a:b", "/work/scratch"], "a colon is no separator"
    assert [mount["ReadOnly"] for mount in host["Mounts"]] == [True, False]
    assert made["Entrypoint"] == ["/.tare/program", "live"]
    assert made["Labels"] == {"tarebench": "tare-1"}
    assert host["CgroupParent"] == "/tare-1"


def test_answers():
    stats = {"cpu_stats": {"cpu_usage": {"total_usage": 1_500_000_000}}, "memory_stats": {"usage": 4096}}
    assert parse_stats(stats) == (1.5, 4096)
    components = [{"Name": "Engine", "Version": "1"}, {"Name": "containerd", "Version": "1.6.20"}]
    assert describe_version({"Version": "20.10.24", "Components": components}) == "Docker 20.10.24 (containerd 1.6.20)"
    assert describe_version({"Version": "26.1"}) == "Docker 26.1"


def test_a_private_daemon_leaves_the_host_alone():
    said = configuration(Path("/work/docker"), "overlay2", ())
    assert [said[name] for name in ("bridge", "iptables", "ip6tables", "ip-forward", "ip-masq")] == [
        "none",
        *([False] * 4),
    ]
    assert configuration(Path("/work/docker"), "overlay2", (), bridge=True)["bridge"] == ""
    places = [said["data-root"], said["exec-root"], said["pidfile"], *said["hosts"]]
    assert places == ["/work/docker", "/run/docker", "/run/docker.pid", "unix:///run/docker.sock"]


@contextlib.contextmanager
def fake_daemon(tmp_path, answers, *, version="1.41"):
    """A server at a socket that answers by path; a path that is not there gets no answer at all."""
    path = tmp_path / "docker.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    answers = {"/version": (200, {"ApiVersion": version, "Version": "9"}), **answers}
    held = []

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            said = connection.recv(65536)
            if not said:  # somebody tried whether there is an answer
                connection.close()
                continue
            while b"chunked" in said and not said.endswith(b"0\r\n\r\n"):
                said += connection.recv(65536)
            asked = said.split(b" ")[1].decode().partition("?")[0]
            name = next((name for name in answers if asked.endswith(name)), None)
            if name is None:
                held.append(connection)
                continue
            code, body = answers[name]
            text = json.dumps(body).encode()
            head = f"HTTP/1.1 {code} x\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n"
            connection.sendall(head.encode() + b"Connection: close\r\n\r\n" + text)
            connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield path
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for connection in held:
            connection.close()


@contextlib.contextmanager
def answering(tmp_path, answers, timeout_s=5.0):
    with (
        fake_daemon(tmp_path, answers) as path,
        contextlib.closing(Api(str(path), timeout_s=timeout_s)) as api,
    ):
        yield api


def test_what_docker_refuses_is_told_in_its_words(tmp_path):
    refusal = (500, {"message": "no space left on device"})
    missing = (404, {"message": "No such image: x"})
    with answering(tmp_path, {"/start": refusal, "/create": missing}) as api:
        with pytest.raises(BackendError, match=r"^Docker could not start the container: no space left on device$"):
            api.start("x")
        with pytest.raises(NotFoundError, match=r"^Docker could not create the container: No such image: x$"):
            api.create("x", {"Image": "x"})


def test_a_daemon_that_says_nothing_is_given_up(tmp_path):
    with (
        answering(tmp_path, {}, timeout_s=0.2) as api,
        pytest.raises(NoAnswerError, match="did not start the container: it did not answer in time"),
    ):
        api.start("x")


def test_a_daemon_that_is_not_there(tmp_path):
    with pytest.raises(NoAnswerError, match="did not tell its version: No such file or directory"):
        Api(str(tmp_path / "nothing.sock"), timeout_s=1)


def test_a_daemon_of_another_version(tmp_path):
    with fake_daemon(tmp_path, {}, version="1.30") as path, pytest.raises(UnavailableError, match=r"needs 1\.41"):
        Api(str(path), timeout_s=1)


def test_an_import_that_fails_half_way(tmp_path):
    failed = {"error": "write /x: no space left on device"}
    with (
        answering(tmp_path, {"/images/create": (200, failed)}) as api,
        pytest.raises(BackendError, match="could not import the image: write /x: no space"),
    ):
        api.import_image(iter([b"x"]), "tarebench:1", [])


@pytest.fixture
def backend(tmp_path, monkeypatch):
    here = Availability(available=True, reason="")
    monkeypatch.setattr("tare.backends.engines.core.probe_host", lambda _: here)
    monkeypatch.setattr("tare.backends.engines.core.probe_program", lambda _: None)
    with Ledger(tmp_path / "ledger") as ledger:
        yield lambda **options: Docker(BackendContext(ledger, tmp_path, tmp_path, DockerOptions(**options), ()))


def test_what_is_missing_is_named_with_the_command_that_installs_it(backend, monkeypatch):
    monkeypatch.setattr("tare.backends.engines.core.find_tool", lambda _: None)
    found = backend().probe()
    assert not found.available
    assert found.reason == "dockerd is not installed"
    assert found.remedy.endswith("apt-get install --no-install-recommends docker.io")
    monkeypatch.setattr("tare.backends.engines.core.find_tool", Path)
    monkeypatch.setattr(docker, "find_tool", lambda _: None)
    assert backend(runtime="crun").probe().remedy.endswith("install --no-install-recommends crun")
    monkeypatch.setattr(docker, "have_library", lambda: False)
    assert backend().probe().remedy == "pip install 'tarebench[docker]'"


def test_on_gvisor_it_is_what_gvisor_is(backend):
    on_gvisor, on_runc = backend(runtime=docker.Runtime.RUNSC), backend()
    assert (on_gvisor.isolation(), on_gvisor.interactive) == (IsolationKind.USER_MODE_KERNEL, False)
    assert (on_runc.isolation(), on_runc.interactive) == (IsolationKind.CONTAINER, True)
    assert on_gvisor.concurrent_starts < on_runc.concurrent_starts
    assert on_gvisor.tells_by_stream()
    assert not on_runc.tells_by_stream()


def test_networks_that_it_has():
    envelope = Envelope((0,), 1 << 28, 1 << 28, 64)
    Docker.check(DockerOptions(network=Network.BRIDGE), envelope)
    Docker.check_server(DockerOptions(network=Network.BRIDGE), ServerPlace.HOST)
    with pytest.raises(ValueError, match='network: the runtime "runsc" has no "bridge" here'):
        Docker.check(DockerOptions(network=Network.BRIDGE, runtime=docker.Runtime.RUNSC), envelope)
    with pytest.raises(ValueError, match='network: runc has no "bridge": none, host'):
        Runc.check(EngineOptions(network=Network.BRIDGE), envelope)


def test_the_users_socket(backend, tmp_path, monkeypatch):
    monkeypatch.setattr("tare.backends.engines.core.find_tool", lambda _: None)
    nothing = tmp_path / "nothing.sock"
    assert backend(socket=str(nothing)).probe().reason == f"there is no socket {nothing}"
    for info, reason in (
        ({"CgroupDriver": "systemd"}, "cgroup driver systemd"),
        ({"CgroupDriver": "cgroupfs", "Runtimes": {"crun": {}}}, "no runtime runc"),
        ({"CgroupDriver": "cgroupfs", "Runtimes": {"runc": {}}}, "answers"),
    ):
        folder = tmp_path / reason.replace(" ", "-")
        folder.mkdir()
        with fake_daemon(folder, {"/info": (200, info)}) as path:
            found = backend(socket=str(path)).probe()
        assert reason in found.reason
        assert found.available == (reason == "answers")
    monkeypatch.setattr(docker_api.os, "access", lambda *_: False)
    there = tmp_path / "there"
    there.touch()
    assert why_not_reached(there) == f"this user may not use {there}"


def test_an_archive_is_whole_or_refused(tmp_path, monkeypatch):
    (tmp_path / "tree/below").mkdir(parents=True)
    (tmp_path / "tree/below/file").write_bytes(b"x" * 3_000_000)
    with start_archive(tmp_path / "tree") as content:
        assert sum(map(len, content)) > 3_000_000
    missing = start_archive(tmp_path / "nothing-here")
    assert list(missing.__enter__()) == []
    with pytest.raises(BackendError, match=r"could not archive the image: .*nothing-here"):
        missing.__exit__(None, None, None)


def test_a_call_ends_by_a_descriptor():
    begin = threading.Event()
    call = Call("a start", begin.wait)
    assert not call.have_ended(0.01)
    with pytest.raises(BackendError, match="a start did not end in time"):
        call.finish(time.monotonic() + 0.01)
    begin.set()
    call.finish(time.monotonic() + 10)
    call.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(call.fileno())


def test_a_call_that_fails_fails_whoever_waits():
    def fail():
        raise BackendError("refused")

    call = Call("a start", fail)
    with contextlib.closing(call), pytest.raises(BackendError, match="refused"):
        call.finish(time.monotonic() + 10)
    assert call.printed() == "refused"
