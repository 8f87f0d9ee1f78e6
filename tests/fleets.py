"""Synthetic fleets: a collected folder with a recorded run a host, of known true ratios."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np

from tare.bench.catalogue import ConfoundCode
from tare.bench.fleet.collection import (
    FLEET_SCHEMA_VERSION,
    ConditionDifference,
    FleetManifest,
    HostRow,
    HostState,
    save_fleet_manifest,
)
from tare.bench.records import Manifest
from tests.synthetic import SUBJECTS, Recipe, write_run

RUN = "20261201-100000-quickstart"


@dataclass(frozen=True)
class Fleet:
    """``spread`` is that between hosts, of log ratios. ``odd`` are factors on the ratio of hosts by name."""

    hosts: int = 8
    spread: float = 0.05
    ratio: float = 1.2
    blocks: int = 8
    types: tuple[str, ...] = ("",)
    odd: dict[str, float] = field(default_factory=dict)
    emulated: tuple[str, ...] = ()
    dead: dict[str, str] = field(default_factory=dict)
    backends: tuple[str, ...] = ("bare-metal", "native")
    subjects: int = 3
    seed: int = 1
    reports: bool = False


def write_fleet(path: Path, fleet: Fleet = Fleet()) -> Path:
    """Write the folder of a fleet; returns it."""
    random = np.random.default_rng(fleet.seed)
    rows = []
    for number in range(fleet.hosts):
        name = f"h{number + 1}"
        log = math.log(fleet.ratio) + fleet.spread * float(random.standard_normal())
        ratio = math.exp(log) * fleet.odd.get(name, 1.0)
        recipe = Recipe(
            blocks=fleet.blocks,
            backends=fleet.backends,
            virtual_host=False,
            subjects=SUBJECTS[: fleet.subjects],
            seed=fleet.seed * 1000 + number,
            ratios={"native": ratio, "vm": 8.8},
        )
        run = write_run(path / "hosts" / name / RUN, recipe)
        _make_own(run, name, is_odd=name in fleet.odd, is_emulated=name in fleet.emulated)
        if fleet.reports:
            (run / "report.html").write_text("<title>report</title>")
        kind = fleet.types[number % len(fleet.types)]
        rows.append(HostRow(name, f"10.0.0.{number + 1}", kind, state=HostState.COLLECTED, run=RUN))
    rows += [HostRow(name, "10.0.9.9", state=HostState.LOST, reason=why) for name, why in fleet.dead.items()]
    differences = (ConditionDifference("kernel", {"6.12": ("h1",), "6.1": ("h2",)}),) if fleet.odd else ()
    save_fleet_manifest(
        path,
        FleetManifest(
            FLEET_SCHEMA_VERSION, "demo", "quickstart", "0.2.0", "2026-12-01T10:00:00Z", tuple(rows),
            differences=differences,
        ),
    )  # fmt: skip
    return path


def _make_own(run: Path, name: str, *, is_odd: bool, is_emulated: bool) -> None:
    """Facts that differ from host to host; a kernel of its own where it is odd."""
    file = run / "manifest.json"
    manifest = msgspec.json.decode(file.read_bytes(), type=Manifest)
    own = {"hostname": name, "kernel": "6.1.0-slow" if is_odd else "6.12.0"}
    host = tuple(msgspec.structs.replace(fact, text=own.get(fact.name, fact.text)) for fact in manifest.host)
    host += (manifest.host[0].__class__("host name", name, "uname"),)
    confounds = manifest.confounds
    if is_emulated:
        what = "This host's own processor is emulated in software (TCG)"
        confounds += (manifest.confounds[0].__class__(ConfoundCode.HOST_EMULATED, what),)
    changed = msgspec.structs.replace(manifest, host=host, confounds=confounds, run=f"{RUN}-{name}")
    file.write_text(json.dumps(msgspec.to_builtins(changed)), "utf-8")


def with_hosts(count: int) -> Fleet:
    """The usual fleet with so many hosts."""
    return replace(Fleet(), hosts=count)
