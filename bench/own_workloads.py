"""The workloads that a suite makes for itself under ``[[workload]]``.

Which kinds there are is the plug-ins' business (``tare.workload_kinds``): a section is of the kind whose name is one of
its keys.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tare.bench.errors import SuiteError
from tare.bench.interfaces import Workload, WorkloadKind
from tare.bench.registry import Plugins, find_workload_kinds
from tare.bench.suite_reading import convert


def with_own_workloads(
    path: Path, sections: Sequence[Mapping[str, Any]], registered: Plugins[Workload]
) -> tuple[Plugins[Workload], tuple[Mapping[str, Any], ...]]:
    """The registered workloads and the suite's own, and the sections with all that they take from files read in.

    ``path`` is the suite's, or the manifest's of a run that goes on. Raises SuiteError with the key.
    """
    if not sections:
        return registered, ()
    kinds = find_workload_kinds()
    own: dict[str, type[Workload]] = {}
    complete = []
    for index, raw in enumerate(sections):
        key = f"workload[{index}]"
        kind = _kind_of(path, key, raw, kinds)
        section = convert(raw, kind.Section, path, key)
        for names, where in (
            (registered.loaded, "tare has"),
            (registered.failures, "tare has"),
            (own, "the suite has"),
        ):
            if section.name in names:
                raise SuiteError(f"{path}: {key}.name", f"{where} a workload {section.name!r} already")
        try:
            section = kind().complete(section, path.parent)
        except ValueError as error:
            raise SuiteError(f"{path}: {key}", str(error)) from None
        except OSError as error:
            raise SuiteError(f"{path}: {key}.{kind.name}", f"{error.filename}: {error.strerror}") from None
        own[section.name] = kind().make(section)
        complete.append(msgspec.to_builtins(section))
    return Plugins(registered.kind, {**registered.loaded, **own}, registered.failures), tuple(complete)


def _kind_of(path: Path, key: str, section: Mapping[str, Any], kinds: Plugins[WorkloadKind]) -> type[WorkloadKind]:
    stated = sorted(set(section) & {*kinds.loaded, *kinds.failures})
    if len(stated) == 1:
        return kinds.get(stated[0])
    known = ", ".join(f"{name} ({kind.summary})" for name, kind in sorted(kinds.loaded.items()))
    problem = f"{' and '.join(stated)} are there, and only one can be" if stated else "says nothing of what it runs"
    raise SuiteError(f"{path}: {key}", problem, remedy=f"state one of: {known}")
