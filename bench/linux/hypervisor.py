"""What this host runs under: CPUID's hypervisor leaf, the firmware's names, and KVM's own settings.

Sources: Linux ``Documentation/virt/kvm/x86/cpuid.rst``, QEMU ``target/i386/cpu.c`` (TCG's signature), and systemd
``src/basic/virt.c`` (those of others).
"""

import contextlib
import mmap
import platform
import struct

import msgspec

from tare.bench.linux.files import HERE, HostRoots, find_field, find_text

_LEAF = 0x40000000
_EMULATED = "TCGTCGTCGTCG"
_SIGNATURES = {
    "KVMKVMKVM": "KVM",
    "Linux KVM Hv": "KVM",
    _EMULATED: "QEMU without KVM (TCG)",
    "Microsoft Hv": "Hyper-V",
    "VMwareVMware": "VMware",
    "XenVMMXenVMM": "Xen",
    "bhyve bhyve ": "bhyve",
    "ACRNACRNACRN": "ACRN",
    "SRESRESRESRE": "SRE",
    "QNXQVMBSQG": "QNX",
}
_VENDORS = ("QEMU", "KVM", "VMware", "VirtualBox", "Xen", "Microsoft", "Google", "Amazon", "OpenStack", "Bochs")
_EMULATED_MODEL = "QEMU TCG CPU"
"""What ``-cpu max`` is called; a machine with another model says by CPUID that it is emulated."""

# Puts what CPUID answers to the leaf ``edi`` into the three words at ``rsi``: push rbx; mov eax, edi; xor ecx, ecx;
# cpuid; mov [rsi], ebx; mov [rsi+4], ecx; mov [rsi+8], edx; pop rbx; ret
_CPUID = bytes.fromhex("53 89f8 31c9 0fa2 891e 894e04 895608 5b c3")


class Hypervisor(msgspec.Struct, frozen=True):
    """``emulated``: the processor itself is a program, so that no time measured on it says anything of a machine."""

    name: str
    emulated: bool = False


def find_hypervisor(roots: HostRoots = HERE) -> Hypervisor | None:
    """The hypervisor that this host runs under, as far as it shows; None where none does."""
    cpuinfo = find_text(roots.proc / "cpuinfo")
    if "hypervisor" not in (find_field(cpuinfo, "flags") or "").split():
        return None
    signature = cpuid_signature() if roots == HERE else ""
    known = _SIGNATURES.get(signature, "")
    emulated = signature == _EMULATED or (find_field(cpuinfo, "model name") or "").startswith(_EMULATED_MODEL)
    if emulated:
        known = _SIGNATURES[_EMULATED]
    product = _product(roots)
    names = [name for name in (known, product) if name]
    fallback = find_text(roots.sys / "hypervisor/type") or "vendor unknown"
    return Hypervisor(", ".join(names) or fallback, emulated)


def _product(roots: HostRoots) -> str:
    """The machine's name in its firmware, where it is one of a virtual machine."""
    texts = (find_text(roots.sys / "class/dmi/id" / name) or "" for name in ("sys_vendor", "product_name"))
    product = " ".join(texts).strip()
    return product if any(vendor in product for vendor in _VENDORS) else ""


def cpuid_signature() -> str:
    """The hypervisor's signature in CPUID, twelve characters at most; empty where it cannot be asked for.

    Any program may execute the instruction; the kernel's own file of it (``/dev/cpu/0/cpuid``) needs a module.
    """
    if platform.machine() != "x86_64":
        return ""
    import ctypes

    # A security module may forbid memory that can be written and executed.
    with contextlib.suppress(OSError), mmap.mmap(-1, mmap.PAGESIZE, prot=7) as code:
        code.write(_CPUID)
        words = (ctypes.c_uint32 * 3)()
        place = ctypes.c_char.from_buffer(code)
        try:
            call = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_void_p)(ctypes.addressof(place))
            call(_LEAF, words)
        finally:
            del place
        return struct.pack("<3I", *words).rstrip(b"\0").decode("ascii", "replace")
    return ""


def read_kvm_settings(roots: HostRoots = HERE) -> dict[str, str]:
    """The parameters of KVM's modules, named ``kvm_amd.npt``; empty where there is no KVM."""
    settings = {}
    for pattern in ("kvm", "kvm_*"):
        for file in sorted((roots.sys / "module").glob(f"{pattern}/parameters/*")):
            if (value := find_text(file)) is not None:
                settings[f"{file.parts[-3]}.{file.name}"] = value
    return settings
