"""What host this is: the facts a reader needs to judge or repeat a result.

Everything is read from files under injectable roots. A fact that this host does not report is left out, never guessed.
"""

import contextlib
import hashlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from tare.bench.catalogue import ConfoundCode
from tare.bench.linux.files import HERE, HostRoots, find_field, find_text
from tare.bench.linux.hypervisor import find_hypervisor, read_kvm_settings
from tare.bench.linux.memory import read_meminfo
from tare.bench.linux.mounts import find_mount, read_mounts
from tare.bench.model import Confound, Fact
from tare.bench.readable import one_line
from tare.bench.records import Fingerprint
from tare.bench.units import Unit

EMULATED_PROCESSOR = "emulated processor"
"""The fact that a host has whose processor is a program."""


def read_facts(storage: Path, roots: HostRoots = HERE) -> tuple[Fact, ...]:
    """The facts of this host; ``storage`` is the folder that instances live in."""
    return tuple(_facts(storage, roots))


def summarise(facts: tuple[Fact, ...]) -> str:
    """One line about the host; what it runs under is a fact and a confound of its own."""
    known = {fact.name: fact.text for fact in facts}
    parts = [
        f"{known.get('cpus', '?')} CPUs {known.get('cpu model', 'of an unknown model')}",
        known.get("memory", "memory unknown"),
        f"Linux {known.get('kernel', '?')}",
        known.get("distribution", ""),
    ]
    return ", ".join(part for part in parts if part)


def host_fingerprint(roots: HostRoots = HERE) -> Fingerprint:
    """Which host this is: the same after reboots, updates and loads, and different from every other host.

    Made from the machine's own identifier (systemd's machine-id, otherwise the firmware's UUID, which only root may
    read; kept as a digest), the CPU model, the memory and the architecture.
    """
    machine = find_text(roots.etc / "machine-id") or find_text(roots.sys / "class/dmi/id/product_uuid")
    made_from = {
        "machine": _digest(machine.lower()) if machine else "",
        "cpu model": find_field(find_text(roots.proc / "cpuinfo"), "model name") or "",
        "memory": _installed_memory(roots),
        "architecture": platform.machine(),
    }
    return Fingerprint(_digest("\n".join(f"{name}={value}" for name, value in made_from.items())), made_from)


def _installed_memory(roots: HostRoots) -> str:
    """The kernel's memory blocks; without them MemTotal, which depends on the kernel, to the nearest GiB."""
    folder = roots.sys / "devices/system/memory"
    size = find_text(folder / "block_size_bytes")
    if size and (blocks := len(list(folder.glob("memory[0-9]*")))):
        return f"{int(size, 16) * blocks} B"
    with contextlib.suppress(OSError, KeyError):
        return f"{round(read_meminfo(roots)['MemTotal'] / 2**30)} GiB"
    return ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def host_confounds(facts: tuple[Fact, ...], instance_cpus: tuple[int, ...]) -> Iterator[Confound]:
    """What about this host may explain a difference other than isolation, or hide one."""
    known = {fact.name: fact.text for fact in facts}
    if EMULATED_PROCESSOR in known:
        yield Confound(
            ConfoundCode.HOST_EMULATED,
            f"This host's own processor is emulated in software ({known[EMULATED_PROCESSOR]}): no time measured here "
            "says anything of hardware, on bare metal, in a container or in a virtual machine.",
        )
    if known.get("virtualization", "none seen") != "none seen":
        yield Confound(
            ConfoundCode.HOST_VIRTUAL,
            f'The host is itself a virtual machine ({known["virtualization"]}), so "host" here is not bare metal and a '
            "guest under KVM is nested; results on hardware may differ.",
        )
    if not set(os.sched_getaffinity(0)) - set(instance_cpus):
        detail = "The instances have every CPU of the host, so tare itself runs on the same CPUs."
        yield Confound("cpus-shared-with-tare", detail)
    if known.get("storage file system") in {"tmpfs", "ramfs"}:
        detail = "Instances live on a memory file system: I/O figures are memory figures."
        yield Confound("storage-in-memory", detail)
    if known.get("same-page merging") == "1":
        yield Confound(
            "same-page-merging",
            "The kernel merges equal pages (KSM): it looks for them among guests' memory only, takes CPU time for it, "
            "and guests that hold the same cost less memory than they would without it.",
        )
    if known.get("frequency governor", "performance") != "performance":
        detail = f"The CPU frequency governor is {known['frequency governor']}: clocks move with the load."
        yield Confound("frequency-governor", detail)


