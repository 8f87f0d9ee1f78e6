"""The hosts that a plan is for: resources, reserve, overcommitment."""

import math
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from tare.bench.records import Manifest

MEMORY_CGROUPS = 65_535
"""The kernel numbers memory cgroups with 16 bits (``MEM_CGROUP_ID_MAX``); every instance has at least one."""
LEAST_MEMORY = 2**30


class Resource(StrEnum):
    """What a host can run out of."""

    MEMORY = "memory"
    CPU = "cpu"
    DISK = "disk"
    CGROUPS = "memory cgroups"


OVERCOMMITTED = (Resource.CPU, Resource.MEMORY, Resource.DISK)
"""Resources that can be overcommitted by limits."""


class HostType(msgspec.Struct, frozen=True):
    """A kind of host; ``count`` is how many of it there are, None for as many as are needed.

    ``memory`` and ``disk`` are in bytes; without ``disk``, disk bounds nothing. By resource: ``overcommit`` is the
    factor by which the sum of limits may exceed it, ``reserve`` what the host keeps for itself, in CPUs or bytes.
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

    def usable(self, resource: Resource, *, by_limit: bool) -> float:
        """What instances can use together, or what their limits may add up to."""
        factor = self.overcommit.get(resource, 1.0) if by_limit else 1.0
        return max(0.0, self.has(resource) - self.reserved(resource)) * factor


def find_measured_host(manifest: Manifest) -> HostType | None:
    """The host of a run by its facts (the disk is not among them); None without its CPUs or its memory."""
    known = {fact.name: fact.number for fact in manifest.host}
    cpus, memory = known.get("cpus"), known.get("memory")
    return None if cpus is None or memory is None else HostType("the measured host", cpus, int(memory))
