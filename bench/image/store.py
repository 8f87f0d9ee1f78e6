"""The images in the cache folder: found by recipe, name or digest, built or imported under a lock, removed.

``images/DIGEST/`` are finished images. ``recipes/HASH`` and ``names/NAME`` are links to them, ``building/`` holds
what is being made, ``locks/`` the locks. A build happens in ``building/`` and is renamed into place when all of it is
on disk, so nothing in ``images/`` is ever half done.
"""

import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tare.bench.errors import ImageError, PrivilegeError
from tare.bench.image import stored
from tare.bench.image.archive import import_parts
from tare.bench.image.build import BUILD_TOOLS, Workspace, build_parts
from tare.bench.image.recipe import Recipe, guest_version
from tare.bench.image.tar import ArchiveLimits
from tare.bench.image.tools import Progress, ToolRunner, require_space, translated
from tare.bench.ledger import Ledger, ResourceKind
from tare.bench.ledger import remove as remove_resource
from tare.bench.model import Image
from tare.bench.process import require_tool
from tare.bench.readable import one_line
from tare.bench.trees import sync

_LIMITS = ArchiveLimits()
_NEEDED_BYTES = 1_000_000_000
_AS_IT_IS = ("--numeric-owner", "--xattrs", "--xattrs-include=*")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PREFIX = re.compile(r"[0-9a-f]{4,64}")


class Listed(msgspec.Struct, frozen=True):
    """An image as ``tare image list`` shows it; ``problem`` is empty if it is complete."""

    digest: str
    names: tuple[str, ...]
    directory: Path
    description: stored.Description | None
    problem: str


