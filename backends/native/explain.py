"""The whole of a start in words, without taking any of its steps: what ``tare exec native --explain`` prints."""

from pathlib import Path

from tare.backends.cgroups.layout import Layout, Version
from tare.backends.cgroups.lifecycle import PREFIX, Cgroup, ProcessTree
from tare.backends.cgroups.limits import Limits
from tare.backends.native.order import instance_operations, namespaces, zygote_operations
from tare.backends.native.places import make_plan
from tare.backends.native.plan import Settings
from tare.bench.model import InstanceSpec


def explain_start(settings: Settings, spec: InstanceSpec, folder: Path, layout: Layout, limits: Limits) -> list[str]:
    """Every step with its number, as an error would name it; ``folder`` is the instance's and need not exist."""
    cgroup, cgroup_folders = _find_cgroup(layout, PREFIX + spec.identifier)
    once = zygote_operations(settings)
    steps = instance_operations(settings, make_plan(settings, spec, folder, cgroup))
    born_in = cgroup_folders[0] if layout.version is Version.V2 else cgroup.clone_into
    into = "" if born_in is None else f" into {born_in} (CLONE_INTO_CGROUP)"
    return [
        "once, in the zygote:",
        *_number([step.describe() for step in once]),
        "for each instance, in the harness, while the kernel makes the process:",
        *_number(
            [
                *(f"make the cgroup {path}" for path in cgroup_folders),
                f"limit it: {_describe_limits(limits)}",
                f"make the folders in {folder}",
            ]
        ),
        "for each instance, in the zygote:",
        *_number([f"clone3 a process with new namespaces {', '.join(namespaces(settings))}{into}"]),
        "for each instance, in that process, once the harness says that the cgroups are there"
        + (" and has written its identity maps:" if settings.uid_map else ":"),
        *_number([step.describe() for step in steps]),
        *(
            ["meanwhile, in the harness:", *_number(["connect it by a veth pair"])]
            if settings.network == "veth"
            else []
        ),
        "ready: it runs commands, forwards signals and reaps orphans",
    ]


def _find_cgroup(layout: Layout, name: str) -> tuple[Cgroup, tuple[Path, ...]]:
    """What an instance would join, and the folders that would be made."""
    if layout.version is Version.V2:
        # A cgroup of v2 prepares its parent, which moves processes; an instance is born in it and joins nothing.
        return ProcessTree(), () if layout.unified is None else (layout.unified / name,)
    if layout.version is Version.NONE:
        return ProcessTree(), ()
    cgroup = Cgroup(layout, name)
    return cgroup, cgroup.folders


def _describe_limits(limits: Limits) -> str:
    return ", ".join(
        f"{name} {','.join(map(str, value)) if isinstance(value, tuple) else value}" for name, value in limits.items()
    )


def _number(lines: list[str]) -> list[str]:
    return [f"{number:4d}. {line}" for number, line in enumerate(lines, 1)]
