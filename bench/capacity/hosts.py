"""The hosts that a plan is for: what they have, what they keep, what may be promised more often than it is there."""

import math
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from tare.bench.model import Manifest

MEMORY_CGROUPS = 65_535
"""The kernel numbers memory cgroups with 16 bits (``MEM_CGROUP_ID_MAX``); every instance has at least one."""
LEAST_MEMORY = 2**30


class Resource(StrEnum):
    """What a host has, and can have too little of."""

    MEMORY = "memory"
    CPU = "cpu"
    DISK = "disk"
    CGROUPS = "memory cgroups"


OVERCOMMITTED = (Resource.CPU, Resource.MEMORY, Resource.DISK)
"""Resources that can be promised more often than they are there."""


class HostType(msgspec.Struct, frozen=True):
    """A kind of host; ``count`` is how many of it there are, None for as many as are needed.

    ``memory`` and ``disk`` are in bytes; without ``disk``, disk bounds nothing. ``overcommit`` is how often what is
    promised may be there, ``reserve`` what the host keeps for itself, in CPUs and bytes, each by resource.
    """

    name: str
    cpus: float
    memory: int
    disk: int | None = None
    count: int | None = None
    overcommit: Mapping[Resource, float] = {}
    reserve: Mapping[Resource, float] = {}

    def has(self, resource: Resource) -> float:
        """All of a resource; infinite where nothing is known that could end."""
        match resource:
            case Resource.MEMORY:
                return float(self.memory)
            case Resource.CPU:
                return self.cpus
            case Resource.DISK:
                return math.inf if self.disk is None else float(self.disk)
        return float(MEMORY_CGROUPS)

    def reserved(self, resource: Resource) -> float:
        """What is kept for the host.

        By default a tenth of its memory and at least 1 GiB (where a ramp of ``density`` ends, too), a twentieth of its
        CPUs and at least half of one, a tenth of its disk.
        """
        if resource in self.reserve:
            return self.reserve[resource]
        whole = self.has(resource)
        match resource:
            case Resource.MEMORY:
                return max(whole / 10, LEAST_MEMORY)
            case Resource.CPU:
                return max(whole / 20, 0.5)
            case Resource.DISK if math.isfinite(whole):
                return whole / 10
        return 0.0

    def usable(self, resource: Resource, *, promised: bool) -> float:
        """What instances can have together: of what they use, or of what they are ``promised``."""
        factor = self.overcommit.get(resource, 1.0) if promised else 1.0
        return max(0.0, self.has(resource) - self.reserved(resource)) * factor


def find_problem(host: HostType) -> tuple[str, str] | None:
    """What of a host makes no sense: the key and the reason, or None."""
    if not (math.isfinite(host.cpus) and host.cpus > 0):
        return "cpus", f"must be more than 0, not {host.cpus:g}"
    if host.memory <= 0:
        return "memory", "must be more than 0"
    if host.disk is not None and host.disk <= 0:
        return "disk", "must be more than 0"
    if host.count is not None and host.count < 1:
        return "count", f"must be 1 or more, not {host.count}"
    for resource, factor in host.overcommit.items():
        if not (math.isfinite(factor) and factor > 0):
            return f"overcommit.{resource}", f"must be more than 0, not {factor:g}"
    for resource in (Resource.CPU, Resource.MEMORY, Resource.DISK):
        if host.reserved(resource) >= host.has(resource):
            return f"reserve.{resource}", "leaves nothing of it for instances"
    return None


def find_measured_host(manifest: Manifest) -> HostType | None:
    """The host of a run, as far as it tells of itself (not its disk); None without its CPUs or its memory."""
    known = {fact.name: fact.number for fact in manifest.host}
    cpus, memory = known.get("cpus"), known.get("memory")
    return None if cpus is None or memory is None else HostType("the measured host", cpus, int(memory))
