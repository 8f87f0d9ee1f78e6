"""Realistic run directories without a run: for reports, and for whoever needs one.

``write_run`` makes a directory that ``tare.bench.store.load_run`` reads; what is in it is decided by a ``Recipe`` and a
seed alone. Values follow a two-level model on the log scale: a block's own level (shared by all backends), an
instance's, an iteration's with a heavy tail, times a known ratio for each backend: ``TRUE_RATIOS``.
"""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np

from tare.bench.catalogue import TRAITS
from tare.bench.model import (
    Availability,
    BackendDescription,
    Confound,
    Direction,
    Envelope,
    Fact,
    IsolationKind,
    Metric,
    named_facts,
)
from tare.bench.records import Event, EventKind, Manifest, RunStatus, Sample
from tare.bench.traits import Category, WorkloadTraits
from tare.bench.units import Unit

HOSTILE = (
    "<script>alert('x')</script>",
    "\"quoted\" & 'single' </script><!-- --> {{ 7*7 }} ]]>",
    "line one\nline two\r\n\ttabbed",
    "\u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd",
    "long-" + "n" * 300,
)
"""Names that nobody should be able to break a report with."""

TRUE_RATIOS = {"native": 1.0, "vm": 8.8}


@dataclass(frozen=True)
class Subject:
    """One workload with its metrics: name to (metric, bare-metal value, power by which the slowdown acts)."""

    workload: str
    params: dict
    metrics: tuple[tuple[Metric, float, float], ...]
    duration_s: float


def _metric(name: str, unit: Unit, direction: Direction, description: str) -> Metric:
    return Metric(name, unit, direction, description)


_LOW, _HIGH = Direction.LOWER, Direction.HIGHER

STEADY_METRICS = (
    _metric(
        "command.duration", Unit.SECOND, _LOW, "Time from the start of the command to its end, on the host's clock"
    ),
    _metric("host.cpu", Unit.SECOND, _LOW, "CPU time that one iteration cost the host, user and system"),
    _metric("host.memory_peak", Unit.BYTE, _LOW, "The most memory that the instance was charged with at any time"),
    _metric("host.io_read", Unit.BYTE, _LOW, "Bytes read from storage for one iteration"),
    _metric("instance.start", Unit.SECOND, _LOW, "Time from the request to an instance that can execute commands"),
    _metric("instance.stop", Unit.SECOND, _LOW, "Time from the order to stop until nothing of the instance was left"),
)

BOOT_METRICS = (
    _metric("boot.create", Unit.SECOND, _LOW, "From the request until the thing that isolates exists"),
    _metric("boot.init", Unit.SECOND, _LOW, "From then until the first user-space instruction inside"),
    _metric("boot.ready", Unit.SECOND, _LOW, "From then until a command can be executed"),
    _metric("boot.total", Unit.SECOND, _LOW, "From the request until a command can be executed"),
    _metric("boot.stop", Unit.SECOND, _LOW, "From the order to stop until nothing is left"),
    _metric("boot.vcpu", Unit.SECOND, _LOW, "From the hypervisor's process until the guest's processor runs"),
    _metric("boot.firmware", Unit.SECOND, _LOW, "From then until the guest's kernel begins"),
    _metric("boot.kernel", Unit.SECOND, _LOW, "From then until the first user-space instruction inside"),
    _metric("guest.kernel", Unit.SECOND, _LOW, "The guest kernel's time until it starts init"),
    _metric("guest.init", Unit.SECOND, _LOW, "The guest's time from init until its agent runs"),
)

BOOT_SECONDS = {
    "bare-metal": (0.0021, 0.0006, 0.0009, 0.0012),
    "native": (0.0036, 0.0011, 0.0009, 0.0019),
    "vm": (0.52, 2.9, 0.95, 1.4),
}

