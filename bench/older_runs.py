"""Manifests of older versions, brought into the present shape when they are read."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from tare.bench.catalogue import TRAITS
from tare.bench.model import Category, IsolationKind
from tare.bench.records import SCHEMA_VERSION
from tare.bench.units import Unit, parse_size


def upgraded(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The decoded JSON of a manifest of any known schema in the shape of ``SCHEMA_VERSION``."""
    manifest = dict(raw)
    for version in range(manifest["schema_version"], SCHEMA_VERSION):
        _STEPS[version](manifest)
    return manifest | {"schema_version": SCHEMA_VERSION}


def _from_1(manifest: dict[str, Any]) -> None:
    """To schema 2.

    A backend says its kind, which was in its facts, its namespaces or its type in the suite. The traits of the
    experiments and workloads, which were all built in, are in the manifest. A fact has a text, and a quantity a number
    and a unit; the host's had a ``value``, a backend's were texts by name.
    """
    types = {one.get("name") or one.get("type"): one.get("type") for one in manifest["suite"].get("backend", ())}
    manifest["experiments"] = msgspec.to_builtins(TRAITS)
    manifest["workloads"] = _WORKLOADS | manifest.get("workloads", {})
    manifest["host"] = [_numbered(fact) for fact in manifest["host"]]
    manifest["backends"] = {
        name: _kind_of(described.get("facts", {}), types.get(name, name))
        | described
        | {"facts": {fact: {"name": fact, "text": text} for fact, text in described.get("facts", {}).items()}}
        for name, described in manifest["backends"].items()
    }


_FIXED_TIME = ("fio", "stress-ng", "sysbench-cpu", "sysbench-memory")
_CATEGORIES = {
    "sysbench-cpu": Category.CPU,
    "stress-ng": Category.CPU,
    "sysbench-memory": Category.MEMORY,
    "perf-sched-pipe": Category.KERNEL,
    "perf-syscall": Category.KERNEL,
    "fio": Category.STORAGE,
}
_WORKLOADS = {name: {"category": one, "fixed_time": name in _FIXED_TIME} for name, one in _CATEGORIES.items()}
"""The traits of the workloads that there were before manifests had them."""


def _kind_of(facts: Mapping[str, str], backend_type: str) -> dict[str, str]:
    if accelerator := facts.get("accel"):
        kind = IsolationKind.VIRTUAL_MACHINE if accelerator == "kvm" else IsolationKind.EMULATED
        return {"kind": kind, "accelerator": accelerator}
    if "pid" in facts.get("namespaces", "").replace(" ", "").split(","):
        return {"kind": IsolationKind.CONTAINER}
    known = {"bare-metal": IsolationKind.BARE_METAL, "native": IsolationKind.CONTAINER}
    return {"kind": known.get(backend_type, IsolationKind.SANDBOX)}


def _numbered(fact: Mapping[str, str]) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        match fact["name"]:
            case "cpus":
                parsed = {"number": float(fact["value"]), "unit": Unit.COUNT}
            case "memory":
                parsed = {"number": parse_size(fact["value"]), "unit": Unit.BYTE}
    return {"name": fact["name"], "text": fact["value"], "source": fact["source"], **parsed}


_STEPS: Mapping[int, Callable[[dict[str, Any]], None]] = {1: _from_1}
"""By the schema that a step starts from; each changes the manifest in place to the next."""
