"""The settings of a host that make measurements noisy, where they lie, what is better, and why.

A setting is a few files of the kernel; which of them this host has is found out by looking. Nothing here writes.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from tare.bench.linux.cpus import format_cpus, format_mask, parse_cpus, parse_mask
from tare.bench.linux.files import HostRoots

AWAY = "away"
"""The value of the setting ``irq``: interrupts go to the CPUs that are not the instances'."""


class Target(msgspec.Struct, frozen=True):
    """One file with what is to be written. ``wanted`` is None where a file is only to be kept as it is.

    Some files follow others: the kernel changes a policy's energy preference along with its governor. They are kept, so
    that restoring brings them back too. ``may_refuse`` is for what is better moved, and which some kernels hold fast.
    """

    path: Path
    wanted: str | None
    may_refuse: bool = False


class Setting(msgspec.Struct, frozen=True):
    """One setting. ``values`` are those that can be asked for; ``only_on_request`` keeps it out of a plain ``apply``.

    ``targets`` gives the files for a value on this host, none if it has no such setting, for the instances' CPUs.
    """

    name: str
    title: str
    recommended: str
    why: str
    values: tuple[str, ...]
    targets: Callable[[HostRoots, str, frozenset[int]], list[Target]]
    only_on_request: bool = False


def read_value(path: Path) -> str:
    """The value in a file; of a list of choices (``always [madvise] never``) the one in brackets. Raises OSError."""
    text = path.read_text("utf-8").strip()
    if "[" in text and "]" in text:
        return text.partition("[")[2].partition("]")[0]
    return text


def find_value(path: Path) -> str | None:
    """The same, None if it cannot be read."""
    try:
        return read_value(path)
    except OSError:
        return None


def same_value(path: Path, first: str, second: str) -> bool:
    """Whether two texts mean the same to the file's kernel interface: lists and masks of CPUs are sets."""
    if first == second:
        return True
    parse = {"smp_affinity_list": parse_cpus, "default_smp_affinity": parse_mask}.get(path.name)
    with contextlib.suppress(ValueError):
        return parse is not None and parse(first) == parse(second)
    return False


def online_cpus(roots: HostRoots) -> frozenset[int]:
    """The CPUs that are online; empty if the host does not say."""
    try:
        return parse_cpus((roots.sys / "devices/system/cpu/online").read_text("utf-8"))
    except (OSError, ValueError):
        return frozenset()


def irqs(roots: HostRoots) -> Iterator[Path]:
    """The folders of the interrupts, by number."""
    folders = [folder for folder in (roots.proc / "irq").glob("*") if folder.name.isdigit()]
    yield from sorted(folders, key=lambda folder: int(folder.name))


def describe_now(setting: Setting, roots: HostRoots, cpus: frozenset[int]) -> str:
    """What is set now, for people; empty if this host has no such setting."""
    if setting.name == "irq":
        return _describe_irqs(roots, cpus)
    values = []
    for target in setting.targets(roots, setting.recommended, cpus):
        if target.wanted is not None:
            try:
                values.append(_word(target, read_value(target.path)))
            except OSError as error:
                values.append(f"cannot be read ({error.strerror})")
    counts = {value: values.count(value) for value in dict.fromkeys(values)}
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{value} ({n}×)" for value, n in counts.items())


def obstacle(setting: Setting, roots: HostRoots, cpus: frozenset[int]) -> str:
    """Why it cannot be changed here; empty if it can, as far as can be seen without trying."""
    if setting.name == "irq" and not online_cpus(roots) - cpus:
        return "every CPU is the instances': there is none to move interrupts to"
    targets = [target for target in setting.targets(roots, setting.recommended, cpus) if target.wanted is not None]
    if not targets:
        return "this host has no such setting"
    if setting.name == "smt":
        state = find_value(targets[0].path)
        if state not in ("on", "off"):
            return f"the kernel says: {state}"
    if setting.name == "governor":
        for path in _policies(roots, "scaling_available_governors"):
            offered = (find_value(path) or "").split()
            if offered and setting.recommended not in offered:
                return f"the kernel offers: {', '.join(offered)}"
    if not any(os.access(target.path, os.W_OK) for target in targets):
        return "not as root" if os.geteuid() else "read-only here"
    return ""


def _word(target: Target, value: str) -> str:
    """On and off instead of the kernel's digits where their sense differs from file to file."""
    meaning = {"no_turbo": {"0": "on", "1": "off"}, "boost": {"0": "off", "1": "on"}}.get(target.path.name, {})
    return meaning.get(value, value)


def _describe_irqs(roots: HostRoots, cpus: frozenset[int]) -> str:
    total = there = 0
    for folder in irqs(roots):
        effective = find_value(folder / "effective_affinity_list") or find_value(folder / "smp_affinity_list")
        if effective is not None:
            total += 1
            with contextlib.suppress(ValueError):
                there += bool(parse_cpus(effective) & cpus)
    return f"{there} of {total} on CPU {format_cpus(cpus)}" if total else ""


