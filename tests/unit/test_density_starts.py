"""Starts at once, and deaths between steps: what a ramp does while instances come and go by themselves."""

import contextlib
import os
import threading

import pytest

from tare.bench.errors import BackendError
from tests.unit.fakes import FakeBackend, FakeInstance
from tests.unit.test_density import GIB, ending, ramp, values


class Together(FakeBackend):
    """Starts three at once or none: each waits for the two others."""

    concurrent_starts = 3

    def __init__(self) -> None:
        super().__init__()
        self.barrier = threading.Barrier(3, timeout=60)
        self.failing: set[int] = set()

    @contextlib.contextmanager
    def start(self, spec):
        self.barrier.wait()
        if len(self.started) + 1 in self.failing:
            self.started.append(spec.identifier)
            raise BackendError("no more")
        with super().start(spec) as instance:
            yield instance


def test_a_batch_starts_at_the_same_time(tmp_path, monkeypatch):
    backend = Together()
    outcome, run = ramp(tmp_path, monkeypatch, backend, count=9, batch=3)
    assert outcome.failed == 0
    assert (ending(run).reason, ending(run).population) == ("count", 9)
    assert len(set(backend.started)) == 9
    assert list(values(run, "density.start")) == list(range(1, 10))
    assert list(values(run, "density.memory_available")) == [0, 3, 6, 9]


def test_those_that_started_beside_one_that_failed_count_and_are_stopped(tmp_path, monkeypatch):
    backend = Together()
    backend.failing = {5}
    _, run = ramp(tmp_path, monkeypatch, backend, count=9, batch=3)
    assert (ending(run).reason, ending(run).population) == ("failure", 5)
    assert len(backend.started) == 6
    assert backend.live == 0


def test_a_backend_that_starts_one_at_a_time_is_never_asked_for_two(tmp_path, monkeypatch):
    class Single(FakeBackend):
        @contextlib.contextmanager
        def start(self, spec):
            assert threading.current_thread() is threading.main_thread()
            with super().start(spec) as instance:
                yield instance

    _, run = ramp(tmp_path, monkeypatch, Single(), count=6, batch=3)
    assert ending(run).reason == "count"


def test_a_batch_is_no_larger_than_what_fits_above_the_floor(tmp_path, monkeypatch):
    """100 MiB each, 2 GiB above the floor, the envelope's 512 MiB before it is known: 4 first, 16 more by batches."""
    _, run = ramp(tmp_path, monkeypatch, count=500, batch=7, memory_floor=str(10 * GIB))
    assert list(values(run, "density.memory_available"))[:3] == [0, 4, 11]
    assert (ending(run).reason, ending(run).population) == ("memory-floor", 20)


@pytest.mark.parametrize("rate", [0.0, 0.001])
def test_a_death_ends_the_ramp_at_once_with_its_reason(tmp_path, monkeypatch, rate):
    """Also while it waits a quarter of an hour for the next start. No meter is due then."""
    gone: dict[FakeInstance, int] = {}

    def descriptor(self) -> int:
        return gone.setdefault(self, os.eventfd(0))

    def answer(self):
        if self is next(iter(gone)):
            raise BackendError("its init ended", evidence="last words")

    monkeypatch.setattr(FakeInstance, "gone_descriptor", descriptor)
    backend = FakeBackend()
    at = 4 if not rate else 1

    @contextlib.contextmanager
    def start(spec):
        with FakeBackend.start(backend, spec) as instance:
            instance.answer = lambda _: answer(instance)
            if rate:
                timer = threading.Timer(0.2, lambda: os.eventfd_write(gone[instance], 1))
                timer.start()
            elif backend.live == at:
                os.eventfd_write(next(iter(gone.values())), 1)
            yield instance

    backend.start = start
    _, run = ramp(tmp_path, monkeypatch, backend, count=40, meters_every=40, rate=rate)
    for number in gone.values():
        os.close(number)
    told = ending(run)
    assert (told.reason, told.dead) == ("died", 1)
    assert told.population == at
    assert "instance 1 of" in told.message
    assert "its init ended" in told.message
