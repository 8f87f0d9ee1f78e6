"""Builds the parts of an image in a workspace: tree, kernel, initramfs, disk, description."""

import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from tare.bench.errors import TareError
from tare.bench.image import stored
from tare.bench.image.boot import Kernel, fetch_kernel, make_disk, make_initramfs
from tare.bench.image.recipe import PYPI, Recipe
from tare.bench.image.rootfs import installed_packages, make_tree
from tare.bench.image.stored import digest_of, hash_file, list_tree
from tare.bench.image.tools import Progress, ToolRunner

BUILD_TOOLS = ("mmdebstrap", "setpriv", "unshare", "mkfs.erofs", "depmod", "dpkg-deb", "gcc")
"""Host programs without which no image can be built."""

_TOOL_VERSIONS = {
    "mmdebstrap": ["mmdebstrap", "--version"],
    # Prints its version and fails, because older ones do not know the option.
    "mkfs.erofs": ["sh", "-c", "mkfs.erofs -V 2>&1 || true"],
    "gcc": ["gcc", "--version"],
}


class Workspace(msgspec.Struct, frozen=True):
    """A folder that is removed at the end. ``image`` becomes the image's own folder; ``runner`` runs the tools."""

    folder: Path
    runner: ToolRunner
    progress: Progress

    @property
    def image(self) -> Path:
        """Where the parts of the image are put together."""
        return self.folder / "image"

    def scratch(self, name: str) -> Path:
        """A new folder for what is needed only while building."""
        path = self.folder / name
        path.mkdir()
        return path


def build_parts(recipe: Recipe, workspace: Workspace) -> stored.Description:
    """Build everything in ``workspace.image`` but the description, which is returned. Raises TareError."""
    workspace.image.mkdir()
    tree = workspace.image / stored.ROOTFS
    scratch = workspace.scratch("tree")
    kernel = with_kernel(
        recipe, workspace, lambda: make_tree(recipe, tree, scratch, workspace.runner, workspace.progress)
    )
    return finish(workspace, kernel=kernel, recipe=recipe, origin="", guest_problem="")


def with_kernel(recipe: Recipe, workspace: Workspace, meanwhile: Callable[[], None]) -> Kernel:
    """Fetch the recipe's kernel while ``meanwhile`` runs; if either fails, the other is ended."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        kernel = pool.submit(fetch_kernel, recipe, workspace.folder / "kernel", workspace.runner)
        kernel.add_done_callback(lambda done: workspace.runner.stop() if _failed(done) else None)
        try:
            meanwhile()
        except BaseException as error:
            workspace.runner.stop()
            # Ended because the kernel failed: then that is the reason to tell.
            if isinstance(error, TareError) and kernel.done() and _failed(kernel):
                kernel.result()
            raise
        workspace.progress("unpacking the guest's kernel")
        return kernel.result()


def finish(
    workspace: Workspace, *, kernel: Kernel | None, recipe: Recipe | None, origin: str, guest_problem: str
) -> stored.Description:
    """Make initramfs and disk for the tree in ``workspace.image``, and describe the whole. Raises ImageError."""
    image, runner = workspace.image, workspace.runner
    tree = image / stored.ROOTFS
    hashes: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=1) as pool:
        disk: Future[None] | None = None
        if kernel is not None:
            workspace.progress("making the guest's initramfs and disk")
            disk = pool.submit(make_disk, image / stored.DISK, tree, runner)
            kernel.image.rename(image / stored.KERNEL)
            make_initramfs(image / stored.INITRAMFS, kernel, workspace.scratch("initramfs"))
        lines = list_tree(tree)
        if disk is not None:
            disk.result()
    (image / stored.MANIFEST).write_text("".join(f"{line}\n" for line in lines))
    workspace.progress("taking the image's digest")
    for path in sorted(image.iterdir()):
        if path.is_file():
            path.chmod(0o644)
            hashes[path.name] = hash_file(path)
    files = {name: stored.StoredFile((image / name).stat().st_size, sha256) for name, sha256 in hashes.items()}
    packages = installed_packages(tree)
    if recipe:
        packages |= {f"{PYPI}{name}": version for name, version in (one.split("==") for one in recipe.python_packages)}
    if kernel:
        packages[kernel.package] = kernel.package_version
    probes, tree_bytes = stored.measure(lines)
    return stored.Description(
        format=stored.FORMAT,
        digest=digest_of(lines, hashes),
        built_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        recipe=recipe,
        origin=origin,
        kernel_version=kernel.version if kernel else "",
        guest_problem=guest_problem,
        packages=packages,
        tools=_tool_versions(runner),
        size_bytes=tree_bytes + sum(file.size for file in files.values()),
        files=files,
        probes=probes,
    )


def _tool_versions(runner: ToolRunner) -> dict[str, str]:
    versions = {}
    for tool, argv in _TOOL_VERSIONS.items():
        try:
            printed = runner.run(argv, timeout_s=30)
        except TareError:
            continue
        if found := re.search(r"\d+(\.\d+)+", printed):
            versions[tool] = found.group()
    return versions


def _failed(done: "Future[Kernel]") -> bool:
    return not done.cancelled() and done.exception() is not None
