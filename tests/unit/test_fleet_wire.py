"""What the user's side takes from a host, and a worker from anybody: real schedulers and workers, on loopback.

The user's side runs in a process of its own, since it changes how Dask reads messages.
"""

import subprocess
import sys

import pytest

pytest.importorskip("distributed")

SERVE = """
import asyncio, sys
from tare.bench.fleet.wire import Exchange

async def main():
    async with Exchange("tcp://127.0.0.1:0", None, ["a", "b"], lambda *asked: repr(asked).encode()) as exchange:
        print(exchange.address, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        for call, content in (("echo", {"n": 1}), ("fails", None), ("bug", None), ("fetches", None)):
            print(await exchange.call("a", call, content), flush=True)
        told = []
        await exchange.call("a", "tells", None, lambda kind, content: told.append((kind, content)))
        print(told, flush=True)
        await exchange.call("a", "leave", None)

asyncio.run(main())
"""
WORK = """
import asyncio, sys
from pathlib import Path
from tare.bench.errors import TareError
from tare.bench.fleet.wire import work

async def echo(worker, content, told):
    return content

async def fails(worker, content, told):
    raise TareError("no", remedy="try")

async def bug(worker, content, told):
    raise KeyError("x")

async def fetches(worker, content, told):
    return await worker.fetch("image", 5, 7)

async def tells(worker, content, told):
    told("standing", {"done": 3})
    await asyncio.sleep(0.2)

async def leave(worker, content, told):
    worker.dismissed = True

calls = {one.__name__: one for one in (echo, fails, bug, fetches, tells, leave)}
print(asyncio.run(work(sys.argv[1], "a", calls, None, Path(sys.argv[2]))))
"""
ATTACK = """
import asyncio, os, sys
from distributed.comm import connect
from distributed.protocol.serialize import ToPickle, to_serialize

class Evil:
    def __reduce__(self):
        return os.mkdir, (sys.argv[2],)

async def ended(comm):
    try:
        return await comm.read()
    except OSError:
        return "closed"

async def main():
    for message in (
        {"op": "run_function", "function": to_serialize(Evil()), "reply": True},
        {"op": "register-client", "client": "mine", "reply": True},
        {"op": "terminate", "reply": True},
        {"op": "tell", "name": "stranger", "ticket": "t", "kind": "answer", "content": 1},
        {"op": "register-worker", "name": "stranger", "address": "tcp://127.0.0.1:1"},
        {"op": "tell", "name": "a", "ticket": "t", "kind": "answer", "content": ToPickle(Evil())},
    ):
        comm = await connect(sys.argv[1])
        await comm.write(message)
        answer = await ended(comm)
        print(message["op"], answer if isinstance(answer, str) else answer.get("status"), flush=True)
        comm.abort()

asyncio.run(main())
"""


@pytest.fixture
def user():
    argv = [sys.executable, "-c", SERVE]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(argv, text=True, **pipes) as process:
        yield process, process.stdout.readline().strip()
        process.kill()


def test_calls_answers_and_what_is_told(user, tmp_path):
    process, address = user
    argv = [sys.executable, "-c", WORK, address, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as worker:
        out, _ = process.communicate("go\n", timeout=120)
        assert out.splitlines() == [
            "{'value': {'n': 1}}",
            "{'error': 'no', 'remedy': 'try'}",
            """{'error': "bug raised KeyError: 'x'", 'remedy': ''}""",
            """{'value': b"('a', 'image', 5, 7)"}""",
            "[('standing', {'done': 3})]",
        ]
        assert worker.communicate(timeout=60)[0] == "True\n"


def test_strangers_operations_and_pickles_are_refused(user, tmp_path):
    _, address = user
    mark = tmp_path / "executed"
    argv = [sys.executable, "-c", ATTACK, address, str(mark)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True)
    said = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert set(said.values()) <= {"closed", "uncaught-error"}, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 6
    assert not mark.exists()


def test_the_command_line_loads_no_dask():
    loaded = "[one for one in ('dask', 'distributed', 'asyncssh') if one in sys.modules]"
    code = f"import sys, tare.bench.cli.fleet; print({loaded})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_dask_says_nothing_of_its_own():
    """Interrupted at some moments, its client would log a traceback next to the one line of tare's."""
    code = """
import logging
import distributed.client, distributed.scheduler
from tare.bench.fleet.wire import quiet
names = ("distributed", "distributed.client", "distributed.scheduler", "distributed.worker", "tornado")
before = [name for name in names if logging.getLogger(name).isEnabledFor(logging.CRITICAL)]
quiet()
print(len(before), [name for name in names if logging.getLogger(name).isEnabledFor(logging.CRITICAL)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "5 []\n"
