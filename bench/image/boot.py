"""What a guest boots: Debian's cloud kernel, fetched and not installed anywhere; its initramfs; the disk of a tree."""

import shutil
import stat
from pathlib import Path

import msgspec

from tare.bench.errors import ImageError
from tare.bench.image.guest import compile_init, module_files
from tare.bench.image.recipe import Recipe
from tare.bench.image.rootfs import run_mmdebstrap
from tare.bench.image.tools import ImageBuildError, ToolRunner
from tare.bench.initramfs import Member, pack
from tare.bench.process import ToolFailedError

# The same for all images: the guest finds its disk by serial number, not by this.
_DISK_UUID = "7a7e7a7e-0000-4000-8000-000000000001"

# A package that does not exist is noticed here in seconds, while the tree's own build would come to it at its end.
# The metapackage depends on the package of the current version, which is the one that holds the kernel. Runs in
# mmdebstrap, whose apt knows the suite's packages even where the host's apt does not.
_FETCH = """\
set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
apt-get install --simulate -qq "$TARE_KERNEL_PACKAGE" $TARE_PACKAGES >/dev/null
package=$(apt-cache depends --important "$TARE_KERNEL_PACKAGE" | sed -n 's/^ *Depends: \\(linux-image-[^ ]*\\)$/\\1/p')
cd "$TARE_KERNEL_FOLDER"
apt-get -o APT::Sandbox::User=root download "${package:-$TARE_KERNEL_PACKAGE}"
"""


class Kernel(msgspec.Struct, frozen=True):
    """An unpacked kernel package: ``version`` as ``uname -r`` prints it."""

    version: str
    package: str
    package_version: str
    image: Path
    modules_root: Path


def fetch_kernel(recipe: Recipe, folder: Path, runner: ToolRunner) -> Kernel:
    """Download the recipe's kernel package and unpack it below ``folder``. Raises ImageError, MissingToolError."""
    folder.mkdir()
    script = folder / "fetch.sh"
    script.write_text(_FETCH)
    downloaded = folder / "downloaded"
    downloaded.mkdir()
    hook = (
        f'--customize-hook=TARE_KERNEL_PACKAGE={recipe.kernel_package} TARE_PACKAGES="{" ".join(recipe.packages)}" '
        f'TARE_KERNEL_FOLDER="{downloaded}" sh "{script}" "$1"'
    )
    run_mmdebstrap(recipe, folder / "apt", ["--variant=custom", hook], scratch=folder, runner=runner)
    packages = list(downloaded.glob("*.deb"))
    if len(packages) != 1:
        raise ImageBuildError(f"apt downloaded {len(packages)} packages for {recipe.kernel_package}, and not one")
    unpacked = folder / "unpacked"
    try:
        runner.run(["dpkg-deb", "--extract", str(packages[0]), str(unpacked)], timeout_s=300)
        fields = runner.run(
            ["dpkg-deb", "--show", "--showformat=${Package} ${Version}", str(packages[0])], timeout_s=60
        )
    except ToolFailedError as error:
        raise ImageBuildError(f"the kernel package cannot be unpacked: {error.message}") from error
    name, _, package_version = fields.strip().partition(" ")
    shutil.rmtree(folder / "apt")
    return _locate(unpacked, name, package_version, runner)


def _locate(unpacked: Path, package: str, package_version: str, runner: ToolRunner) -> Kernel:
    images = list((unpacked / "boot").glob("vmlinuz-*"))
    if len(images) != 1:
        raise ImageError(f"the package {package} {package_version} holds {len(images)} kernels, and not one")
    version = images[0].name.removeprefix("vmlinuz-")
    # Newer Debian has /lib inside /usr.
    root = unpacked if (unpacked / "lib/modules").is_dir() else unpacked / "usr"
    runner.run(["depmod", "-b", str(root), version], timeout_s=60)
    return Kernel(version, package, package_version, images[0], root)


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
    files = module_files((folder / "modules.dep").read_text(), (folder / "modules.builtin").read_text())
    members = [Member("init", stat.S_IFREG | 0o755, program.read_bytes()), Member("modules", stat.S_IFDIR | 0o755)]
    for name, content in files.items():
        data = content if isinstance(content, bytes) else (folder / content).read_bytes()
        members.append(Member(f"modules/{name}", stat.S_IFREG | 0o644, data))
    target.write_bytes(pack(members))


def make_disk(target: Path, tree: Path, runner: ToolRunner) -> None:
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
