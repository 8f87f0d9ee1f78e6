"""``tare doctor --report``: what somebody elsewhere needs to understand why guests do or do not boot under KVM here.

It is meant to be mailed: no environment, no command line of the kernel beyond what tare knows the meaning of, no host
name, no serial numbers or addresses; the home folder is written as ``~``. Of the kernel's log only lines about
virtualization are in it.
"""

import contextlib
import grp
import importlib.metadata
import os
import platform
import pwd
import re
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tare.bench.errors import TareError
from tare.bench.host import read_facts
from tare.bench.interfaces import Proved
from tare.bench.linux.files import HERE, HostRoots, find_field, find_text
from tare.bench.linux.hypervisor import cpuid_signature, read_kvm_settings
from tare.bench.locations import work_directory
from tare.bench.process import run
from tare.bench.readable import readable

_CPU_FIELDS = ("vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags", "vmx flags", "bugs")
_MODULES = re.compile(r"^(kvm|vhost|tun|tap|virtio|vfio|irqbypass|ccp|hv_|vmw|xen)")
_ABOUT = re.compile(r"\b(kvm|svm|vmx|npt|ept|sev|tdx|nested|hypervisor|virtualization)\b", re.IGNORECASE)
_LOG_LINES = 200
_PRIVATE_FACTS = frozenset({"host name", "storage"})
_DISTRIBUTIONS = ("tarebench", "libvirt-python", "msgspec", "numpy")


def host_report(checks: Mapping[str, str], proofs: Mapping[str, Proved], roots: HostRoots = HERE) -> str:
    """The text of the report. ``checks`` is what doctor found, ``proofs`` what backends tried out, both by name."""
    parts = [
        f"tare host report, {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}",
        *(_section(title, text) for title, text in _sections(roots)),
        _section("What tare doctor found", _listed(checks)),
    ]
    for name, proved in proofs.items():
        outcome = {"works": str(proved.outcome.available).lower(), "outcome": proved.outcome.reason}
        parts.append(_section(f"Tried out: backend {name}", _listed(outcome)))
        parts += [_section(f"{name}: {title}", text) for title, text in proved.texts.items()]
    return _without_home("\n\n".join(parts)) + "\n"


def _section(title: str, text: str) -> str:
    lines = (readable(line) for line in text.splitlines())
    return "\n".join((f"== {title} ==", *lines)) if text.strip() else f"== {title} ==\n(nothing)"


def _sections(roots: HostRoots) -> Iterator[tuple[str, str]]:
    yield "Versions", _listed(_versions())
    yield (
        "Host",
        _listed({fact.name: fact.text for fact in read_facts(work_directory(), roots) if _is_public(fact.name)}),
    )
    yield "Processor", _listed(_processor(roots))
    yield "/dev/kvm", _device(Path("/dev/kvm"))
    yield "Parameters of KVM's modules", _listed(read_kvm_settings(roots))
    loaded = (find_text(roots.proc / "modules") or "").splitlines()
    yield "Kernel modules", "\n".join(" ".join(line.split()[:3]) for line in loaded if _MODULES.match(line))
    yield "Kernel log about virtualization", _log()


def _is_public(fact: str) -> bool:
    return fact not in _PRIVATE_FACTS


def _listed(texts: Mapping[str, str]) -> str:
    return "\n".join(f"{name}: {text}" for name, text in texts.items())


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "kernel": platform.release(), "kernel build": platform.version()}
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _processor(roots: HostRoots) -> dict[str, str]:
    text = find_text(roots.proc / "cpuinfo")
    fields = {name: find_field(text, name) for name in _CPU_FIELDS}
    known = {name: value for name, value in fields.items() if value is not None}
    return {**known, "hypervisor leaf of cpuid": cpuid_signature() or "none"}


def _device(device: Path) -> str:
    """Mode and owner of a device; who may open it is what many hosts have wrong."""
    try:
        status = device.stat()
    except OSError as error:
        return f"{device}: {error.strerror}"
    user, group = str(status.st_uid), str(status.st_gid)
    with contextlib.suppress(KeyError):
        user, group = pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid).gr_name
    may = "may be opened" if os.access(device, os.R_OK | os.W_OK) else "may not be opened by this user"
    return f"{stat.filemode(status.st_mode)} {user}:{group}, {may}"


def _log() -> str:
    try:
        lines = run(["dmesg"], timeout_s=30).splitlines()
    except TareError as error:
        return f"it may not be read here: {error.message}"
    return "\n".join([line for line in lines if _ABOUT.search(line)][-_LOG_LINES:])


def _without_home(text: str) -> str:
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises where there is none
    return text.replace(home, "~") if len(home) > 1 else text
