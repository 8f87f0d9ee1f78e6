"""What the Docker Engine's API is asked for when a container is made, from typed values. Pure.

https://docs.docker.com/reference/api/engine/, version 1.41; the profile is that of ``oci_config``.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from tare.backends.cgroups.lifecycle import NEVER_REACHED
from tare.backends.cgroups.limits import Limits
from tare.backends.engines.oci_config import Plan, make_seccomp
from tare.backends.native.seccomp import CAPABILITIES
from tare.backends.native.setup import MASKED, READ_ONLY

_PERIOD_US = 100_000
_SHARES_PER_WEIGHT = 10.24
_RATES = {
    "io_read_bytes_per_s": "BlkioDeviceReadBps",
    "io_write_bytes_per_s": "BlkioDeviceWriteBps",
    "io_read_ops_per_s": "BlkioDeviceReadIOps",
    "io_write_ops_per_s": "BlkioDeviceWriteIOps",
}
LIMITED = (
    *("cpus", "cpu_quota", "cpu_weight", "memory_bytes", "swap_bytes", "pids_max"),
    *_RATES,
)
"""The fields of the envelope that Docker sets."""


def make_container(
    plan: Plan,
    *,
    labels: Mapping[str, str],
    runtime: str,
    network: str,
    device: str | None = None,
    counts_by_rules: bool = False,
    attached: bool = False,
) -> dict[str, Any]:
    """The body of ``POST /containers/create``.

    ``plan.root`` is the image's name, ``plan.cgroup`` the path of the parent from the hierarchies' roots. ``device`` is
    a node of the block device that is limited; with ``counts_by_rules`` it gets rules that no device reaches, as blkio
    of v1 counts nothing without. ``attached`` opens the standard input for whoever is attached.
    """
    return {
        "Image": plan.root,
        "Hostname": plan.hostname,
        "User": "0:0",
        "WorkingDir": "/",
        "Entrypoint": list(plan.argv),
        "Cmd": [],
        "Env": [f"{name}={value}" for name, value in plan.environment.items()],
        "Labels": dict(labels),
        "Tty": False,
        "OpenStdin": attached,
        "StdinOnce": attached,
        "HostConfig": {
            "CgroupParent": plan.cgroup,
            "CgroupnsMode": "private",
            "IpcMode": "private",
            "NetworkMode": network,
            "Runtime": runtime,
            "Mounts": [
                {
                    "Type": "bind",
                    "Source": bind.source,
                    "Target": bind.destination,
                    "ReadOnly": bind.read_only,
                    "BindOptions": {"Propagation": "rprivate"},
                }
                for bind in plan.binds
            ],
            "CapDrop": ["ALL"],
            "CapAdd": [f"CAP_{name}" for name, number in CAPABILITIES.items() if number in plan.capabilities],
            "SecurityOpt": ["no-new-privileges", f"seccomp={_seccomp(plan)}"],
            "OomScoreAdj": 1000,
            "MaskedPaths": [*MASKED, *plan.masked],
            "ReadonlyPaths": list(READ_ONLY),
            **_resources(plan.limits, device, counts_by_rules=counts_by_rules),
        },
    }


def _seccomp(plan: Plan) -> str:
    if not plan.seccomp:
        return "unconfined"
    return msgspec.json.encode(make_seccomp(tuple(plan.capabilities), plan.machine)).decode()


def _resources(limits: Limits, device: str | None, *, counts_by_rules: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "cpus" in limits:
        found["CpusetCpus"] = ",".join(map(str, limits["cpus"]))
    if "cpu_quota" in limits:
        found |= {"CpuQuota": round(limits["cpu_quota"] * _PERIOD_US), "CpuPeriod": _PERIOD_US}
    if "cpu_weight" in limits:
        found["CpuShares"] = round(limits["cpu_weight"] * _SHARES_PER_WEIGHT)
    if "memory_bytes" in limits:
        found["Memory"] = limits["memory_bytes"]
        found["MemorySwap"] = limits["memory_bytes"] + limits.get("swap_bytes", 0)
    if "pids_max" in limits:
        found["PidsLimit"] = limits["pids_max"]
    if device is not None:
        rates = {key: limits[name] for name, key in _RATES.items() if name in limits}
        if counts_by_rules:
            counted = ("BlkioDeviceReadBps", "BlkioDeviceWriteBps")
            rates = {**dict.fromkeys(counted, NEVER_REACHED), **rates}
        found |= {key: [{"Path": device, "Rate": rate}] for key, rate in rates.items()}
    return found


def parse_stats(stats: Mapping[str, Any]) -> tuple[float, int]:
    """CPU seconds and bytes of memory as ``GET /containers/ID/stats`` tells them."""
    return stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9, stats["memory_stats"]["usage"]


def describe_version(version: Mapping[str, Any]) -> str:
    """``Docker 20.10.24 (containerd 1.6.20, runc 1.1.5)``, as far as the daemon says."""
    below = [
        f"{part.get('Name')} {part.get('Version')}"
        for part in version.get("Components") or ()
        if part.get("Name") in {"containerd", "runc"}
    ]
    engine = f"Docker {version.get('Version', '')}".strip()
    return f"{engine} ({', '.join(below)})" if below else engine
