"""Signals are requests: noted where something is held, raised at the waits, once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tare.bench import interrupts
from tare.bench.interrupts import check, heed, held, interruptible, sleep
from tare.bench.process import run


def send(number: signal.Signals = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0)  # the handler runs before the next instruction


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_interrupts_at_once_where_nothing_is_held(number):
    with heed(), pytest.raises(KeyboardInterrupt), interruptible():  # noqa: PT012
        send(number)
        pytest.fail("it went on")


def test_what_is_held_is_finished_first():
    done = []
    with heed(), pytest.raises(KeyboardInterrupt), interruptible():  # noqa: PT012 - where it is raised is the test
        with held():
            send()
            done.append("made")
        done.append("after it")
    assert done == ["made"]


def test_a_signal_that_came_before_a_wait_interrupts_it():
    with heed(), held():
        send()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            sleep(5)
        assert time.monotonic() - started < 1
        sleep(0)  # once is enough: what follows is cleaning up


def test_a_signal_ends_a_wait_for_a_program():
    threading.Timer(0.2, send).start()
    started = time.monotonic()
    with heed(), held(), pytest.raises(KeyboardInterrupt):
        run(["sleep", "20"], timeout_s=30)
    assert time.monotonic() - started < 5


def test_further_signals_only_say_that_it_is_cleaned_up(capfd):
    with heed():
        with pytest.raises(KeyboardInterrupt), interruptible():
            send()
        send()
        send(signal.SIGTERM)
        with interruptible():
            check()
    assert capfd.readouterr().err.count("still cleaning up") == 2


def test_code_without_a_safe_point_is_interrupted_after_a_while(monkeypatch):
    monkeypatch.setattr(interrupts, "GRACE_S", 0.2)
    started = time.monotonic()
    with heed(), pytest.raises(KeyboardInterrupt), held():  # noqa: PT012
        send()
        time.sleep(20)
    assert 0.15 < time.monotonic() - started < 5


def test_other_threads_are_interrupted_where_they_look():
    found = []

    def work() -> None:
        try:
            while True:
                check()
                time.sleep(0.01)
        except KeyboardInterrupt:
            found.append("interrupted")

    with heed():
        thread = threading.Thread(target=work)
        thread.start()
        send()
        thread.join(5)
    assert found == ["interrupted"]


def test_handlers_are_put_back_and_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with heed(), interruptible():
            send(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with heed(), interruptible():
        check()  # a request of an earlier command is not this one's


EARLY = """
import builtins, os, signal, sys
real = builtins.__import__
def slow(name, *rest, **more):
    if name == "typer":
        builtins.__import__ = real
        os.kill(os.getpid(), signal.Signals[sys.argv.pop(1)])
    return real(name, *rest, **more)
from tare.bench.cli import main
builtins.__import__ = slow
main()
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_tare_is_still_being_loaded_ends_with_130(number, tmp_path):
    environment = {**os.environ, "TARE_STATE_DIR": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", EARLY, number, "list"],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (130, ""), ended
    assert ended.stderr == "tare: interrupted\n"
