"""The instances of a ramp: started one after another, at a rate or at the same time, watched for their end, metered.

And the host's memory, when it has stopped changing.
"""

import resource
import select
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager

import msgspec

from tare.bench.engine import EngineShare
from tare.bench.interfaces import Instance, InstanceRun
from tare.bench.interrupts import interruptible, sleep
from tare.bench.linux.host_memory import HostMemory, read_memory
from tare.bench.linux.pressure import read_stalls
from tare.bench.model import Footprint, Phase

MOST_SAMPLED = 8
"""How many instances have their own meters read: a PSS costs the kernel a walk over all their pages."""
HOLD = 3
"""How many of the readings taken while memory was steady are kept: they show its noise and its drift."""
_WINDOW = 4
_PAGES_PER_CPU = 2**20
"""The kernel counts pages per CPU and adds up now and then: smaller changes than this say nothing."""


def default_floor(total_bytes: int) -> int:
    """The MemAvailable under which no instance is started: a tenth of the memory, and 1 GiB at least."""
    return max(total_bytes // 10, 2**30)


class Settled(msgspec.Struct, frozen=True):
    """Memory that was waited for. ``steady`` is False if it was still changing when the time was up."""

    readings: tuple[HostMemory, ...]
    waited_s: float
    steady: bool


def settle(
    interval_s: float,
    deadline_s: float,
    read: Callable[[], HostMemory] = read_memory,
    pause: Callable[[float], None] = sleep,
) -> Settled:
    """Read memory every ``interval_s`` until it has stopped changing, or ``deadline_s`` have passed.

    The kernel does not announce that it has given memory back, so it is polled. Memory has stopped changing when what
    its last readings went up or down together is no more than they scatter, or no more than the kernel's own counting
    errs.
    """
    readings = [read()]
    began = readings[0].at_s
    while True:
        pause(interval_s)
        readings.append(read())
        steady = len(readings) >= _WINDOW and is_steady([reading.unused for reading in readings[-_WINDOW:]])
        waited_s = readings[-1].at_s - began
        if steady or waited_s >= deadline_s:
            return Settled(tuple(readings[-HOLD:]), waited_s, steady)


def is_steady(values: Sequence[float]) -> bool:
    """Whether equally spaced readings go neither up nor down beyond what they scatter about their line."""
    count = len(values)
    middle = (count - 1) / 2
    mean = sum(values) / count
    slope = sum((k - middle) * (value - mean) for k, value in enumerate(values))
    slope /= sum((k - middle) ** 2 for k in range(count))
    scatter = sum((value - mean - slope * (k - middle)) ** 2 for k, value in enumerate(values)) / (count - 2)
    return bool(abs(slope) * (count - 1) <= max(2 * scatter**0.5, _PAGES_PER_CPU))


class Stalls:
    """Pressure (PSI) since it was last asked, in seconds by resource; what this kernel does not report is left out."""

    def __init__(self) -> None:
        self._last = read_stalls()

    def since_last(self) -> dict[str, float]:
        """The stalls since the last call."""
        now = read_stalls()
        found = {name: seconds - self._last[name] for name, seconds in now.items() if name in self._last}
        self._last = now
        return found


class SampledInstances:
    """Reads the meters of some of the live instances, spread over them by age, the oldest and the newest among them."""

    def __init__(self) -> None:
        self._cpu: dict[int, tuple[float, float]] = {}

    def choose(self, population: int) -> list[int]:
        """The places (from 0, by age) of those to read."""
        count = min(population, MOST_SAMPLED)
        if count < 2:
            return list(range(count))
        return sorted({round(k * (population - 1) / (count - 1)) for k in range(count)})

    def footprints(self, instances: Sequence[Instance]) -> list[tuple[int, Footprint]]:
        """The footprints of those chosen, by their places.

        The newest is read first: it may have to become idle, and what it then shares is no longer another's alone.
        """
        return [(place, instances[place].footprint()) for place in reversed(self.choose(len(instances)))][::-1]

    def engine_shares(self, instances: Sequence[Instance]) -> list[EngineShare]:
        """What the engine costs for those chosen; none where there is no engine."""
        shares = (instances[place].engine_share() for place in self.choose(len(instances)))
        return [share for share in shares if share is not None]

    def idle_cpus(self, instances: Sequence[Instance], least_s: float) -> float | None:
        """CPUs that an instance kept busy since it was last read, on average; None if none was read ``least_s`` ago."""
        if self._cpu and time.monotonic() - max(at_s for _, at_s in self._cpu.values()) < least_s:
            return None
        rates = []
        for place, (used_before, before_s) in self._cpu.items():
            now = self._read(instances[place])
            if now is not None:
                rates.append((now[0] - used_before) / (now[1] - before_s))
        self.begin_idle(instances)
        return sum(rates) / len(rates) if rates else None

    def begin_idle(self, instances: Sequence[Instance]) -> None:
        """Count what the instances use from now on: until now they were busy."""
        readings = {place: self._read(instances[place]) for place in self.choose(len(instances))}
        self._cpu = {place: reading for place, reading in readings.items() if reading is not None}

    def _read(self, instance: Instance) -> tuple[float, float] | None:
        used = instance.usage().cpu_s
        return None if used is None else (used, time.monotonic())


@contextmanager
def many_files() -> Iterator[None]:
    """As many open files as this process may have: each live instance keeps some of them open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


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

    def discard(self, instance: Instance) -> None:
        """It is about to be ended, and not to be reported."""
        descriptor = instance.gone_descriptor()
        if descriptor is not None and self._numbers.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def find_gone(self, wait_s: float = 0.0) -> int | None:
        """The number of one that has ended; if none has, that of the first to do so within ``wait_s``."""
        with interruptible():
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
            with interruptible():
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
