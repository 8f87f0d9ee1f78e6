"""How noisy this host is, by bare metal measured against itself, and what can be seen of why.

Two backends of the same type with the same options run the same work in the same random blocks, through the same
machinery as any run. Whatever differs between them is noise, and the smallest difference that would stand out from it
is the host's noise floor.

``HostWatch`` looks at the host before and after a measurement; settings and facts are looked at once. A cause that this
host does not show is not named, which does not mean that there is none.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from tare.bench.analysis import analyse
from tare.bench.catalogue import Builtin
from tare.bench.disturbance import Disturbance
from tare.bench.linux.cpus import CpuTimes, format_cpus, parse_cpus, read_cpu_times
from tare.bench.linux.files import HERE, HostRoots, find_text
from tare.bench.linux.pressure import read_stalls
from tare.bench.linux.processes import Status, read_statuses
from tare.bench.model import Fact
from tare.bench.registry import find_backends, find_workloads
from tare.bench.stats.comparisons import Verdict
from tare.bench.stats.families import Member, control_false_discoveries
from tare.bench.stats.noise import NoiseSource
from tare.bench.store import LoadedRun
from tare.bench.suite import Suite, bind_suite, resolve_suite
from tare.bench.tune.settings import SETTINGS, describe_now, irqs, obstacle, read_value
from tare.bench.units import Unit

TWINS = ("bare-metal", "bare-metal again")
FEWEST_BLOCKS = 4
_UNREACHED = 0.0005
"""A precision that no host reaches in minutes: blocks are added until the time is spent."""
_NOWHERE = Path("noise suite")
WORTH_NAMING = 0.01
"""Shares of time below 1 % are not named."""
_INTERRUPTS_PER_S = 10.0


class MetricFloor(msgspec.Struct, frozen=True):
    """What one metric said of bare metal against itself.

    ``ratio`` with ``low`` and ``high`` (95 %) is A over B, None where values of 0 or one block allow none.
    ``smallest_difference`` is the share by which a metric has to differ to be told from no difference in nine of ten
    runs of this length. ``false_alarm`` says that the two differ, after correction for many comparisons, though they
    are the same.
    """

    subject: str
    metric: str
    unit: Unit
    leading: bool
    ratio: float | None
    low: float | None
    high: float | None
    smallest_difference: float | None
    n_blocks: int
    false_alarm: bool


def noise_suite(time_s: float) -> Suite:
    """Starting, computing, memory and storage on bare metal under two names for ``time_s`` seconds, in blocks of 6."""
    sampling = {
        "blocks": FEWEST_BLOCKS,
        "iterations": 1,
        "warmup": 0,
        "precision": _UNREACHED,
        "max_time": f"{time_s}s",
    }
    source = {
        "suite": {"name": "noise", "description": "How much does bare metal differ from itself on this host?"},
        "sampling": sampling,
        "backend": [{"type": "bare-metal", "name": name} for name in TWINS],
        "experiment": [
            {"kind": Builtin.BOOT},
            {"kind": Builtin.STEADY, "workload": "sysbench-cpu", "params": {"runtime_s": 1}},
            {"kind": Builtin.STEADY, "workload": "sysbench-memory", "params": {"runtime_s": 1}},
            {
                "kind": Builtin.STEADY,
                "workload": "fio",
                "params": {"rw": "randread", "block_size": "4KiB", "size": "16MiB", "runtime_s": 0.5},
            },
        ],
    }
    return bind_suite(resolve_suite(source, _NOWHERE, find_backends(), find_workloads()))


def find_floors(run: LoadedRun) -> list[MetricFloor]:
    """The noise floor of every metric that the work itself measures, the leading one of each workload first.

    Sizes are left out: what memory an instance holds does not vary with the host's noise, and two launchers side by
    side share pages unequally.
    """
    found = [
        (subject.title, row, row.noise_floor)
        for subject in analyse(run, margin=0.0).subjects
        for row in sorted(subject.rows, key=lambda row: not row.is_leading)
        if row.noise_floor is not None and row.noise_floor.source is NoiseSource.TWIN
        if row.is_workload_metric and row.metric.unit is not Unit.BYTE
    ]
    corrected = control_false_discoveries(
        [Member(floor.comparison, row.metric.name, subject, row.is_leading) for subject, row, floor in found]
    )
    return [
        MetricFloor(
            subject=subject,
            metric=row.metric.name,
            unit=row.metric.unit,
            leading=row.is_leading,
            ratio=comparison.ratio,
            low=comparison.low,
            high=comparison.high,
            smallest_difference=None if floor.detectable is None else floor.detectable - 1,
            n_blocks=floor.n_blocks,
            false_alarm=comparison.verdict_adjusted in (Verdict.FASTER, Verdict.SLOWER),
        )
        for (subject, row, floor), comparison in zip(found, corrected, strict=True)
    ]


class Cause(msgspec.Struct, frozen=True):
    """One cause of noise: what was seen, and what to do about it."""

    code: str
    seen: str
    remedy: str


class Look(msgspec.Struct, frozen=True):
    """The host at one moment. ``interrupts`` counts those of devices on the watched CPUs, by number and name."""

    at_s: float
    siblings: CpuTimes | None
    stalls: dict[str, float]
    interrupts: dict[str, int]
    processes: dict[int, Status]


class HostWatch:
    """Looks at the host around a measurement on ``cpus``."""

    def __init__(self, cpus: Sequence[int], roots: HostRoots = HERE) -> None:
        """Takes the first look."""
        self.cpus = frozenset(cpus)
        self.roots = roots
        self.siblings = _siblings(self.cpus, roots)
        self._before = self._look()

    def causes(self, disturbances: Sequence[Disturbance], facts: Sequence[Fact]) -> list[Cause]:
        """What is seen by now; ``disturbances`` are those of the instances measured, ``facts`` the host's."""
        after = self._look()
        return [
            *_from_instances(disturbances, self._busiest(after)),
            *self._from_looks(after),
            *_from_facts(facts),
            *_from_settings(self.roots, self.cpus),
        ]

    def _look(self) -> Look:
        return Look(
            at_s=time.monotonic(),
            siblings=read_cpu_times(self.siblings, self.roots) if self.siblings else None,
            stalls=read_stalls(self.roots),
            interrupts=_interrupts(self.cpus, self.roots),
            processes=read_statuses(self.roots),
        )

    def _from_looks(self, after: Look) -> Iterator[Cause]:
        before, span = self._before, after.at_s - self._before.at_s
        if span <= 0:
            return
        if before.siblings and after.siblings:
            share = (after.siblings.busy_s - before.siblings.busy_s) / span / len(self.siblings)
            if share > WORTH_NAMING:
                yield Cause(
                    "smt-siblings",
                    f"the SMT siblings of the instances' CPUs (CPU {format_cpus(self.siblings)}) were busy {share:.0%} "
                    "of the time, and share their cores",
                    "give the envelope both siblings of a core (envelope.cpus = [...]), or switch SMT off: "
                    "tare tune apply --only smt",
                )
        counted = {
            name: after.interrupts[name] - n for name, n in before.interrupts.items() if name in after.interrupts
        }
        rate = sum(counted.values()) / span
        if rate > _INTERRUPTS_PER_S:
            most = sorted(counted, key=lambda name: -counted[name])[:3]
            named = ", ".join(f"{name} {counted[name] / span:.0f}/s" for name in most if counted[name])
            yield Cause(
                "interrupts",
                f"{rate:.0f} device interrupts a second on the instances' CPUs ({named}), those of their own storage "
                "work among them",
                "tare tune apply --only irq (and stop irqbalance, if it runs)",
            )

    def _busiest(self, after: Look) -> str:
        """Who else ran on the instances' CPUs: processes that were there all the time, the busiest first."""
        own = os.getpid()
        found = {}
        for pid, process in after.processes.items():
            earlier = self._before.processes.get(pid)
            if earlier is not None and earlier.started == process.started and process.cpu in self.cpus and pid != own:
                found[f"{process.name} ({pid})"] = process.cpu_s - earlier.cpu_s
        most = sorted(found, key=lambda name: -found[name])[:3]
        return ", ".join(f"{name} {found[name]:.1f} s" for name in most if found[name] >= 0.1)


