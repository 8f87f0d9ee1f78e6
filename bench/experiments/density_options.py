"""What a suite can choose about a ramp."""

from collections.abc import Callable

import msgspec

from tare.bench.units import parse_duration, parse_size

MOST = 100_000


class DensityOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[experiment.options]`` of ``density``.

    The ramp ends at ``count`` instances, or earlier: when the next would leave less than ``memory_floor`` available
    (empty: a tenth of the host's memory, at least 1 GiB), when three starts in a row took longer than ``start_limit``,
    when the workload's p99 is above ``objective``, or when something failed.

    Memory is read after each ``batch`` of starts. ``rate`` is in starts a second (0: one after another).
    ``meters_every`` is how many instances lie between readings of the instances' own meters (0: ``count`` / 20).
    ``latency`` and ``throughput`` name metrics of the workload (empty: its first p99 and its first rate).
    ``settle_interval`` and ``settle_deadline`` are for the waiting until memory no longer changes.
    """

    count: int = 50
    batch: int = 1
    rate: float = 0.0
    memory_floor: str = ""
    start_limit: str = ""
    objective: str = ""
    latency: str = ""
    throughput: str = ""
    meters_every: int = 0
    settle_interval: str = "1s"
    settle_deadline: str = "30s"

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST:
            raise ValueError(f"count: must be from 1 to {MOST}, not {self.count}")
        if not 1 <= self.batch <= self.count:
            raise ValueError(f"batch: must be from 1 to the count, {self.count}, not {self.batch}")
        if self.rate < 0:
            raise ValueError(f"rate: must be 0 or more starts a second, not {self.rate:g}")
        if self.meters_every < 0:
            raise ValueError(f"meters_every: must be 0 or more, not {self.meters_every}")
        if self.memory_floor:
            _named("memory_floor", parse_size, self.memory_floor)
        for name in ("start_limit", "objective", "settle_interval", "settle_deadline"):
            text = getattr(self, name)
            if text and _named(name, parse_duration, text) <= 0:
                raise ValueError(f"{name}: must be more than 0, not {text!r}")

    @property
    def floor_bytes(self) -> int | None:
        """The stated floor; None for the default."""
        return parse_size(self.memory_floor) if self.memory_floor else None

    @property
    def start_limit_s(self) -> float | None:
        """The stated limit; None without."""
        return parse_duration(self.start_limit) if self.start_limit else None

    @property
    def objective_s(self) -> float | None:
        """The stated objective; None without."""
        return parse_duration(self.objective) if self.objective else None

    @property
    def every(self) -> int:
        """How many instances lie between two readings of the instances' own meters."""
        return self.meters_every or max(1, self.count // 20)


def _named(name: str, parse: Callable[[str], float], text: str) -> float:
    try:
        return float(parse(text))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
