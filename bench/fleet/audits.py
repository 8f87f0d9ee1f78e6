"""A plan made from one host, audited by the density ramps of others."""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tare.bench.analysis.density import analyse_density
from tare.bench.capacity.audit import Audit, audit_plan, planned_runs, track_record
from tare.bench.capacity.hosts import find_measured_host
from tare.bench.capacity.instances import make_type
from tare.bench.errors import RunDirectoryError, TareError
from tare.bench.fleet.collection import CollectedRun, Collection
from tare.bench.store import load_run


class HostAudits(msgspec.Struct, frozen=True):
    """The audit of a plan by each host, and why hosts did not audit it."""

    audits: dict[str, Audit]
    left_out: dict[str, str]


def audit_hosts(plan: Path, collection: Collection, names: Sequence[str] = ()) -> HostAudits:
    """Audit a plan with every collected run, or those of the named hosts.

    The run that the plan was made from audits nothing. Raises SuiteError if the file is no plan, RunDirectoryError if
    there is no such host, or if no host can audit it.
    """
    made_from = {os.path.realpath(run) for run in planned_runs(plan)}
    for name in names:
        collection.manifest.row(name)
    audits, left_out = {}, {}
    runs = {one.host.name: one for one in collection.runs}
    for host in collection.manifest.hosts:
        if names and host.name not in names:
            continue
        if host.name not in runs:
            left_out[host.name] = host.reason or f"it has no run here ({host.state})"
            continue
        try:
            audits[host.name] = _audit(plan, runs[host.name], made_from)
        except TareError as error:
            left_out[host.name] = error.message
    if not audits:
        whys = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise RunDirectoryError(
            f"no host of {collection.path} can audit {plan}: {whys}",
            remedy="run a suite with the experiment density and the backends of the plan on the hosts",
        )
    return HostAudits(audits, left_out)


def _audit(plan: Path, collected: CollectedRun, made_from: set[str]) -> Audit:
    if os.path.realpath(collected.path) in made_from:
        raise RunDirectoryError("the plan was made from this run")
    run = load_run(collected.path)
    results = analyse_density(run.samples, run.events)
    if not results:
        raise RunDirectoryError("its run has no density ramp")
    types = [make_type(result, run.manifest, str(run.path)) for result in results]
    return audit_plan(plan, types, str(run.path), find_measured_host(run.manifest))


def coverage_words(kept: Sequence[Audit]) -> list[str]:
    """How often the intervals of all audited plans held: in all, then by what was predicted."""
    said = [track_record(kept)]
    for what in dict.fromkeys(one.what for audit in kept for one in audit.checked):
        decided = [one for audit in kept for one in audit.checked if one.what == what and one.held is not None]
        if decided:
            held = sum(one.held is True for one in decided)
            said.append(f"{what}: {held} of {len(decided)} within the interval ({100 * held / len(decided):.0f} %).")
    return [line for line in said if line]