class ImageStore:
    """The images below the folder ``cache``. What is made is entered in ``ledger`` first."""

    def __init__(self, cache: Path, ledger: Ledger) -> None:
        self._images = cache / "images"
        self._recipes = cache / "recipes"
        self._names = cache / "names"
        self._building = cache / "building"
        self._locks = cache / "locks"
        self._ledger = ledger

    def find(self, recipe: Recipe) -> Image | None:
        """The finished image of ``recipe``, or None. Raises ImageError if it is there and broken."""
        folder = _follow(self._recipes / recipe.hash)
        return None if folder is None else stored.load(folder, _name_of(recipe))

    def build(self, recipe: Recipe, progress: Progress = lambda _step: None) -> Image:
        """The image of ``recipe``: the finished one at once, otherwise built now (about 40 s, needs root).

        Of two builds of one recipe at a time, the second waits and gets the first one's. Raises ImageError,
        MissingToolError, PrivilegeError.
        """
        found = self.find(recipe)
        if found is not None:
            return found
        for tool in BUILD_TOOLS:
            require_tool(tool)
        if os.geteuid() != 0:
            raise PrivilegeError(
                "building an image needs root: the tree's files have owners of their own, and packages run programs "
                "in it",
                remedy="run the same command with sudo (with TARE_CACHE_DIR set, the image goes to your own cache)",
            )
        with translated("building an image"), self._locked(f"recipe-{recipe.hash}", progress):
            found = self.find(recipe)
            if found is not None:
                return found
            with self._workspace(f"build-{recipe.hash[:12]}", progress) as workspace:
                description = build_parts(recipe, workspace)
                folder = self._publish(workspace, description)
            _link(self._recipes / recipe.hash, folder)
            _link(self._names / _name_of(recipe), folder)
        return stored.load(folder, _name_of(recipe))

    def import_archive(
        self, file: Path, *, name: str = "", limits: ArchiveLimits = _LIMITS, progress: Progress = lambda _step: None
    ) -> Image:
        """Import a root file system tar, an OCI archive or a docker archive, and call it ``name``.

        Without a name it is called after the file. An ordinary user owns all of its files, and gets no devices and no
        guest (see ``unpack.apply_layer``). Raises ImageError, MissingToolError.
        """
        chosen = name or re.sub(r"(\.(tar|tgz|oci|gz|xz|bz2|zst))+$", "", file.name).lower()
        if not _NAME.fullmatch(chosen) or _PREFIX.fullmatch(chosen):
            raise ImageError(
                f"{chosen!r} cannot be the name of an image",
                remedy="give --name: lower-case letters, digits, dots, hyphens, and not what could be a digest",
            )
        if not file.exists():
            raise ImageError(f"{file} does not exist")
        if file.is_dir():
            raise ImageError(f"{file} is a folder, not an archive")
        with translated(f"importing {file}"), self._locked(f"name-{chosen}", progress):
            taken = _follow(self._names / chosen)
            with self._workspace("import", progress) as workspace:
                description = import_parts(file, workspace, limits)
                if taken is not None and taken.name != description.digest:
                    raise ImageError(
                        f"there is another image called {chosen}, {taken.name[:12]}",
                        remedy=f"give --name, or run `tare image remove {chosen}` first",
                    )
                folder = self._publish(workspace, description)
            _link(self._names / chosen, folder)
        return stored.load(folder, chosen)

    def import_once(self, file: Path, progress: Progress = lambda _step: None) -> Image:
        """The image of the archive ``file``: the one imported before of the same bytes, else imported now.

        Raises as ``import_archive``.
        """
        if not file.is_file():
            raise ImageError(f"{file} is no file", remedy="name an archive, or an image that `tare image list` shows")
        with translated(f"reading {file}"):
            digest, guest = stored.hash_file(file), guest_version()
        whose = "root" if os.geteuid() == 0 else "user"
        known = self._recipes / f"archive-{digest}-{guest}-{whose}"
        folder = _follow(known)
        if folder is None:
            progress(f"importing {one_line(file.name)} (once; it is kept in the cache)")
            name = f"archive-{digest[:12]}-{guest[:6]}-{whose}"
            folder = self.import_archive(file, name=name, progress=progress).directory
            _link(known, folder)
        return stored.load(folder, one_line(file.name))

    def pack(self, digest: str, file: Path) -> None:
        """Write an image into ``file`` as it lies here, for ``unpack`` on another host. Raises ImageError."""
        image = self.get(digest)
        file.parent.mkdir(parents=True, exist_ok=True)
        with translated(f"packing {digest[:12]}"), self.hold(image):
            runner = ToolRunner(str(file))
            runner.run(["tar", *_AS_IT_IS, "-cf", str(file), "-C", str(image.directory), "."], timeout_s=1800)

    def unpack(self, file: Path, digest: str, progress: Progress = lambda _step: None) -> Image:
        """The image ``digest`` of a file that ``pack`` wrote, every byte checked. Raises ImageError."""
        if (self._images / digest).is_dir():
            return self.get(digest)
        with translated(f"unpacking {digest[:12]}"), self._workspace("unpack", progress) as workspace:
            folder = workspace.folder / digest
            folder.mkdir()
            workspace.runner.run(["tar", *_AS_IT_IS, "-xpf", str(file), "-C", str(folder)], timeout_s=1800)
            stored.verify(folder)
            description = stored.load_description(folder)
            folder.rename(workspace.image)
            self._publish(workspace, description)
        return self.get(digest)

    def list(self) -> tuple[Listed, ...]:
        """Every image that is here, and what builds have not finished, the newest first."""
        names: dict[str, list[str]] = {}
        for link in _entries(self._names):
            target = _follow(link)
            if target is not None:
                names.setdefault(target.name, []).append(link.name)
        unfinished = "not finished: it is being built, or was interrupted"
        listed = [
            *(_listed(folder, tuple(names.get(folder.name, ()))) for folder in _entries(self._images)),
            *(Listed("", (folder.name,), folder, None, unfinished) for folder in _entries(self._building)),
        ]
        listed.sort(key=lambda item: item.description.built_utc if item.description else "", reverse=True)
        return tuple(listed)

    def get(self, reference: str) -> Image:
        """The image with this name or digest prefix (4 digits at least). Raises ImageError with the candidates."""
        folder = self._find_folder(reference)
        return stored.load(folder, reference if _follow(self._names / reference) == folder else "")

    def verify(self, reference: str) -> Image:
        """Compare every byte of an image with what was recorded when it was made. Raises ImageError."""
        image = self.get(reference)
        stored.verify(image.directory)
        return image

    def remove(self, reference: str) -> str:
        """Remove an image by name or digest prefix, broken ones too, and return its digest.

        Raises ImageError if none or several match, or a running tare uses it.
        """
        folder = self._find_folder(reference)
        with self._hold_lock(folder.name, fcntl.LOCK_EX | fcntl.LOCK_NB):
            for links in (self._recipes, self._names):
                for link in _entries(links):
                    if _follow(link) == folder:
                        link.unlink()
            # Moved away first: an interrupted removal leaves nothing that looks like an image.
            with self._workspace("remove", lambda _step: None) as workspace:
                folder.rename(workspace.folder / "removed")
        return folder.name

    @contextmanager
    def hold(self, image: Image) -> Iterator[None]:
        """Keep ``image`` from being removed by another tare while the block runs."""
        if not os.access(self._locks, os.W_OK) and self._images.is_dir():
            yield  # another user's cache, to read from: who owns it may remove what we use
            return
        with self._hold_lock(image.digest, fcntl.LOCK_SH | fcntl.LOCK_NB):
            yield

    def _find_folder(self, reference: str) -> Path:
        if _NAME.fullmatch(reference):
            named = _follow(self._names / reference)
            if named is not None:
                return named
        folders = _entries(self._images)
        is_prefix = _PREFIX.fullmatch(reference) is not None
        matching = [folder for folder in folders if is_prefix and folder.name.startswith(reference)]
        if len(matching) == 1:
            return matching[0]
        if matching:
            candidates = ", ".join(folder.name[:16] for folder in matching)
            raise ImageError(f"{reference} is the beginning of several images: {candidates}", remedy="give more digits")
        known = [link.name for link in _entries(self._names)] + [folder.name[:12] for folder in folders]
        raise ImageError(
            f"there is no image {reference!r}; there are: {', '.join(known) or 'none'}",
            remedy="`tare image build` makes one (a digest needs its first 4 digits at least)",
        )

    @contextmanager
    def _workspace(self, label: str, progress: Progress) -> Iterator[Workspace]:
        folder = self._building / f"{label}-{os.getpid()}-{secrets.token_hex(4)}"
        directory = self._ledger.enter(ResourceKind.DIRECTORY, folder)
        processes = self._ledger.enter(ResourceKind.PROCESS, folder)
        runner = ToolRunner(str(folder))
        try:
            folder.mkdir(parents=True)
            if label != "remove":
                require_space(self._building, _NEEDED_BYTES)
            yield Workspace(folder, runner, progress)
        finally:
            runner.stop()
            for entry in (processes, directory):
                remove_resource(entry)
                self._ledger.strike(entry)

    @contextmanager
    def _locked(self, name: str, progress: Progress) -> Iterator[None]:
        """Hold the lock ``name``; the kernel lets go of it when this process ends, however it ends."""
        self._locks.mkdir(parents=True, exist_ok=True)
        with (self._locks / f"{name}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress("waiting for another tare that is building the same image")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _hold_lock(self, digest: str, operation: int) -> Iterator[None]:
        self._locks.mkdir(parents=True, exist_ok=True)
        with (self._locks / f"image-{digest}.lock").open("w") as file:
            try:
                fcntl.flock(file, operation)
            except BlockingIOError:
                raise ImageError(
                    f"the image {digest[:12]} is in use by another tare", remedy="wait until that one has ended"
                ) from None
            yield

    def _publish(self, workspace: Workspace, description: stored.Description) -> Path:
        """Put the finished image in its place, all of it on disk before it has its name."""
        target = self._images / description.digest
        text = msgspec.json.format(msgspec.json.encode(description), indent=1) + b"\n"
        (workspace.image / stored.DESCRIPTION).write_bytes(text)
        workspace.progress("writing the image to disk")
        workspace.image.chmod(0o755)
        workspace.runner.run(["sync", "-f", str(workspace.image)], timeout_s=600)
        self._images.mkdir(parents=True, exist_ok=True)
        with self._locked("publish", workspace.progress):
            if target.exists():
                # Two recipes can give the same content. The one that is there may be in use: kept, if it is whole.
                stored.load(target)
            else:
                workspace.image.rename(target)
                sync(self._images)
        return target


def _entries(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder.iterdir())) if folder.is_dir() else ()


def _listed(folder: Path, names: tuple[str, ...]) -> Listed:
    description, problem = None, ""
    try:
        description = stored.load_description(folder)
        stored.load(folder)
    except ImageError as error:
        problem = error.message
    return Listed(folder.name, names, folder, description, problem)


def _name_of(recipe: Recipe) -> str:
    return f"{recipe.suite}-{recipe.hash[:8]}"


def _follow(link: Path) -> Path | None:
    """The image's folder that ``link`` leads to, or None if there is no link, or it leads nowhere."""
    target = link.parent.parent / "images" / link.readlink().name if link.is_symlink() else None
    return target if target is not None and target.is_dir() else None


def _link(link: Path, folder: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    fresh = link.with_name(f".{link.name}-{os.getpid()}-{secrets.token_hex(4)}")
    fresh.symlink_to(Path("..") / "images" / folder.name)
    fresh.rename(link)
    sync(link.parent)
