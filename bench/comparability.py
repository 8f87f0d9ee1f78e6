"""Whether two runs may be compared: everything that both of them say about their conditions, field by field.

A field is named ``host.kernel``, ``backend.vm.accel``, ``envelope.memory_bytes``. What differs by itself from run to
run (load, start time, seed, number of blocks) is no field.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from tare.bench.errors import NotComparableError, UnknownNameError
from tare.bench.records import Manifest

ABSENT = "not recorded"
"""The value of a field that one of the runs does not hold."""
_VOLATILE_FACTS = ("load average", "storage")
_VOLATILE_BACKEND_FACTS = ("accel_reason",)
_SAMPLING = ("instances", "iterations", "warmup")
"""What of the sampling policy changes what is estimated, and not only how well."""

_WORDS = ("name", "summary", "category", "licence")
"""What a suite says of a workload of its own that changes nothing of what is measured."""
_LONGEST = 300


class Difference(msgspec.Struct, frozen=True):
    """A field in which two runs differ, with both values as text."""

    field: str
    first: str
    second: str

    def __str__(self) -> str:
        return f"{self.field}: {self.first} against {self.second}"


def conditions(manifest: Manifest, backends: Collection[str] | None = None) -> dict[str, str]:
    """The fields of a run with their values as text; of backends only those named, or all."""
    kept = manifest.backends.keys() if backends is None else backends
    return {field: _text(value) for field, value in _fields(manifest, kept)}


def find_differences(first: Manifest, second: Manifest) -> list[Difference]:
    """The fields in which two runs differ. Only backends, experiments and own workloads that both have count."""
    shared = first.backends.keys() & second.backends.keys()
    ours, theirs = conditions(first, shared), conditions(second, shared)
    alone = _parts(first.suite) ^ _parts(second.suite)
    return [
        Difference(field, ours.get(field, ABSENT), theirs.get(field, ABSENT))
        for field in dict.fromkeys((*ours, *theirs))
        if ours.get(field) != theirs.get(field) and not any(_covers(part, field) for part in alone)
    ]


def split_allowed(first: Manifest, second: Manifest, allowed: Sequence[str]) -> list[Difference]:
    """The differences between two runs, all of them allowed: they are confounds of the comparison.

    ``allowed`` names fields, or groups of fields by their beginning (``host``, ``backend.vm``). Raises
    NotComparableError with those that are not allowed, UnknownNameError for a name that neither run has.
    """
    known = dict.fromkeys((*conditions(first), *conditions(second)))
    for name in allowed:
        if not any(_covers(name, field) for field in known):
            raise UnknownNameError(
                f"--allow {name}: the runs have no such field", remedy=f"fields are: {', '.join(known)}"
            )
    differences = find_differences(first, second)
    refused = [one for one in differences if not any(_covers(name, one.field) for name in allowed)]
    if refused:
        listed = "\n".join(f"  {one}" for one in refused)
        options = " ".join(f"--allow {_quoted(one.field)}" for one in refused)
        raise NotComparableError(
            f"{first.run} and {second.run} are not comparable, because these differ:\n{listed}",
            remedy=f"compare runs made under the same conditions, or take a difference as a confound with {options}",
        )
    return differences


def _fields(manifest: Manifest, backends: Collection[str]) -> Iterator[tuple[str, Any]]:
    yield "schema", manifest.schema_version
    yield "tare", manifest.tare_version
    yield "tare.commit", manifest.tare_commit
    yield from ((f"plugin.{name}", origin) for name, origin in manifest.plugins.items())
    yield "image.digest", manifest.image.get("digest", ABSENT)
    for name, value in msgspec.to_builtins(manifest.envelope).items():
        yield f"envelope.{name}", value
    for fact in manifest.host:
        if fact.name not in _VOLATILE_FACTS:
            yield f"host.{fact.name}", fact.text
        elif fact.name == "storage":
            # The folder is each run's own; what it lies on is the host's.
            yield "host.storage device", fact.text.partition(" on ")[2] or fact.text
    for name, description in manifest.backends.items():
        if name not in backends:
            continue
        yield f"backend.{name}.label", description.label
        yield f"backend.{name}.kind", description.kind
        for fact_name, value in description.texts.items():
            if fact_name not in _VOLATILE_BACKEND_FACTS:
                yield f"backend.{name}.{fact_name}", value
    yield from _suite_fields(manifest.suite, backends)


def _suite_fields(suite: Mapping[str, Any], backends: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Backends' options, the sampling policy, experiments that have their own, and the suite's own workloads."""
    for section in _sections(suite.get("backend")):
        name = section.get("name") or section.get("type")
        if name in backends:
            yield f"backend.{name}.options", section.get("options", {})
    sampling = suite.get("sampling")
    if isinstance(sampling, Mapping):
        yield from ((f"sampling.{name}", sampling[name]) for name in _SAMPLING if name in sampling)
    for section in _sections(suite.get("experiment")):
        for name in _SAMPLING:
            if section.get(name) is not None:
                yield f"{_of_experiment(section)}.{name}", section[name]
    yield from _own_workload_fields(suite)


def _parts(suite: Mapping[str, Any]) -> set[str]:
    """The beginnings of the fields of each experiment and each workload of its own that a suite has."""
    own = {f"workload.{section.get('name')}" for section in _sections(suite.get("workload"))}
    return own | {_of_experiment(section) for section in _sections(suite.get("experiment"))}


def _of_experiment(section: Mapping[str, Any]) -> str:
    return f"sampling.{'/'.join(str(section[part]) for part in ('kind', 'workload') if section.get(part))}"


def _own_workload_fields(suite: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What the suite's own workloads run and measure; a long text, such as a script, by its hash."""
    for section in _sections(suite.get("workload")):
        for name, value in section.items():
            if name not in _WORDS:
                text = _text(value)
                digest = hashlib.sha256(text.encode()).hexdigest()[:19]
                yield f"workload.{section.get('name')}.{name}", text if len(text) <= _LONGEST else f"sha256:{digest}"


def _sections(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list | tuple) else []


def _covers(name: str, field: str) -> bool:
    return field == name or field.startswith(f"{name}.")


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value, order="sorted").decode()
    return " ".join(text.split())


def _quoted(field: str) -> str:
    return f"'{field}'" if " " in field else field
