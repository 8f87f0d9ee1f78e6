"""What a suite says of many hosts: each comparison as every host made it, and what they say together.

The host is a random effect (``tare.bench.stats.hosts``). A host counts if its run can be relied on at all: an emulated
host and a run that is not usable stand apart with their reason. Hosts of one *type* are of one kind; where there are
several types, each type is also combined by itself.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from tare.bench.analysis.grade import Concern, Grade, GradeLevel
from tare.bench.analysis.results import Analysis, CellResult, MeasuredBackend, Row, Subject
from tare.bench.model import Metric
from tare.bench.records import Manifest
from tare.bench.samples import params_text
from tare.bench.stats.comparisons import Comparison, Interval, Verdict, decided, exponential, log_ratios, mean_error
from tare.bench.stats.families import Member, control_false_discoveries
from tare.bench.stats.hosts import ENOUGH_HOSTS, HostsTogether, HostValue, combine_hosts

ODD_LEVEL = 0.05
"""Share of fleets of equal hosts in which one is called odd."""
_NOTHING_COMPARED = ("no-baseline", "nothing-compared", "only-emulated")
"""Concerns of a run that compares nothing: it says nothing here, and its density ramps are as good as any."""
_OF_ONE_HOST = (*_NOTHING_COMPARED, "unanswered", "wide", "blocks", "few-blocks")
"""Concerns about a host's own verdicts, of which a fleet's have none."""
_OF_NO_WEIGHT = ("host name", "load average", "storage", "python", "other KVM parameters")
"""Facts that differ between any two hosts, or say nothing of speed."""


class FleetHost(msgspec.Struct, frozen=True):
    """A host of the fleet. ``left_out`` says why its figures count for nothing; empty if they count.

    ``folder`` is its run directory, relative to the fleet's; empty if there is none. ``fingerprint`` names the machine.
    """

    name: str
    type: str
    left_out: str = ""
    folder: str = ""
    summary: str = ""
    grade: Grade | None = None
    facts: Mapping[str, str] = {}
    fingerprint: str = ""


class HostRatio(msgspec.Struct, frozen=True):
    """What one host measured: the ratio with its verdict, and the standard error of its logarithm (None: unknown).

    That is known with ``freedom`` degrees of freedom.
    """

    host: str
    found: Comparison
    error: float | None
    freedom: float = 0.0


class Combined(msgspec.Struct, frozen=True):
    """What hosts of one kind say together. ``type`` is theirs; empty for all.

    ``typical`` is the typical ratio as a comparison (``n_blocks`` are hosts), ``new_host`` the ratios between which a
    host of this kind lies that nobody measured (None for too few hosts), ``spread`` the standard deviation between
    hosts of the logarithm of the ratio.
    """

    type: str
    n_hosts: int
    typical: Comparison
    spread: Interval | None
    new_host: Interval | None


class FleetRow(msgspec.Struct, frozen=True):
    """One comparison over the hosts. ``together`` has all hosts first, then each type; empty if none can be combined.

    ``odd`` names the hosts that differ from the others, with the p-value after correction.
    """

    experiment: str
    workload: str
    params: Mapping[str, Any]
    metric: Metric
    backend: MeasuredBackend
    is_leading: bool
    hosts: tuple[HostRatio, ...]
    together: tuple[Combined, ...] = ()
    odd: Mapping[str, float] = {}

    @property
    def of_all(self) -> Combined | None:
        """What all hosts say together."""
        return self.together[0] if self.together else None


class OddHost(msgspec.Struct, frozen=True):
    """A host that differs from the others: in which rows, and which of its facts only it has (own, the others')."""

    host: str
    rows: tuple[FleetRow, ...]
    facts: Mapping[str, tuple[str, str]]


class FleetAnalysis(msgspec.Struct, frozen=True):
    """What the runs of a fleet say. ``manifest`` is that of the first run, for names; None without a run."""

    hosts: tuple[FleetHost, ...]
    rows: tuple[FleetRow, ...]
    odd: tuple[OddHost, ...]
    manifest: Manifest | None
    baseline: str = ""

    @property
    def counted(self) -> tuple[FleetHost, ...]:
        """The hosts whose figures count."""
        return tuple(host for host in self.hosts if not host.left_out)

    @property
    def leading(self) -> tuple[FleetRow, ...]:
        """The rows by which their subjects are known."""
        return tuple(row for row in self.rows if row.is_leading)

    @property
    def grade(self) -> Grade:
        """How far the fleet can be relied on: what the runs that count are blamed for, how many they are, what is open.

        That one host's own blocks are few or leave its verdicts open is in the hosts' intervals, and no concern here.
        """
        concerns = sorted(self._concerns(), key=lambda one: -one.level.rank)
        if not concerns:
            reason = f"{len(self.counted)} hosts answer every leading metric"
            return Grade(GradeLevel.DECISION, reason, "nothing: repeat it on another day to see how far days differ")
        return Grade(concerns[0].level, concerns[0].reason, concerns[0].remedy, tuple(concerns))

    def _concerns(self) -> Iterator[Concern]:
        counted = self.counted
        if not counted:
            remedy = "see why each host is left out, and run it again"
            yield Concern(GradeLevel.NOT_USABLE, "no-host", "no host has a run that can be used", remedy)
            return
        if (n := len(counted)) < ENOUGH_HOSTS:
            reason = f"only {n} host{' counts' if n == 1 else 's count'}: {ENOUGH_HOSTS} say how far hosts differ"
            yield Concern(GradeLevel.FIRST_LOOK, "few-hosts", reason, "run it on more hosts of this kind")
        known = [host.fingerprint for host in counted if host.fingerprint]
        if len(set(known)) < len(known):
            machines = f"{len(set(known))} machine{'' if len(set(known)) == 1 else 's'}"
            reason = (
                f"{len(known)} hosts are {machines} by their fingerprints: they do not show how far machines differ"
            )
            yield Concern(GradeLevel.FIRST_LOOK, "same-machine", reason, "name each machine once")
        typical = [row.of_all.typical for row in self.leading if row.of_all is not None]
        if unanswered := sum(one.verdict_adjusted is Verdict.INCONCLUSIVE for one in typical):
            level = GradeLevel.FIRST_LOOK if 2 * unanswered > len(typical) else GradeLevel.INDICATIVE
            reason = f"{unanswered} of {len(typical)} leading metrics have no verdict over hosts"
            yield Concern(level, "unanswered", reason, "more hosts narrow the intervals")
        for host in counted:
            own = None if host.grade is None else host.grade.without(_OF_ONE_HOST)
            if own is not None and own.level is not GradeLevel.DECISION:
                yield Concern(own.level, "host", f"{host.name}: {own.reason}", own.remedy)


_Key = tuple[str, str, str, str, str, str]


class _Collected(msgspec.Struct):
    """A row while hosts are added to it."""

    subject: Subject
    row: Row
    backend: MeasuredBackend
    hosts: list[HostRatio]


class FleetCollector:
    """Takes one host's analysis after another and keeps of it what the fleet needs: no samples."""

    def __init__(self) -> None:
        self._hosts: list[FleetHost] = []
        self._rows: dict[_Key, _Collected] = {}
        self._manifest: Manifest | None = None
        self._baseline = ""

    def add_missing(self, host: FleetHost) -> None:
        """A host without a run; ``left_out`` says why."""
        self._hosts.append(host)

    def add(self, host: FleetHost, analysis: Analysis) -> FleetHost:
        """A host with its run. Returns it with what its run says of it."""
        manifest, grade = analysis.manifest, analysis.grade
        if self._manifest is None:
            self._manifest = manifest
        left_out = host.left_out
        usable = grade.without(_NOTHING_COMPARED)
        if not left_out and usable.level is GradeLevel.NOT_USABLE:
            left_out = f"its run is not usable: {usable.reason}"
        facts = {fact.name: fact.text for fact in manifest.host}
        made = msgspec.structs.replace(
            host,
            left_out=left_out,
            summary=manifest.host_summary,
            grade=grade,
            facts=facts,
            fingerprint=manifest.fingerprint.digest,
        )
        self._hosts.append(made)
        if not left_out:
            self._baseline = self._baseline or (analysis.baseline.label if analysis.baseline is not None else "")
            for subject, row, cell, found in analysis.comparisons:
                if not cell.backend.is_fenced and found.ratio is not None:
                    self._add_ratio(made.name, subject, row, cell, found)
        return made

    def _add_ratio(self, host: str, subject: Subject, row: Row, cell: CellResult, found: Comparison) -> None:
        key = (subject.experiment, subject.workload, params_text(subject.params), row.name, cell.backend.name,
               cell.backend.label)  # fmt: skip
        kept = self._rows.setdefault(key, _Collected(subject, row, cell.backend, []))
        logs = np.empty(0) if row.base is None else log_ratios(cell.blocks, row.base.blocks)
        error, freedom = mean_error(logs, found.dependence) or (None, 0.0)
        kept.hosts.append(HostRatio(host, found, error, freedom))

    def finish(self) -> FleetAnalysis:
        """All hosts together."""
        types = {host.name: host.type for host in self._hosts}
        rows, logs = [], []
        for one in self._rows.values():
            own = tuple(one.hosts)
            together = tuple(_combined(one.row, own, types))
            rows.append(_fleet_row(one, own, tuple(made for made, _ in together)))
            logs.append(together[0][1] if together else None)
        rows = _adjusted(rows)
        rows = list(_with_odd(rows, logs))
        leading = [row for row in rows if row.is_leading]
        return FleetAnalysis(
            tuple(self._hosts), tuple(rows), tuple(_odd_hosts(self._hosts, leading)), self._manifest, self._baseline
        )


def _fleet_row(one: _Collected, hosts: tuple[HostRatio, ...], together: tuple[Combined, ...]) -> FleetRow:
    metric = msgspec.structs.replace(one.row.metric, name=one.row.name)
    return FleetRow(
        one.subject.experiment,
        one.subject.workload,
        one.subject.params,
        metric,
        one.backend,
        one.row.is_leading,
        hosts,
        together,
    )


def _combined(
    row: Row, hosts: Sequence[HostRatio], types: Mapping[str, str]
) -> Iterator[tuple[Combined, HostsTogether]]:
    """What all hosts say, then what those of each type say if there are several types."""
    kinds = dict.fromkeys(types[one.host] for one in hosts)
    for kind in ("", *(kinds if len(kinds) > 1 else ())):
        chosen = [one for one in hosts if one.error is not None and (not kind or types[one.host] == kind)]
        if not chosen:
            continue
        values = [HostValue(math.log(one.found.ratio or 1), one.error or 0, one.freedom) for one in chosen]
        found = combine_hosts(values)
        margin, level = chosen[0].found.margin, chosen[0].found.level
        instances, iterations = (
            sum(each) for each in zip(*((one.found.n_instances, one.found.n_iterations) for one in chosen), strict=True)
        )
        counts = (len(chosen), instances, iterations)
        typical = decided(found.typical, counts, row.metric.direction, margin, level, found.typical.method)
        new_host = None if found.new_host is None else exponential(found.new_host)
        yield Combined(kind, len(chosen), typical, found.spread, new_host), found


def _adjusted(rows: Sequence[FleetRow]) -> list[FleetRow]:
    """With the verdicts on typical ratios that survive among all of a backend."""
    done = list(rows)
    for backend in dict.fromkeys(row.backend.name for row in rows):
        places = [place for place, row in enumerate(rows) if row.backend.name == backend and row.together]
        members = [Member(rows[p].together[0].typical, rows[p].metric.name, "", rows[p].is_leading) for p in places]
        for place, found in zip(places, control_false_discoveries(members, f"{backend}, over hosts"), strict=True):
            first, *others = rows[place].together
            first = msgspec.structs.replace(first, typical=found)
            done[place] = msgspec.structs.replace(rows[place], together=(first, *others))
    return done


def _with_odd(rows: Sequence[FleetRow], logs: Sequence[HostsTogether | None]) -> Iterator[FleetRow]:
    """With the odd hosts of leading rows, by Bonferroni over these rows and their hosts: to name a host is grave."""
    tested = [row.is_leading and found is not None and bool(found.odd) for row, found in zip(rows, logs, strict=True)]
    n_tests = sum(len(found.odd) for found, is_tested in zip(logs, tested, strict=True) if found and is_tested)
    for row, found, is_tested in zip(rows, logs, tested, strict=True):
        if found is None or not is_tested:
            yield row
            continue
        names = [one.host for one in row.hosts if one.error is not None]
        each = {name: min(1.0, p * n_tests) for name, p in zip(names, found.odd, strict=True)}
        yield msgspec.structs.replace(row, odd={name: p for name, p in each.items() if p <= ODD_LEVEL})


def _odd_hosts(hosts: Sequence[FleetHost], leading: Sequence[FleetRow]) -> Iterator[OddHost]:
    """The odd hosts, those that differ in most rows first."""
    by_host: dict[str, list[FleetRow]] = {}
    for row in leading:
        for name in row.odd:
            by_host.setdefault(name, []).append(row)
    counted = [host for host in hosts if not host.left_out]
    for name, rows in sorted(by_host.items(), key=lambda entry: -len(entry[1])):
        own = next(host for host in counted if host.name == name)
        yield OddHost(name, tuple(rows), different_facts(own, [host for host in counted if host.name != name]))


def different_facts(host: FleetHost, others: Iterable[FleetHost]) -> dict[str, tuple[str, str]]:
    """Facts of which a host has a value that most others do not have: its own, and that of most others."""
    known = list(others)
    found = {}
    for name in dict.fromkeys((*host.facts, *(name for one in known for name in one.facts))):
        if name in _OF_NO_WEIGHT:
            continue
        theirs = [one.facts.get(name, "not known") for one in known]
        common = max(theirs, key=theirs.count)
        own = host.facts.get(name, "not known")
        if own != common and theirs.count(common) > len(theirs) / 2 and own not in theirs:
            found[name] = (own, common)
    return found
