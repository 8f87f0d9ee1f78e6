"""``config.json`` of the OCI runtime specification, from typed values. Pure.

https://github.com/opencontainers/runtime-spec, version 1.0.2; the profile is that of tare's own containers: Docker's
capabilities, its system-call filter in intent, its masked paths.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tare.backends.cgroups.limits import Limits
from tare.backends.native.seccomp import ARCHITECTURES, CAPABILITIES, Condition, allowed_calls, conditions
from tare.backends.native.setup import MASKED, READ_ONLY
from tare.bench.model import BASE_ENVIRONMENT

VERSION = "1.0.2"
_PERIOD_US = 100_000
_SHARES_PER_WEIGHT = 10.24
_ENOSYS, _EPERM = 38, 1
_NAMESPACES = ("pid", "network", "ipc", "uts", "mount", "cgroup")
_DEV = "/dev"
_QUIET = ("nosuid", "noexec", "nodev")
_RATES = {
    "io_read_bytes_per_s": "throttleReadBpsDevice",
    "io_write_bytes_per_s": "throttleWriteBpsDevice",
    "io_read_ops_per_s": "throttleReadIOPSDevice",
    "io_write_ops_per_s": "throttleWriteIOPSDevice",
}


class Bind(msgspec.Struct, frozen=True):
    """A folder of the host's at a place of the container's."""

    source: str
    destination: str
    read_only: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a container is to be.

    ``root`` is the folder that becomes its root. ``cgroup`` is the path of its cgroup: relative to the runtime's own,
    or from the hierarchies' roots. ``limits`` are those that the runtime sets, by field of the envelope.
    ``capabilities`` are numbers; ``seccomp`` asks for the system-call filter. ``network`` of None shares the host's,
    an empty one is a new namespace, anything else the path of one.
    """

    root: str
    argv: Sequence[str]
    hostname: str
    cgroup: str
    limits: Limits
    binds: Sequence[Bind] = ()
    environment: Mapping[str, str] = msgspec.field(default_factory=lambda: BASE_ENVIRONMENT)
    capabilities: Sequence[int] = ()
    seccomp: bool = True
    machine: str = "x86_64"
    network: str | None = ""
    masked: Sequence[str] = ()


def _namespaces(plan: Plan) -> list[dict[str, str]]:
    names = [name for name in _NAMESPACES if name != "network" or plan.network is not None]
    return [{"type": name, **({"path": plan.network} if name == "network" and plan.network else {})} for name in names]


def make_config(plan: Plan) -> dict[str, Any]:
    """The content of ``config.json``, in what msgspec and json write."""
    return {
        "ociVersion": VERSION,
        "process": _process(plan),
        "root": {"path": plan.root, "readonly": False},
        "hostname": plan.hostname,
        "mounts": [*_mounts(), *map(_bind, plan.binds)],
        "linux": {
            "namespaces": _namespaces(plan),
            "cgroupsPath": plan.cgroup,
            "resources": _resources(plan.limits),
            "maskedPaths": [*MASKED, *plan.masked],
            "readonlyPaths": list(READ_ONLY),
            **({"seccomp": make_seccomp(tuple(plan.capabilities), plan.machine)} if plan.seccomp else {}),
        },
    }


def _process(plan: Plan) -> dict[str, Any]:
    names = [f"CAP_{name}" for name, number in CAPABILITIES.items() if number in plan.capabilities]
    return {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": list(plan.argv),
        "env": [f"{name}={value}" for name, value in plan.environment.items()],
        "cwd": "/",
        "capabilities": {"bounding": names, "effective": names, "permitted": names, "inheritable": [], "ambient": []},
        "noNewPrivileges": True,
        "oomScoreAdj": 1000,  # as tare's own containers: the host is to take an instance, never tare
    }


def _mounts() -> list[dict[str, Any]]:
    def mount(kind: str, destination: str, *options: str, source: str = "") -> dict[str, Any]:
        return {"destination": destination, "type": kind, "source": source or kind, "options": list(options)}

    return [
        mount("proc", "/proc", *_QUIET),
        mount("tmpfs", _DEV, "nosuid", "strictatime", "mode=755", "size=65536k"),
        mount("devpts", f"{_DEV}/pts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        mount("tmpfs", f"{_DEV}/shm", *_QUIET, "mode=1777", "size=65536k", source="shm"),
        mount("mqueue", f"{_DEV}/mqueue", *_QUIET),
        mount("sysfs", "/sys", *_QUIET, "ro"),
        mount("cgroup", "/sys/fs/cgroup", *_QUIET, "relatime", "ro"),
    ]


def _bind(bind: Bind) -> dict[str, Any]:
    options = ["bind", "rprivate", "nosuid", "nodev", *(["ro"] if bind.read_only else [])]
    return {"destination": bind.destination, "type": "bind", "source": bind.source, "options": options}


def _resources(limits: Limits) -> dict[str, Any]:
    cpu: dict[str, Any] = {}
    if "cpus" in limits:
        cpu["cpus"] = ",".join(map(str, limits["cpus"]))
    if "cpu_quota" in limits:
        cpu |= {"quota": round(limits["cpu_quota"] * _PERIOD_US), "period": _PERIOD_US}
    if "cpu_weight" in limits:
        cpu["shares"] = round(limits["cpu_weight"] * _SHARES_PER_WEIGHT)
    found: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}], "cpu": cpu}
    if "memory_bytes" in limits:
        found["memory"] = {"limit": limits["memory_bytes"]}
    if "pids_max" in limits:
        found["pids"] = {"limit": limits["pids_max"]}
    if "io_device" in limits:
        major, minor = map(int, limits["io_device"].split(":"))
        rates = {key: limits[name] for name, key in _RATES.items() if name in limits}
        found["blockIO"] = {key: [{"major": major, "minor": minor, "rate": rate}] for key, rate in rates.items()}
    return found


def make_seccomp(capabilities: tuple[int, ...], machine: str) -> dict[str, Any]:
    """The system-call filter of tare's own containers as the specification writes it."""
    rules: list[dict[str, Any]] = [{"names": list(allowed_calls(capabilities)), "action": "SCMP_ACT_ALLOW"}]
    rules += [_conditional(condition) for condition in conditions(capabilities)]
    if "clone3" not in allowed_calls(capabilities):
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,
        "architectures": [f"SCMP_ARCH_{name}" for name in ARCHITECTURES.get(machine, ())],
        "syscalls": rules,
    }


def _conditional(condition: Condition) -> dict[str, Any]:
    argument: dict[str, Any] = {"index": condition.argument, "value": condition.value, "op": "SCMP_CMP_NE"}
    if condition.equal:
        masked = {"value": condition.mask, "valueTwo": condition.value, "op": "SCMP_CMP_MASKED_EQ"}
        argument = {"index": condition.argument, **masked}
    return {"names": [condition.call], "action": "SCMP_ACT_ALLOW", "args": [argument]}