def _facts(storage: Path, roots: HostRoots) -> Iterator[Fact]:
    cpuinfo = find_text(roots.proc / "cpuinfo") or ""
    source = str(roots.proc / "cpuinfo")
    yield Fact("host name", one_line(platform.node()), "uname")
    if model := find_field(cpuinfo, "model name"):
        yield Fact("cpu model", model, source)
    cpus = cpuinfo.count("processor\t:")
    yield Fact("cpus", str(cpus), source, cpus, Unit.COUNT)
    under = find_hypervisor(roots)
    name = "none seen" if under is None else under.name
    yield Fact("virtualization", name, f"cpuid, {source}, {roots.sys}/class/dmi/id")
    if under is not None and under.emulated:
        yield Fact(EMULATED_PROCESSOR, under.name, "cpuid 0x40000000")
    with contextlib.suppress(OSError, KeyError):
        size = read_meminfo(roots)["MemTotal"]
        yield Fact("memory", f"{size / 2**30:.1f} GiB", str(roots.proc / "meminfo"), size, Unit.BYTE)
    yield Fact("kernel", platform.release(), "uname")
    yield Fact("architecture", platform.machine(), "uname")
    with contextlib.suppress(OSError, KeyError):
        yield Fact("distribution", platform.freedesktop_os_release()["PRETTY_NAME"], "os-release")
    yield from _tunables(roots)
    yield from _kvm(roots)
    yield from _mounted(storage, roots)
    yield Fact("python", platform.python_version(), "sys")


_TUNABLES = (
    ("frequency governor", "sys", "devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    ("turbo disabled", "sys", "devices/system/cpu/intel_pstate/no_turbo"),
    ("boost", "sys", "devices/system/cpu/cpufreq/boost"),
    ("SMT", "sys", "devices/system/cpu/smt/control"),
    ("transparent huge pages", "sys", "kernel/mm/transparent_hugepage/enabled"),
    ("same-page merging", "sys", "kernel/mm/ksm/run"),
    ("clock source", "sys", "devices/system/clocksource/clocksource0/current_clocksource"),
    ("address space randomisation", "proc", "sys/kernel/randomize_va_space"),
    ("swappiness", "proc", "sys/vm/swappiness"),
    ("load average", "proc", "loadavg"),
)


# Only these: a kernel command line may hold addresses and secrets, and reports are mailed around.
_KERNEL_PARAMETERS = (
    "amd_pstate",
    "cgroup",
    "default_hugepagesz",
    "hugepages",
    "idle",
    "intel_idle",
    "intel_pstate",
    "isolcpus",
    "maxcpus",
    "mitigations",
    "nohz_full",
    "nosmt",
    "preempt",
    "processor.max_cstate",
    "psi",
    "rcu_nocbs",
    "swapaccount",
    "systemd.unified_cgroup_hierarchy",
    "transparent_hugepage",
)


def _tunables(roots: HostRoots) -> Iterator[Fact]:
    for name, root, relative in _TUNABLES:
        path = getattr(roots, root) / relative
        if value := find_text(path):
            yield Fact(name, value, str(path))
    given = (find_text(roots.proc / "cmdline") or "").split()
    if chosen := [word for word in given if word.startswith(_KERNEL_PARAMETERS)]:
        yield Fact("kernel parameters", " ".join(chosen), str(roots.proc / "cmdline"))
    for path in sorted((roots.sys / "devices/system/cpu/vulnerabilities").glob("*")):
        value = find_text(path)
        if value and value != "Not affected":
            yield Fact(f"mitigation {path.name}", value, str(path))


_KVM_SETTINGS = (
    "ept",
    "npt",
    "tdp_mmu",
    "nx_huge_pages",
    "halt_poll_ns",
    "nested",
    "enable_apicv",
    "avic",
    "enable_pmu",
)
"""Those that change what a guest costs most; the others stand in one fact."""


def _kvm(roots: HostRoots) -> Iterator[Fact]:
    settings = read_kvm_settings(roots)
    others = []
    for name, value in settings.items():
        if name.partition(".")[2] in _KVM_SETTINGS:
            yield Fact(name, value, f"{roots.sys}/module/{name.replace('.', '/parameters/')}")
        else:
            others.append(f"{name}={value}")
    if others:
        yield Fact("other KVM parameters", " ".join(others), f"{roots.sys}/module/kvm*/parameters")


def _mounted(storage: Path, roots: HostRoots) -> Iterator[Fact]:
    """The version of cgroups, and the file system and device below ``storage``."""
    source = str(roots.proc / "self/mountinfo")
    try:
        mounts = read_mounts(roots)
    except OSError:
        mounts = []
    versions = {("v1", "v2")[mount.kind == "cgroup2"] for mount in mounts if mount.kind in {"cgroup", "cgroup2"}}
    yield Fact("cgroup", "hybrid" if len(versions) == 2 else "".join(versions) or "none", source)
    if mount := find_mount(storage, mounts):
        yield Fact("storage", f"{storage} on {mount.source}, mounted at {mount.point}", source)
        yield Fact("storage file system", mount.kind, source)
