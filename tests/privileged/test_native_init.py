"""What an instance's first process does: zygote.c with each C library."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tare.backends.native import zygote as program
from tare.bench.errors import MissingToolError, WorkloadError
from tare.bench.ledger import Ledger
from tare.bench.model import Command
from tests.privileged.host_kernel import ENVELOPE, spec, start_backend

pytestmark = [pytest.mark.root, pytest.mark.image]

COMPILERS = program._COMPILERS
SAME = (
    *("Uid", "Gid", "Groups", "NStgid", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"),
    *("Seccomp_filters", "Cpus_allowed", "Mems_allowed", "SigBlk"),
)
NAMESPACES = ("mnt", "pid", "net", "uts", "ipc", "cgroup", "user", "time")


@pytest.fixture(scope="module", params=["musl", "glibc"])
def instance(request, image, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "glibc":
            patch.setattr(program, "_COMPILERS", {"musl": "no-such-compiler", "glibc": "gcc"})
        with Ledger(folder / "ledger") as ledger, start_backend("native", image, folder / "work", ledger) as backend:
            assert backend.prepare(image, ENVELOPE).facts["init"].text == f"c ({request.param})"
            with backend.start(spec("init", image)) as started:
                assert Path(f"/proc/{started.pid}/comm").read_text().strip() == "tare-init"
                yield started


def run(instance, *argv, **more):
    return instance.execute(Command(argv, **more))


def facts_of(pid):
    """What a process may do and where it is, seen from the host. Its depth in pid namespaces instead of its pids."""
    status = dict(re.findall(r"(\w+):[ \t]*(.*)", Path(f"/proc/{pid}/status").read_text()))
    status["NStgid"] = len(status["NStgid"].split())
    found = {name: status[name] for name in SAME if name in status}
    found |= {name: str(Path(f"/proc/{pid}/ns/{name}").readlink()) for name in NAMESPACES}
    found["cgroup"] = (Path(f"/proc/{pid}/cgroup").read_text(), found["cgroup"])
    return found | {"root": str(Path(f"/proc/{pid}/root/etc/hostname").stat().st_ino)}


def test_commands_and_what_they_leave_behind_are_confined_as_init_is(instance):
    run(instance, "sh", "-c", "echo here > /etc/hostname; setsid sleep 1000 </dev/null >/dev/null 2>&1 & sleep 1001 &")
    others = [pid for pid in instance.cgroup.members() if pid != instance.pid]
    assert len(others) == 2
    for pid in others:
        assert facts_of(pid) == facts_of(instance.pid)
        os.kill(pid, signal.SIGKILL)


def test_how_commands_end(instance):
    assert run(instance, "sh", "-c", "exit 7").returncode == 7
    done = run(instance, "sh", "-c", "kill -9 $$")
    assert (done.returncode, done.signal) == (None, 9)
    done = run(instance, "no-such-program")
    assert (done.returncode, done.stderr) == (127, b"tare: no-such-program: No such file or directory\n")
    done = run(instance, "/etc/passwd")
    assert (done.returncode, done.stderr) == (126, b"tare: /etc/passwd: Permission denied\n")
    assert run(instance, "/etc").returncode == 126
    assert run(instance, "true", env={"PATH": "/nowhere:/etc"}).returncode == 127
    with pytest.raises(WorkloadError, match="working directory /nowhere: No such file"):
        run(instance, "true", cwd="/nowhere")
    assert run(instance, "pwd", cwd="/usr").stdout == b"/usr\n"
    assert run(instance, "pwd").stdout == b"/\n"


def test_arguments_and_environment_arrive(instance):
    arguments = ["", "two words", "ü\n", *(str(number) for number in range(20_000))]
    done = run(instance, "printf", r"%s\0", *arguments)
    assert done.stdout.decode().split("\0")[:-1] == arguments
    assert run(instance, "sh", "-c", 'printf "$A"', env={"A": "b=c d"}).stdout == b"b=c d"
    assert run(instance, "sleep", "").returncode == 1, "an empty last argument is one"


def test_orphans_are_reaped_while_a_command_runs_and_after(instance):
    run(instance, "sh", "-c", "(sleep 0.1 &); (sleep 0.4 &); sleep 0.2")
    deadline = time.monotonic() + 60
    while len(instance.cgroup.members()) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not children_of(instance.pid)


def children_of(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_signals_are_as_a_program_expects_them(instance):
    status = run(instance, "cat", "/proc/self/status").stdout.decode()
    glibc_own = 0b11 << 31  # signals 32 and 33, which every posix_spawn of glibc leaves ignored
    assert int(re.search(r"SigIgn:\s+(\w+)", status)[1], 16) & ~glibc_own == 0
    assert int(re.search(r"SigBlk:\s+(\w+)", status)[1], 16) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_to_init_reach_the_command_that_runs_and_nothing_afterwards(instance, number):
    script = f"trap 'echo told; exit 3' {number.name[3:]}; kill -{number.name[3:]} 1; sleep 20 & wait"
    done = run(instance, "sh", "-c", script)
    assert (done.returncode, done.stdout) == (3, b"told\n")
    os.kill(instance.pid, number)
    assert run(instance, "true").returncode == 0


def test_what_is_compiled_is_kept_and_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "_COMPILERS", COMPILERS)
    cache = tmp_path / "new" / "cache"
    found = program.find_program(cache, tmp_path)
    (kept,) = cache.iterdir()
    assert (found.library, kept.read_bytes()) == ("musl", found.content)
    assert found.content.startswith(b"\x7fELF")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "new"]
    kept.write_bytes(b"kept")
    assert program.find_program(cache, tmp_path) == program.Program(b"kept", "musl")


def test_without_a_compiler_the_remedy_names_one(tmp_path, monkeypatch):
    assert program.probe_program(tmp_path) is None
    monkeypatch.setattr(program, "_COMPILERS", {"musl": "no-such-compiler", "glibc": "no-such-compiler"})
    found = program.probe_program(tmp_path)
    assert not found.available
    assert "gcc" in found.remedy
    with pytest.raises(MissingToolError):
        program.find_program(tmp_path, tmp_path)