SUBJECTS = (
    Subject(
        "sysbench-cpu",
        {"threads": 1, "max_prime": 10000},
        ((_metric("events", Unit.OPERATIONS_PER_SECOND, _HIGH, "Prime searches finished per second"), 3945.0, -1.0),),
        1.0,
    ),
    Subject(
        "fio",
        {"mode": "randread", "block_size": "4k"},
        (
            (_metric("read.iops", Unit.OPERATIONS_PER_SECOND, _HIGH, "Random reads of 4 KiB per second"), 48_200, -0.8),
            (_metric("read.bandwidth", Unit.BYTES_PER_SECOND, _HIGH, "Bytes read per second"), 1.97e8, -0.8),
            (_metric("read.latency.p50", Unit.SECOND, _LOW, "Half of the reads took at most this long"), 18e-6, 0.8),
            (_metric("read.latency.p99", Unit.SECOND, _LOW, "99 of 100 reads took at most this long"), 61e-6, 1.0),
        ),
        2.0,
    ),
    Subject(
        "perf-sched-pipe",
        {"loops": 100000},
        ((_metric("operation.time", Unit.SECOND, _LOW, "One message to another process and back"), 6.2e-6, 1.2),),
        0.7,
    ),
)


WORKLOADS = {
    "sysbench-cpu": WorkloadTraits(Category.CPU, fixed_time=True),
    "fio": WorkloadTraits(Category.STORAGE, fixed_time=True),
    "perf-sched-pipe": WorkloadTraits(Category.KERNEL, fixed_time=False),
}


@dataclass(frozen=True)
class Recipe:
    """What a synthetic run holds. ``failing`` backends have only failures; ``missing`` are unavailable."""

    blocks: int = 5
    instances: int = 1
    iterations: int = 6
    warmups: int = 1
    backends: tuple[str, ...] = ("bare-metal", "native", "vm")
    failing: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    status: RunStatus = RunStatus.COMPLETE
    half_written: bool = False
    hostile: bool = False
    virtual_host: bool = True
    subjects: tuple[Subject, ...] = SUBJECTS
    noise: float = 0.01
    seed: int = 1
    ratios: dict[str, float] = field(default_factory=lambda: dict(TRUE_RATIOS))


QUICK = Recipe()


