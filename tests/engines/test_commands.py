"""Commands of an engine: born in their cgroups, ended with their block, and what each end of theirs is called."""

import contextlib
import os
import secrets
import signal
import time

import pytest

from tare.backends.cgroups.layout import find_layout
from tare.backends.cgroups.lifecycle import start_cgroup
from tare.backends.engines.commands import start_command
from tare.backends.native.zygote import find_program
from tare.bench.errors import BackendError
from tare.bench.ledger import Ledger
from tare.bench.linux.cgroups import begin_kill, find_folders, members_of
from tare.bench.locations import cache_directory

pytestmark = [pytest.mark.root, pytest.mark.tools]

DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A cgroup of the test's own in every hierarchy, and tare's program."""
    folder = tmp_path_factory.mktemp("commands")
    program = folder / "program"
    program.write_bytes(find_program(cache_directory(), folder).content)
    program.chmod(0o555)
    with Ledger(folder / "ledger") as ledger:
        name = f"tare-commands-{secrets.token_hex(4)}"
        with start_cgroup(ledger, name, {"cpus": (min(os.sched_getaffinity(0)),)}, find_layout()) as cgroup:
            yield program, cgroup, folder


def command(place, *argv, joins=None):
    program, cgroup, folder = place
    return start_command(program, argv, cgroup.join_files if joins is None else joins, [], folder / "log", {})


def deadline():
    return time.monotonic() + DEADLINE_S


def test_it_begins_in_every_cgroup_and_is_a_child_of_this_process(place):
    _, cgroup, _ = place
    with command(place, "sleep", "3600") as started:
        started.require_executed(deadline())
        folders, _ = find_folders(started.pid)
        assert set(cgroup.folders) <= set(folders.values())
        assert os.getsid(started.pid) == started.pid, "no signal for tare's own terminal reaches it"
        assert os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None  # it is our child
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOHANG)
    assert not any(members_of(folder) for folder in cgroup.folders)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 0", None),
        ("echo no space >&2; exit 7", "failed with exit status 7: no space"),
        ("echo lost >&2; kill -TERM $$", "was killed by signal 15: lost"),
    ],
)
def test_its_end(place, script, said):
    with contextlib.ExitStack() as stack:
        started = stack.enter_context(command(place, "sh", "-c", script))
        if said is None:
            started.finish(deadline())
        else:
            with pytest.raises(BackendError, match=f" {said}$"):
                started.finish(deadline())


def test_a_cgroup_that_is_gone(place):
    _, cgroup, folder = place
    gone = [folder / "gone/cgroup.procs", *(file for file in cgroup.join_files if file.name == "tasks")]
    with pytest.raises(BackendError, match=r"^true could not be started: No such file or directory$"):
        command(place, "true", joins=gone).__enter__()


def test_one_that_is_killed_while_it_runs(place):
    _, cgroup, _ = place
    if cgroup.clone_into is None:
        pytest.skip("no cgroup v2 here, whose cgroup.kill it is about")
    with command(place, "sleep", "3600") as started:
        started.require_executed(deadline())
        begin_kill(cgroup.clone_into)
        with pytest.raises(BackendError, match=f"was killed by signal {signal.SIGKILL:d}"):
            started.finish(deadline())
