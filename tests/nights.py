"""Synthetic histories: a folder of small runs, a night each, with what the caller wants to have happened.

Values are log-normal: a level of the night for the host, a ratio of the night for each backend, a block's own level
that all backends share, and a block's noise. ``Night`` says what is different in one night.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np

from tare.bench.catalogue import TRAITS
from tare.bench.model import BackendDescription, Direction, Envelope, Fact, IsolationKind, Metric, named_facts
from tare.bench.records import Cell, Event, EventKind, Fingerprint, Manifest, Origin, RunStatus, Sample
from tare.bench.traits import Category, WorkloadTraits
from tare.bench.units import Unit

FIRST = datetime(2026, 1, 1, 2, 0, tzinfo=UTC)
KINDS = {"bare-metal": IsolationKind.BARE_METAL, "native": IsolationKind.CONTAINER, "vm": IsolationKind.VIRTUAL_MACHINE}
METRIC = Metric("rate", Unit.OPERATIONS_PER_SECOND, Direction.HIGHER, "Operations per second")


@dataclass(frozen=True)
class Night:
    """What is different in a night: logs that are added to levels of subjects or ratios of cells, and conditions."""

    levels: Mapping[str, float] = field(default_factory=dict)
    ratios: Mapping[tuple[str, str], float] = field(default_factory=dict)
    spread: Mapping[tuple[str, str], float] = field(default_factory=dict)
    kernel: str = "6.12"
    image: str = "sha256:aaaa"
    host: str = "host-a"
    status: RunStatus = RunStatus.COMPLETE
    failing: tuple[str, ...] = ()
    failing_blocks: int = 99
    missing: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    confirms: str = ""
    bridges: str = ""
    suite_file: str = ""
    started: datetime | None = None


@dataclass(frozen=True)
class Plan:
    """Subjects (workloads with the metric ``rate``) and backends, blocks a night, and the noise (of logs)."""

    subjects: Sequence[str] = tuple(f"work-{n}" for n in range(6))
    backends: Sequence[str] = ("bare-metal", "native", "vm")
    blocks: int = 4
    host_noise: float = 0.02
    ratio_noise: float = 0.01
    block_noise: float = 0.01


def write_nights(folder: Path, nights: Sequence[Night], *, plan: Plan = Plan(), seed: int = 1) -> list[Path]:
    """Write the run directories of these nights; returns them."""
    folder.mkdir(exist_ok=True)
    return [write_night(folder, number, night, plan=plan, seed=seed) for number, night in enumerate(nights)]


def write_night(folder: Path, number: int, night: Night, *, plan: Plan = Plan(), seed: int = 1, name: str = "") -> Path:
    """Write one night's run directory."""
    random = np.random.default_rng([seed, number, *name.encode()])
    started = night.started or FIRST + timedelta(days=number)
    path = folder / (name or f"{started:%Y%m%d}-nightly")
    path.mkdir()
    samples, events = [], [_event(EventKind.RUN_STARTED)]
    levels = random.standard_normal(len(plan.subjects)) * plan.host_noise
    for place, subject in enumerate(plan.subjects):
        ratios = {backend: float(random.standard_normal()) * plan.ratio_noise for backend in plan.backends}
        for block in range(plan.blocks):
            shared = float(random.standard_normal()) * 0.05
            for backend in plan.backends:
                instance = f"b{block:02d}-{place}{backend}"
                cell = Cell("steady", subject, {"threads": 1}, backend).key
                noise = float(random.standard_normal()) * plan.block_noise
                if backend in night.missing:
                    continue
                events.append(_event(EventKind.INSTANCE_STARTED, instance, cell))
                if backend in night.failing and block < night.failing_blocks:
                    events.append(_event(EventKind.INSTANCE_FAILED, instance, cell, "it did not start"))
                    continue
                value = float(levels[place]) + night.levels.get(subject, 0.0) + shared
                value += noise * night.spread.get((subject, backend), 1.0)
                if backend != plan.backends[0]:
                    value += ratios[backend] + night.ratios.get((subject, backend), 0.0) - 0.1
                samples.append(_sample(instance, block, subject, backend, 1000 * (place + 1) * math.exp(value)))
                events.append(_event(EventKind.INSTANCE_DONE, instance, cell))
    events.append(_event(EventKind.RUN_ENDED, message=str(night.status)))
    manifest = _manifest(path.name, started, night, plan)
    (path / "manifest.json").write_text(json.dumps(msgspec.to_builtins(manifest)), "utf-8")
    (path / "samples.jsonl").write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in samples))
    (path / "events.jsonl").write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in events))
    return path


def _sample(instance: str, block: int, subject: str, backend: str, value: float) -> Sample:
    return Sample(
        instance=instance,
        block=block,
        experiment="steady",
        workload=subject,
        params={"threads": 1},
        backend=backend,
        metric="rate",
        unit=METRIC.unit,
        value=value,
        iteration=0,
        warmup=False,
    )


def _event(kind: EventKind, instance: str = "", cell: str = "", message: str = "") -> Event:
    return Event(kind, 1.0, "2026-01-01T02:00:00Z", instance, cell, message)


def _manifest(name: str, started: datetime, night: Night, plan: Plan) -> Manifest:
    return Manifest(
        schema_version=2,
        run=name,
        tare_version="0.1.0",
        status=night.status,
        seed=1,
        started_utc=started.isoformat(timespec="seconds"),
        ended_utc=(started + timedelta(minutes=20)).isoformat(timespec="seconds"),
        suite={"suite": {"name": "nightly"}, "backend": [{"type": one} for one in plan.backends], "experiment": []},
        envelope=Envelope((1,), 2**29, 2**28, 512),
        image={"digest": night.image},
        host=(Fact("kernel", night.kernel, "uname"), Fact("load average", f"{started.day}", "proc")),
        host_summary="4 CPUs",
        backends={
            one: BackendDescription(
                one, KINDS[one.removesuffix("-old")], "kvm" if one == "vm" else "", facts=named_facts({})
            )
            for one in plan.backends
        },
        unavailable={},
        confounds=(),
        metrics={f"{one}/rate": METRIC for one in plan.subjects},
        planned_instances=len(plan.subjects) * len(plan.backends) * plan.blocks,
        workloads={one: WorkloadTraits(Category.CPU, fixed_time=True) for one in plan.subjects},
        fingerprint=Fingerprint(night.host),
        experiments={str(name): traits for name, traits in TRAITS.items()},
        origin=Origin(labels=night.labels, confirms=night.confirms, bridges=night.bridges, suite_file=night.suite_file),
    )