def _from_instances(disturbances: Sequence[Disturbance], busiest: str) -> Iterator[Cause]:
    def share(name: str, *, of_cpus: bool) -> float:
        known = [one for one in disturbances if getattr(one, name) is not None]
        spans = sum(one.span_s * (one.cpus if of_cpus else 1) for one in known)
        return float(sum(getattr(one, name) for one in known) / spans) if spans else 0.0

    if (stolen := share("steal_s", of_cpus=True)) > WORTH_NAMING / 10:
        yield Cause(
            "steal",
            f"the hypervisor above took {stolen:.1%} of the instances' CPU time",
            "use a host whose CPUs are not shared (a dedicated or bare-metal instance)",
        )
    if (other := share("other_s", of_cpus=True)) > WORTH_NAMING:
        who = f"; processes last seen there: {busiest}" if busiest else ""
        yield Cause(
            "other-load",
            f"other work took {other:.1%} of the instances' CPU time{who}",
            "stop it, or keep it off those CPUs (systemd: CPUAffinity=; boot with isolcpus= and nohz_full=)",
        )
    for name, what in (("cpu", "a CPU"), ("memory", "memory"), ("io", "storage")):
        if (stalled := share(f"{name}_stall_s", of_cpus=False)) > 5 * WORTH_NAMING:
            yield Cause(
                f"pressure-{name}",
                f"some task on the host waited for {what} {stalled:.0%} of the time (PSI), instances included",
                f"stop what else needs {what}",
            )
    told = [one.frequency_hz for one in disturbances if one.frequency_hz is not None]
    if told and max(told) > 1.02 * min(told):
        yield Cause(
            "frequency",
            f"the instances' CPUs ended their work at {min(told) / 1e9:.2f} to {max(told) / 1e9:.2f} GHz",
            "tare tune apply --only governor --only turbo",
        )
    if throttles := sum(one.throttles or 0 for one in disturbances):
        yield Cause(
            "throttling", f"the CPUs were slowed down for heat {throttles} times", "cool it, or switch turbo off"
        )
    if steps := [one.clock_step_s for one in disturbances if abs(one.clock_step_s) > 0.001]:
        yield Cause(
            "clock-step",
            f"the wall clock was set {len(steps)} times, by up to {max(map(abs, steps)):.3f} s",
            "let NTP slew the clock instead of stepping it",
        )


