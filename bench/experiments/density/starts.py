"""The starts of a ramp, one after another, at a rate or at the same time, and which instances have ended since."""

import select
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack

from tare.bench.interfaces import Instance, InstanceRun
from tare.bench.model import Phase


class Alive:
    """Knows instances by their numbers. One whose backend offers no descriptor is never reported as gone."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._numbers: dict[int, int] = {}

    def add(self, instance: Instance, number: int) -> None:
        """From now on this one is looked at too."""
        descriptor = instance.gone_descriptor()
        if descriptor is not None:
            self._poll.register(descriptor, select.EPOLLIN)
            self._numbers[descriptor] = number

    def find_gone(self, wait_s: float = 0.0) -> int | None:
        """The number of one that has ended; if none has, that of the first to do so within ``wait_s``."""
        gone = [self._numbers[descriptor] for descriptor, _ in self._poll.poll(wait_s)]
        return min(gone, default=None)

    def close(self) -> None:
        """Give up the descriptor behind it. The instances' own are theirs."""
        self._poll.close()


class Starts:
    """Starts instances, each of which is stopped when ``stack`` is left. ``rate`` is in starts a second, 0 for none."""

    def __init__(self, run: InstanceRun, rate: float, alive: Alive, stack: ExitStack) -> None:
        self._run = run
        self._rate = rate
        self._alive = alive
        self._stack = stack
        self._asked = 0
        self._first_s = time.monotonic()

    def start(self, number: int) -> Iterator[list[Instance]]:
        """So many, in the groups in which they were started: all, or singles where the backend starts one at a time.

        None from when one is found to have died. If a start fails, those of its group that are ready come first.
        Raises what the start raised.
        """
        at_once = min(number, self._run.concurrent_starts)
        if at_once > 1:
            yield from self._start_group(number, at_once)
            return
        for _ in range(number):
            if not self._may_start(1):
                return
            yield [self._start()]

    def _start_group(self, number: int, at_once: int) -> Iterator[list[Instance]]:
        """In a thread each. All that began are waited for, whatever happens: what starts has to be stopped."""
        if not self._may_start(number):
            return
        threads = ThreadPoolExecutor(at_once, thread_name_prefix="start")
        starts = [threads.submit(self._start) for _ in range(number)]
        try:
            wait(starts)
        finally:
            threads.shutdown(cancel_futures=True)
        ready = [start.result() for start in starts if start.exception() is None]
        yield sorted(ready, key=lambda instance: instance.timeline.marks[Phase.READY])
        for start in starts:
            start.result()

    def _start(self) -> Instance:
        return self._stack.enter_context(self._run.start())

    def _may_start(self, number: int) -> bool:
        """Wait for the turn of the next ``number``, where a rate is stated; False once an instance has died."""
        due = self._first_s + self._asked / self._rate if self._rate else 0.0
        self._asked += number
        return self._alive.find_gone(max(0.0, due - time.monotonic())) is None
