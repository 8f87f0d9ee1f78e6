"""Fetches and unpacks Debian's cloud kernel for the guest. It is not installed anywhere."""

import shutil
from pathlib import Path

import msgspec

from tare.bench.errors import ImageError
from tare.bench.image.failures import ImageBuildError
from tare.bench.image.recipe import Recipe
from tare.bench.image.rootfs import run_mmdebstrap
from tare.bench.image.tools import Runner
from tare.bench.process import ToolFailedError

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


def fetch_kernel(recipe: Recipe, folder: Path, runner: Runner) -> Kernel:
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


def _locate(unpacked: Path, package: str, package_version: str, runner: Runner) -> Kernel:
    images = list((unpacked / "boot").glob("vmlinuz-*"))
    if len(images) != 1:
        raise ImageError(f"the package {package} {package_version} holds {len(images)} kernels, and not one")
    version = images[0].name.removeprefix("vmlinuz-")
    # Newer Debian has /lib inside /usr.
    root = unpacked if (unpacked / "lib/modules").is_dir() else unpacked / "usr"
    runner.run(["depmod", "-b", str(root), version], timeout_s=60)
    return Kernel(version, package, package_version, images[0], root)
