"""What an engine gets to know of one instance: its options, its groups, its folders."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tare.backends.cgroups.limits import Limits
from tare.backends.engines.groups import Groups
from tare.backends.engines.start import INSIDE
from tare.backends.layers import Layers, names_of_layers
from tare.backends.native import steps
from tare.backends.native.instance import ProcessInstance
from tare.backends.native.zygote import Launched
from tare.bench.engine import EngineShare
from tare.bench.errors import BackendError
from tare.bench.ledger import Ledger, ResourceKind
from tare.bench.linux.memory import tree_bytes
from tare.bench.model import SCRATCH, Footprint, InstanceSpec, StartTimeline, Usage
from tare.bench.trees import remove_tree

if TYPE_CHECKING:
    from tare.backends.engines.core import Engine

_MODE = 0o755
_MOUNT_POINTS = ("proc", "sys", "dev")


class Network(StrEnum):
    """``none``: lo only. ``host``: the host's own. ``bridge``: Docker's, with an address for each container."""

    NONE = "none"
    HOST = "host"
    BRIDGE = "bridge"


class Seccomp(StrEnum):
    """The system-call filter of tare's own containers, or none."""

    DEFAULT = "default"
    NONE = "none"


class EngineOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[backend.options]`` of an engine. ``layers`` are those of the image in the overlay that it is given."""

    network: Network = Network.NONE
    seccomp: Seccomp = Seccomp.DEFAULT
    layers: Layers = 1


class Box(msgspec.Struct, frozen=True):
    """What an engine gets to know of one instance.

    ``folder`` is its own and removed with it. ``root`` is where the engine's commands see the overlay of the image.
    ``given`` has to appear inside at ``INSIDE``, read-only, and ``scratch`` at ``SCRATCH``. ``limits`` are those of the
    envelope that this host can enforce. ``log`` is what the engine's commands print, where ``said`` does not
    know it. ``streams`` are what the start command has for its standard streams, which become the container's;
    None for none. ``daemon_s`` are
    the CPU seconds that the engine's daemon had used before the instance was asked for. ``layers`` are the image's.
    """

    spec: InstanceSpec
    folder: Path
    groups: Groups
    limits: Limits
    streams: tuple[int, ...] | None = None
    said: Callable[[], str] | None = None
    daemon_s: float | None = None
    layers: int = 1

    @property
    def identifier(self) -> str:
        """Its name, also to the engine."""
        return self.spec.identifier

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def given(self) -> Path:
        return self.folder / "given"

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    @property
    def log(self) -> Path:
        return self.folder / "engine.log"


class BoxMeters:
    """What an instance of an engine reports, however its commands are run; mixed into both kinds of instance."""

    _engine: "Engine"
    _box: Box

    def usage(self) -> Usage:
        """Of the container and of the engine's processes for it."""
        return self._engine.usage_of(self._box)

    def engine_share(self) -> EngineShare:
        """What of that the engine itself took."""
        return self._engine.share_of(self._box)

    def time_exec(self) -> float | None:
        """How long the engine's own exec takes, in seconds."""
        return self._engine.time_exec(self._box)

    def engine_running_s(self) -> float | None:
        """By the engine's wall clock, which is the host's."""
        at_s = self._engine.find_running_s(self._box)
        return None if at_s is None else time.monotonic() - (time.time() - at_s)

    def footprint(self) -> Footprint:
        """With the engine's processes for this instance."""
        held = self._box.groups.meter.footprint()
        owned = sum(map(tree_bytes, self._engine.own_folders(self._box)))
        return msgspec.structs.replace(held, disk_owned_bytes=owned, disk_shared_bytes=self._engine.shared_bytes)


def overlay_step(box: Box) -> steps.Step:
    """Mount the overlay of the image for ``box``."""
    above = (box.folder.parent / name for name in names_of_layers(box.layers))
    lower = ":".join(steps.escape_option(str(path)) for path in (*above, box.spec.image.rootfs))
    upper, work = (steps.escape_option(str(box.folder / name)) for name in ("upper", "work"))
    return steps.mount("overlay", str(box.root), 0, f"lowerdir={lower},upperdir={upper},workdir={work}")


class EngineInstance(BoxMeters, ProcessInstance):
    """A container of an engine, whose commands are run by tare's program inside."""

    def __init__(self, engine: "Engine", box: Box, launched: Launched, timeline: StartTimeline) -> None:
        super().__init__(launched, box.groups.container, box.folder, timeline, engine.shared_bytes, lambda: "")
        self._engine = engine
        self._box = box

    def end(self) -> None:
        self._box.groups.begin_kill()


def make_folders(box: Box, program: Path) -> None:
    """One instance's folders, and tare's program in what it is given. Raises BackendError."""
    rootfs = box.spec.image.rootfs
    missing = [name for name in _MOUNT_POINTS if not (rootfs / name).exists()]
    upper = ("/upper", "/work", f"/upper{SCRATCH}", f"/upper{INSIDE}", *(f"/upper/{name}" for name in missing))
    try:
        for name in ("", "/root", "/scratch", "/given", *upper):
            os.mkdir(f"{box.folder}{name}")  # noqa: PTH102 - on the measured start path
            os.chmod(f"{box.folder}{name}", _MODE)  # noqa: PTH101 - whatever the umask
        os.link(program, box.given / "program")
    except OSError as error:
        raise BackendError(
            f"could not make the instance's folders: {error.strerror}: {error.filename}",
            remedy=f"see that {box.folder.parent} is writable and has space left",
        ) from error


@contextlib.contextmanager
def start_folder(ledger: Ledger, folder: Path) -> Iterator[None]:
    """The run's folder, in the ledger; removed on exit."""
    with ledger.holding(ResourceKind.DIRECTORY, folder):
        folder.mkdir(parents=True, mode=0o700)
        try:
            yield
        finally:
            remove_folder(folder)


def remove_folder(folder: Path) -> None:
    """Remove an instance's folder, if it is there. Raises BackendError."""
    try:
        remove_tree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise BackendError(f"could not remove an instance's files: {error.strerror}: {error.filename}") from error
