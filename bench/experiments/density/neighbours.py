"""Neighbours that do something else while the workload is measured: a density for mixed objectives.

The first instances, ``services``, run the workload; all others run an aggressor of ``interference`` meanwhile, bounded
in time. The population counts both.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tare.bench.errors import WorkloadError
from tare.bench.experiments.interference import aggressor_argv
from tare.bench.experiments.work import Background
from tare.bench.interfaces import Instance, InstanceRun
from tare.bench.model import SCRATCH, Command

_SPARE_S = 60.0
"""A neighbour outlives the measured command by this much, should nobody stop it."""


class Neighbours:
    """What the instances beyond the services do."""

    def __init__(self, run: InstanceRun, kind: str, measured: Command) -> None:
        self._what = f"the neighbour's work ({kind})"
        self._command = Command(aggressor_argv(kind, run.envelope, measured.timeout_s + _SPARE_S), cwd=SCRATCH)

    @contextmanager
    def at_work(self, instances: Sequence[Instance]) -> Iterator[None]:
        """All of them work until the block ends. Raises WorkloadError if one had ended by then, BackendError."""
        programs: list[Background] = []
        try:
            programs.extend(Background(instance, self._what, "neighbour", self._command) for instance in instances)
            yield
            for one in programs:
                if not one.is_alive():
                    raise WorkloadError(
                        f"{one.what} ended while the service was measured",
                        remedy="give the envelope more memory, pids or scratch, or choose another neighbour",
                        evidence=one.said(),
                    )
        finally:
            for one in programs:
                one.stop()