def _existing(paths: Sequence[Path], wanted: str | None) -> list[Target]:
    return [Target(path, wanted) for path in paths if path.exists()]


def _policies(roots: HostRoots, name: str) -> list[Path]:
    folder = roots.sys / "devices/system/cpu/cpufreq"
    return sorted(folder.glob(f"policy*/{name}"), key=lambda path: int(path.parent.name.removeprefix("policy")))


def _governor(roots: HostRoots, wanted: str, _: frozenset[int]) -> list[Target]:
    follow = _existing(_policies(roots, "energy_performance_preference"), None)
    return [*follow, *_existing(_policies(roots, "scaling_governor"), wanted)]


def _turbo(roots: HostRoots, wanted: str, _: frozenset[int]) -> list[Target]:
    cpu = roots.sys / "devices/system/cpu"
    intel = _existing([cpu / "intel_pstate/no_turbo"], {"off": "1", "on": "0"}[wanted])
    found = intel or _existing([cpu / "cpufreq/boost"], {"off": "0", "on": "1"}[wanted])
    return [*_existing(_policies(roots, "scaling_max_freq"), None), *found] if found else []


def _irq(roots: HostRoots, _wanted: str, cpus: frozenset[int]) -> list[Target]:
    others = online_cpus(roots) - cpus
    if not others:
        return []
    found = []
    default = roots.proc / "irq/default_smp_affinity"
    with contextlib.suppress(OSError, ValueError):
        kept = parse_mask(read_value(default)) & others or others
        found.append(Target(default, format_mask(kept), may_refuse=True))
    for path in (folder / "smp_affinity_list" for folder in irqs(roots)):
        with contextlib.suppress(OSError, ValueError):
            # Where it may run already, as far as that is allowed: a device's own node is nearer than another.
            wanted = parse_cpus(read_value(path)) & others or others
            found.append(Target(path, format_cpus(wanted), may_refuse=True))
    return found


def _files(*names: str) -> Callable[[HostRoots, str, frozenset[int]], list[Target]]:
    """Those of the files, named below ``/proc`` or ``/sys`` with that folder, that this host has."""

    def targets(roots: HostRoots, wanted: str, _: frozenset[int]) -> list[Target]:
        places = {"proc": roots.proc, "sys": roots.sys}
        split = (name.partition("/") for name in names)
        return _existing([places[folder] / rest for folder, _, rest in split], wanted)

    return targets


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "governor",
        "frequency governor",
        "performance",
        "clocks that follow the load make the first second of a load slower than the next",
        ("performance", "powersave", "schedutil", "ondemand", "conservative", "userspace"),
        _governor,
    ),
    Setting(
        "turbo",
        "turbo, boost",
        "off",
        "clocks above the nominal depend on heat and on what the other cores do",
        ("off", "on"),
        _turbo,
    ),
    Setting(
        "aslr",
        "address space randomisation",
        "2",
        "each start draws its memory layout anew, so that no one layout's luck passes for a difference",
        ("0", "1", "2"),
        _files("proc/sys/kernel/randomize_va_space"),
    ),
    Setting(
        "thp",
        "transparent huge pages",
        "madvise",
        "'always' gives huge pages by luck and compacts memory in the background; 'never' would take them from guests",
        ("madvise", "always", "never"),
        _files("sys/kernel/mm/transparent_hugepage/enabled"),
    ),
    Setting(
        "ksm",
        "same-page merging",
        "0",
        "a kernel thread scans memory and makes pages shared whose next write costs a copy",
        ("0", "1"),
        _files("sys/kernel/mm/ksm/run"),
    ),
    Setting(
        "numa-balancing",
        "automatic NUMA balancing",
        "0",
        "the kernel unmaps pages to see who uses them, and moves them",
        ("0", "1"),
        _files("proc/sys/kernel/numa_balancing"),
    ),
    Setting(
        "watchdog",
        "lockup watchdogs",
        "0",
        "a timer on each CPU every few seconds, and a hardware counter taken",
        ("0", "1"),
        # Not kernel/watchdog, which stands for both and sets both: they may differ, and have to come back as they were.
        _files("proc/sys/kernel/nmi_watchdog", "proc/sys/kernel/soft_watchdog"),
    ),
    Setting(
        "irq",
        "interrupts",
        AWAY,
        "devices' interrupts take time from whatever runs on their CPU",
        (AWAY,),
        _irq,
    ),
    Setting(
        "smt",
        "SMT (hyper-threading)",
        "off",
        "a busy sibling takes up to half of a core; off halves the CPUs of the whole host, so only on request",
        ("off", "on"),
        _files("sys/devices/system/cpu/smt/control"),
        only_on_request=True,
    ),
)