def _from_facts(facts: Sequence[Fact]) -> Iterator[Cause]:
    known = {fact.name: fact.text for fact in facts}
    if known.get("virtualization", "none seen") != "none seen":
        yield Cause(
            "virtual-machine",
            f"this host is itself a virtual machine ({known['virtualization']}): somebody else schedules its CPUs",
            "measure on a physical machine, or on one whose virtual CPUs are pinned",
        )
    if known.get("address space randomisation", "0") != "0":
        yield Cause(
            "aslr",
            "each start draws a new memory layout, so starts differ",
            "leave it: one fixed layout would look like a difference; more blocks narrow it",
        )


def _from_settings(roots: HostRoots, cpus: frozenset[int]) -> Iterator[Cause]:
    for setting in SETTINGS:
        # What can be seen at work is named by that: interrupts that come, siblings that are busy.
        if setting.name in ("irq", "smt"):
            continue
        now = describe_now(setting, roots, cpus)
        if not now or now == setting.recommended:
            continue
        problem = obstacle(setting, roots, cpus)
        remedy = f"tare tune apply --only {setting.name}" + (f" (not possible now: {problem})" if problem else "")
        yield Cause(setting.name, f"{setting.title}: {now}; {setting.recommended} is better: {setting.why}", remedy)


def _siblings(cpus: frozenset[int], roots: HostRoots) -> frozenset[int]:
    """CPUs that share a core with one of these and are none of them."""
    found: set[int] = set()
    for cpu in cpus:
        with contextlib.suppress(OSError, ValueError):
            found |= parse_cpus(read_value(roots.sys / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"))
    return frozenset(found - cpus)


def _interrupts(cpus: frozenset[int], roots: HostRoots) -> dict[str, int]:
    """How many interrupts of devices these CPUs have had, by number and name."""
    head, *lines = (find_text(roots.proc / "interrupts") or "").splitlines() or [""]
    wanted = {f"CPU{cpu}" for cpu in cpus}
    columns = [place for place, name in enumerate(head.split()) if name in wanted]
    numbers = {folder.name for folder in irqs(roots)}
    found = {}
    for line in lines:
        number, _, rest = line.strip().partition(":")
        fields = rest.split()
        if number in numbers and len(fields) > max(columns, default=0):
            counts = [fields[place] for place in columns]
            if all(count.isdigit() for count in counts):
                found[f"{number} {fields[-1]}"] = sum(map(int, counts))
    return found