def write_run(path: Path, recipe: Recipe = QUICK) -> Path:
    """Write the run directory that ``recipe`` asks for to the new folder ``path``; returns it."""
    path.mkdir(parents=True)
    samples, events = _Writer(recipe).write()
    manifest = _manifest(recipe)
    text = json.dumps(msgspec.to_builtins(manifest), indent=2, ensure_ascii=False)
    (path / "manifest.json").write_text(text + "\n", "utf-8")
    lines = b"".join(msgspec.json.encode(sample) + b"\n" for sample in samples)
    if recipe.half_written:
        lines = lines[: len(lines) * 2 // 3]
        lines = lines[: lines.rfind(b"\n") + 40]
    (path / "samples.jsonl").write_bytes(lines)
    (path / "events.jsonl").write_bytes(b"".join(msgspec.json.encode(event) + b"\n" for event in events))
    return path


def hostile_recipe() -> Recipe:
    """A run in which every name and text is one of ``HOSTILE``, backends' names included."""
    metric = _metric(HOSTILE[0], Unit.SECOND, _LOW, HOSTILE[1])
    subject = Subject(HOSTILE[0], {HOSTILE[1]: HOSTILE[2], "long": HOSTILE[4]}, ((metric, 0.01, 1.0),), 0.5)
    return replace(
        QUICK, backends=("bare-metal", HOSTILE[0], HOSTILE[3]), subjects=(subject,), hostile=True, failing=(HOSTILE[3],)
    )


class _Writer:
    """Makes the samples and events of a recipe in the order in which a run would."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.random = np.random.default_rng(recipe.seed)
        self.samples: list[Sample] = []
        self.events: list[Event] = []
        self.at_s = 1000.0

    def write(self) -> tuple[list[Sample], list[Event]]:
        self._event(EventKind.RUN_STARTED)
        for block in range(self.recipe.blocks):
            level = self._noise(3.0)
            for backend in self.random.permutation(self.recipe.backends).tolist():
                for index in range(self.recipe.instances):
                    self._instance(block, index, backend, None, level)
                    for subject in self.recipe.subjects:
                        self._instance(block, index, backend, subject, level)
        self._event(EventKind.RUN_ENDED, message=str(self.recipe.status))
        return self.samples, self.events

    def _instance(self, block: int, index: int, backend: str, subject: Subject | None, level: float) -> None:
        number = len(self.events)
        name = f"b{block:02d}-{index}-{number:04x}"
        cell = f"{'boot' if subject is None else f'steady/{subject.workload}'}/{backend}"
        self._event(EventKind.INSTANCE_STARTED, name, cell)
        if backend in self.recipe.failing:
            hostile = self.recipe.hostile
            message = HOSTILE[0] if hostile else "the guest did not answer within 60 s"
            evidence = HOSTILE[1] + HOSTILE[2] if hostile else "[    2.51] Kernel panic - not syncing: no init found"
            self._event(EventKind.INSTANCE_FAILED, name, cell, message, {"evidence": evidence})
            return
        if subject is None:
            self._boot(name, block, backend, level)
        else:
            self._steady(name, block, backend, subject, level + self._noise(1.0))
        self._event(EventKind.INSTANCE_DONE, name, cell)

    def _boot(self, name: str, block: int, backend: str, level: float) -> None:
        seconds = [
            value * math.exp(level + self._noise(4.0)) for value in BOOT_SECONDS.get(backend, (0.1, 0.2, 0.3, 0.1))
        ]
        create, init, ready, stop = seconds
        values = {"boot.create": create, "boot.init": init, "boot.ready": ready, "boot.stop": stop}
        values["boot.total"] = create + init + ready
        if backend == "vm":
            values |= {"boot.vcpu": 0.1 * init, "boot.firmware": 0.3 * init, "boot.kernel": 0.6 * init}
            values |= {"guest.kernel": 0.6 * init, "guest.init": 0.1 * init + 0.5 * ready}
        for metric, value in values.items():
            self._sample(name, block, "boot", None, backend, metric, Unit.SECOND, value, 0)

    def _steady(self, name: str, block: int, backend: str, subject: Subject, level: float) -> None:
        ratio = self.recipe.ratios.get(backend, 1.0)
        for iteration in range(self.recipe.iterations):
            noise = level + self._noise(1.0) + 0.15 * self.recipe.noise * float(self.random.standard_t(3))
            if iteration < self.recipe.warmups:
                noise += 0.3
            for metric, base, power in subject.metrics:
                value = base * ratio**power * math.exp(math.copysign(noise, power))
                self._sample(name, block, "steady", subject, backend, metric.name, metric.unit, value, iteration)
            duration = subject.duration_s * math.exp(noise) * (1 + 0.02 * (ratio - 1))
            self._command(name, backend, subject, duration, iteration)
            own = {"command.duration": duration, "host.cpu": duration * (0.97 + 0.05 * (ratio > 2))}
            for metric, value in own.items():
                self._sample(name, block, "steady", subject, backend, metric, Unit.SECOND, value, iteration)
            self._sample(name, block, "steady", subject, backend, "host.io_read", Unit.BYTE, 0.0, iteration)
        memory = (2.6e8 if ratio > 2 else 1.1e7) * math.exp(self._noise(1.0))
        start, *_, stop = BOOT_SECONDS.get(backend, (0.5, 0.1))
        self._sample(name, block, "steady", subject, backend, "host.memory_peak", Unit.BYTE, memory // 4096 * 4096, 0)
        self._sample(name, block, "steady", subject, backend, "instance.start", Unit.SECOND, start * math.exp(level), 0)
        self._sample(name, block, "steady", subject, backend, "instance.stop", Unit.SECOND, stop * math.exp(level), 0)

    def _command(self, name: str, backend: str, subject: Subject, duration: float, iteration: int) -> None:
        argv = [subject.workload, *(f"--{key}={value}" for key, value in subject.params.items()), "run"]
        raw = f"raw/{name}/{iteration:03d}.stdout.gz"
        details = {"argv": argv, "returncode": 0, "duration_s": duration, "raw": raw}
        self._event(EventKind.COMMAND, name, f"steady/{subject.workload}/{backend}", details=details)

    def _sample(
        self, name: str, block: int, experiment: str, subject: Subject | None,
        backend: str, metric: str, unit: Unit, value: float, iteration: int,
    ) -> None:  # fmt: skip
        once = experiment == "boot" or metric.startswith("instance.") or metric == "host.memory_peak"
        self.samples.append(
            Sample(
                instance=name,
                block=block,
                experiment=experiment,
                workload="" if subject is None else subject.workload,
                params={} if subject is None else subject.params,
                backend=backend,
                metric=metric,
                unit=unit,
                value=float(value),
                iteration=iteration,
                warmup=not once and iteration < self.recipe.warmups,
            )
        )

    def _event(
        self, kind: EventKind, instance: str = "", cell: str = "", message: str = "", details: dict | None = None
    ) -> None:
        self.at_s += 0.5
        utc = f"2026-11-24T10:{int(self.at_s) // 60 % 60:02d}:{int(self.at_s) % 60:02d}Z"
        self.events.append(Event(kind, self.at_s, utc, instance, cell, message, details or {}))

    def _noise(self, scale: float) -> float:
        return float(self.random.standard_normal()) * self.recipe.noise * scale


def _descriptions(recipe: Recipe) -> dict[str, BackendDescription]:
    tcg = Confound("accel-tcg", "KVM did not boot a guest here: the guest's processor is emulated in software", "vm")
    known = {
        "bare-metal": BackendDescription(
            "bare-metal", IsolationKind.BARE_METAL, facts=named_facts({"isolation": "chroot"})
        ),
        "native": BackendDescription(
            "native",
            IsolationKind.CONTAINER,
            "",
            named_facts({"namespaces": "mount, pid, net, uts, ipc, cgroup", "cgroup": "v1"}),
            (Confound("native-no-apparmor", "AppArmor is not available: no profile confines the container", "native"),),
        ),
        "vm": BackendDescription(
            "vm (tcg)",
            IsolationKind.EMULATED,
            "tcg",
            named_facts({"accel": "tcg", "machine": "q35", "qemu": "7.2.22"}),
            (tcg,),
        ),
    }
    present = [name for name in recipe.backends if name not in recipe.missing]
    return {
        name: known.get(name, BackendDescription(name, IsolationKind.SANDBOX, facts=named_facts({name: HOSTILE[2]})))
        for name in present
    }


def _manifest(recipe: Recipe) -> Manifest:
    hostile = recipe.hostile
    metrics = {f"boot/{metric.name}": metric for metric in BOOT_METRICS}
    for subject in recipe.subjects:
        for metric in (*(entry[0] for entry in subject.metrics), *STEADY_METRICS):
            metrics[f"{subject.workload}/{metric.name}"] = metric
    virtualization = "firecracker" if recipe.virtual_host else "none seen"
    host = (
        Fact("hostname", HOSTILE[0] if hostile else "bench-7", "/proc/sys/kernel/hostname"),
        Fact("cpu.model", HOSTILE[1] if hostile else "AMD EPYC 7B13", "/proc/cpuinfo"),
        Fact("cpu.count", "2", "/sys/devices/system/cpu/online"),
        Fact("memory.total", "25769803776", "/proc/meminfo"),
        Fact("kernel", "6.18.0", "/proc/sys/kernel/osrelease"),
        Fact("virtualization", virtualization, "/proc/cpuinfo, /sys/class/dmi/id"),
    )
    confounds = (Confound("host-governor", "the CPU frequency governor cannot be read on this host"),)
    return Manifest(
        schema_version=2,
        run="20261124-100000-synthetic",
        tare_version="0.1.0",
        status=recipe.status,
        seed=recipe.seed,
        started_utc="2026-11-24T10:00:00Z",
        ended_utc="" if recipe.status is RunStatus.RUNNING else "2026-11-24T10:05:41Z",
        suite={
            "name": HOSTILE[0] if hostile else "quickstart",
            "title": HOSTILE[4] if hostile else "A first look",
            "description": HOSTILE[4] if hostile else "What does isolation cost on this host?",
        },
        envelope=Envelope((1,), 512 * 2**20, 1024 * 2**20, 1024),
        image={"digest": "sha256:" + "ab12" * 16, "packages": {"fio": "3.33-3", "sysbench": "1.0.20+ds-5"}},
        host=host,
        host_summary="2 × AMD EPYC 7B13, 24 GiB, Linux 6.18.0",
        backends=_descriptions(recipe),
        unavailable={
            name: Availability(False, "libvirt-python is not installed", "pip install 'tarebench[vm]'")
            for name in recipe.missing
        },
        confounds=confounds,
        metrics=metrics,
        planned_instances=recipe.blocks * recipe.instances * len(recipe.backends) * (1 + len(recipe.subjects)),
        command_line=("tare", "run", HOSTILE[2] if hostile else "suites/quickstart.toml"),
        baseline="bare-metal",
        experiments=TRAITS,
        workloads=WORKLOADS,
    )
