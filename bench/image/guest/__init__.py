"""The guest side of an image: what goes into the initramfs. The image builder packs it, the vm backend speaks to it.

By what names they speak to each other is in the C sources and in the backend.

For the packer, everything there is to know:

- ``compile_init(target)`` compiles the guest's one program, ``/init`` (static; see init.c and guest.h).
- ``module_files(modules_dep, modules_builtin)`` says what the archive holds in ``/modules``, in order. It is pure: it
  takes the *text* of ``modules.dep`` (as ``depmod -b ROOT VERSION`` writes it) and ``modules.builtin``.
- All files belong to 0:0, with time 0.
- Pack it as an *uncompressed* newc cpio: QEMU hands it over by DMA, while an emulated guest takes longer to decompress
  than to copy. Module files go in as they are (Debian's are not compressed; ``UnsupportedKernelError`` otherwise).
"""

import contextlib
from pathlib import Path

from tare.bench import inside
from tare.bench.initramfs import UnsupportedKernelError, order_modules
from tare.bench.process import run

SOURCES = (*sorted(Path(__file__).parent.glob("*.c")), *inside.SOURCES)

WANTED_MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "erofs", "overlay", "ext4")
"""Kernel modules the guest needs, in the order in which it needs them; those built into the kernel are left out."""

OPTIONAL_MODULES = ("virtio_net", "virtio_scsi", "sd_mod", "virtiofs", "virtio_balloon", "virtio_mmio")
"""Kernel modules that are loaded only where ``tare.modules`` on the kernel's command line names them."""


def compile_init(target: Path) -> None:
    """Compile the guest's program to ``target``. Raises MissingToolError (gcc) and ToolFailedError."""
    warnings = ("-Wall", "-Wextra", "-Werror")
    sources = [str(source) for source in SOURCES]
    flags = ("-std=gnu11", "-Os", *warnings, "-static", "-s", f"-I{inside.FOLDER}")
    run(["gcc", *flags, "-o", str(target), *sources], timeout_s=120)


def module_files(modules_dep: str, modules_builtin: str) -> dict[str, bytes | Path]:
    """The files in ``/modules`` by name: what is in each, or the module's path below ``lib/modules/VERSION``.

    Raises UnsupportedKernelError.
    """
    modules = order_modules(modules_dep, modules_builtin, WANTED_MODULES)
    further = optional_modules(modules_dep, modules_builtin)
    order = "".join(f"{Path(module).name}\n" for module in modules)
    optional = "".join(" ".join([name, *(Path(path).name for path in paths)]) + "\n" for name, paths in further.items())
    files = map(Path, [*modules, *(path for paths in further.values() for path in paths)])
    return {"order": order.encode(), "optional": optional.encode(), **{path.name: path for path in files}}


def optional_modules(modules_dep: str, modules_builtin: str) -> dict[str, tuple[str, ...]]:
    """For each optional module that this kernel has, the paths to load beyond those that every guest loads."""
    always = frozenset(order_modules(modules_dep, modules_builtin, WANTED_MODULES))
    further: dict[str, tuple[str, ...]] = {}
    for name in OPTIONAL_MODULES:
        with contextlib.suppress(UnsupportedKernelError):
            paths = order_modules(modules_dep, modules_builtin, (name,))
            further[name] = tuple(path for path in paths if path not in always)
    return further
