"""The folder of a fleet on the user's side: what became of each host, and the runs that came back.

``fleet.json`` is replaced atomically at each change of a host; ``hosts/NAME/RUN/`` are run directories as ``tare run``
writes them, there only when all of one has come back and its digest was checked.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path

import msgspec

from tare.bench.errors import RunDirectoryError
from tare.bench.trees import make_folders, replace_file

FLEET_SCHEMA_VERSION = 1
FLEET_FILE = "fleet.json"
HOSTS = "hosts"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


class HostState(StrEnum):
    """How a host of a fleet stands."""

    WAITING = "waiting"
    """It has not answered yet."""
    READY = "ready"
    """It answered, and its conditions were compared with the others'."""
    RUNNING = "running"
    FINISHED = "finished"
    """Its run is complete, and still on the host."""
    COLLECTED = "collected"
    """Its run is complete and here, verified by digest."""
    LOST = "lost"
    """It answered once and does not any more; its run may go on there."""
    SILENT = "silent"
    """It never answered."""
    REFUSED = "refused"
    """It answered and may not take part: ``reason`` says what must not differ and does."""
    FAILED = "failed"
    """Its run ended before it was complete."""

    @property
    def is_final(self) -> bool:
        """Whether nothing more is to come of it without the user."""
        return self in _FINAL


_FINAL = frozenset({HostState.COLLECTED, HostState.SILENT, HostState.REFUSED, HostState.FAILED, HostState.LOST})


class HostRow(msgspec.Struct, frozen=True):
    """One host of a fleet and how it stands.

    ``reason`` says why it has no complete run; empty if it has. ``run`` is the name of its run directory, ``digest``
    the SHA-256 of that directory's listing. ``failed`` counts the instances of the run that failed, ``done`` those that
    ended, of ``planned``. ``fingerprint`` names the machine (``Manifest.fingerprint``).
    ``conditions`` are what was compared with the other hosts', by name, as text. ``seen_utc`` is when it last answered.
    """

    name: str
    address: str = ""
    type: str = ""
    labels: Mapping[str, str] = {}
    state: HostState = HostState.WAITING
    reason: str = ""
    run: str = ""
    digest: str = ""
    fingerprint: str = ""
    conditions: Mapping[str, str] = {}
    done: int = 0
    planned: int = 0
    failed: int = 0
    seen_utc: str = ""


class ConditionDifference(msgspec.Struct, frozen=True):
    """A condition in which hosts differ: the hosts' names by its value."""

    name: str
    hosts: Mapping[str, tuple[str, ...]]


class FleetManifest(msgspec.Struct, frozen=True):
    """``fleet.json``. ``fleet`` is its identifier on the hosts, ``suite`` the name of the suite.

    ``image`` is the digest of the one image that all hosts ran. ``address`` is where its scheduler listens, which
    workers that were started come back to. ``differences`` are what is not the same on all hosts.
    """

    schema_version: int
    fleet: str
    suite: str
    tare_version: str
    started_utc: str
    hosts: tuple[HostRow, ...]
    ended_utc: str = ""
    image: str = ""
    address: str = ""
    differences: tuple[ConditionDifference, ...] = ()

    def row(self, name: str) -> HostRow:
        """The host of that name. Raises RunDirectoryError with the known names."""
        for host in self.hosts:
            if host.name == name:
                return host
        known = ", ".join(host.name for host in self.hosts)
        raise RunDirectoryError(f"the fleet has no host {name!r}; it has: {known}")


class CollectedRun(msgspec.Struct, frozen=True):
    """A run that came back: the row of its host, and its run directory."""

    host: HostRow
    path: Path


class Collection(msgspec.Struct, frozen=True):
    """A fleet's folder read back: every host has a row in ``manifest``, and those with a complete run one in ``runs``.

    ``warnings`` name runs that the manifest says are here and are not.
    """

    path: Path
    manifest: FleetManifest
    runs: tuple[CollectedRun, ...]
    warnings: tuple[str, ...] = ()


def run_folder(path: Path, host: HostRow) -> Path:
    """Where the run of a host lies in the fleet's folder ``path``. Raises RunDirectoryError for names of no folder."""
    for name in (host.name, host.run):
        if not _NAME.match(name):
            raise RunDirectoryError(f"{path / FLEET_FILE}: {name!r} is not the name of a host's run")
    return path / HOSTS / host.name / host.run


def load_collection(path: Path) -> Collection:
    """Read a fleet's folder. Raises RunDirectoryError if there is none, or one of a newer schema."""
    manifest = load_fleet_manifest(path)
    runs, warnings = [], []
    for host in manifest.hosts:
        if host.state is HostState.COLLECTED:
            folder = run_folder(path, host)
            if (folder / "manifest.json").is_file():
                runs.append(CollectedRun(host, folder))
            else:
                warnings.append(f"the run of {host.name} is not in {folder}; `tare fleet collect` fetches it again")
    return Collection(path, manifest, tuple(runs), tuple(warnings))


def save_fleet_manifest(path: Path, manifest: FleetManifest) -> None:
    """Write ``fleet.json`` into the folder ``path``, made if missing: complete or not at all. Raises OSError."""
    make_folders(path)
    text = json.dumps(msgspec.to_builtins(manifest), indent=2, ensure_ascii=False)
    replace_file(path / FLEET_FILE, f"{text}\n".encode())


def load_fleet_manifest(path: Path) -> FleetManifest:
    """Read ``fleet.json`` of the folder ``path``. Raises RunDirectoryError."""
    file = path / FLEET_FILE
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise RunDirectoryError(
            f"{path} is not the folder of a fleet: it has no {FLEET_FILE}",
            remedy="name a folder that `tare fleet run` made",
        ) from None
    except OSError as error:
        raise RunDirectoryError(f"{file}: {error.strerror}") from None
    _refuse_newer(content, file)
    try:
        return msgspec.json.decode(content, type=FleetManifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RunDirectoryError(f"{file} is not the manifest of a fleet: {error}") from None


def find_fleets(folder: Path) -> Iterator[Path]:
    """The folders of fleets in ``folder``, oldest name first."""
    with contextlib.suppress(OSError):
        yield from sorted(one.parent for one in folder.glob(f"*/{FLEET_FILE}"))


class _Version(msgspec.Struct):
    schema_version: int


def _refuse_newer(content: bytes, file: Path) -> None:
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        version = msgspec.json.decode(content, type=_Version).schema_version
        if version > FLEET_SCHEMA_VERSION:
            raise RunDirectoryError(
                f"{file}: schema version {version} is newer than this tare knows ({FLEET_SCHEMA_VERSION})",
                remedy="install the version of tare that made the fleet's folder, or a newer one",
            )
