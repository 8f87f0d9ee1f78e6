"""Packs the guest's initramfs and makes the erofs disk of a tree."""

import stat
from pathlib import Path

from tare.bench.image.cpio import Member, pack
from tare.bench.image.failures import ImageBuildError
from tare.bench.image.guest import InitProgram, InitramfsEntry, ModuleFile, compile_init, initramfs_entries
from tare.bench.image.kernel import Kernel
from tare.bench.image.tools import Runner
from tare.bench.process import ToolFailedError

# The same for all images: the guest finds its disk by serial number, not by this.
_DISK_UUID = "7a7e7a7e-0000-4000-8000-000000000001"


def make_initramfs(target: Path, kernel: Kernel, scratch: Path) -> None:
    """Write the initramfs of ``kernel``. Raises ImageError, MissingToolError."""
    folder = kernel.modules_root / "lib/modules" / kernel.version
    program = scratch / "init"
    try:
        compile_init(program)
    except ToolFailedError as error:
        raise ImageBuildError(
            f"the guest's init does not compile: {error.message}", remedy="apt-get install gcc libc6-dev"
        ) from error
    entries = initramfs_entries((folder / "modules.dep").read_text(), (folder / "modules.builtin").read_text())
    target.write_bytes(pack([_member(entry, program, folder) for entry in entries]))


def make_disk(target: Path, tree: Path, runner: Runner) -> None:
    """Write an erofs of ``tree``, with the times of its files: compiled Python files are only valid with them.

    The same tree gives the same bytes. Raises ImageError, MissingToolError.
    """
    newest = max(int(path.lstat().st_mtime) for path in (tree, *tree.rglob("*")))
    argv = ["mkfs.erofs", "-zlz4", f"-U{_DISK_UUID}", str(target), str(tree)]
    try:
        # With this, mkfs.erofs keeps every time that is not newer, and stamps the disk itself with it.
        runner.run(argv, timeout_s=600, env={"SOURCE_DATE_EPOCH": str(newest)})
    except ToolFailedError as error:
        raise ImageBuildError(f"the guest's disk cannot be made: {error.message}") from error


def _member(entry: InitramfsEntry, program: Path, modules: Path) -> Member:
    match entry.content:
        case None:
            return Member(entry.path, stat.S_IFDIR | entry.mode)
        case InitProgram():
            data = program.read_bytes()
        case ModuleFile(path):
            data = (modules / path).read_bytes()
        case bytes(data):
            pass
    return Member(entry.path, stat.S_IFREG | entry.mode, data)
