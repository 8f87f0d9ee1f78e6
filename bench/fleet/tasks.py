"""The calls that a worker carries out on its host, by name: content in, answer out, both plain data."""

import asyncio
import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tare.bench.errors import ImageError, TareError
from tare.bench.fleet import on_host
from tare.bench.fleet.conditions import Hello
from tare.bench.fleet.listing import PIECE_BYTES
from tare.bench.fleet.on_host import Order, Place, Standing, utc_now
from tare.bench.host import host_fingerprint, read_facts
from tare.bench.image import ImageStore, Recipe
from tare.bench.ledger import Ledger
from tare.bench.locations import cache_directory, free_bytes, ledger_directory, state_directory, work_directory
from tare.bench.model import Image
from tare.bench.process import DEVNULL, PIPE, Popen
from tare.bench.registry import find_backends, find_workloads
from tare.bench.suite import HostOffer, SuiteSpec, bind_suite, resolve_suite
from tare.bench.version import tare_commit, tare_version

if TYPE_CHECKING:
    from tare.bench.fleet.wire import FleetWorker, Told

_VOLATILE = frozenset({"load average", "host name", "storage"})
_LEFT_OUT = ("folder ", "package ", "root", "image")
"""What ``tare doctor`` says of single folders and packages: what follows from them is said of backends."""


def hello_here() -> Hello:
    """What this machine says of itself without a suite."""
    facts = read_facts(work_directory())
    folders = {str(folder): free_bytes(folder) for folder in (cache_directory(), state_directory(), work_directory())}
    return Hello(
        version=tare_version(),
        commit=tare_commit(),
        python=platform.python_version(),
        utc=utc_now(),
        architecture=platform.machine(),
        fingerprint=host_fingerprint().digest,
        conditions={fact.name: fact.text for fact in facts if fact.name not in _VOLATILE},
        free=folders,
        cpus=len(os.sched_getaffinity(0)),
    )


async def hello(_worker: "FleetWorker", content: Any, _told: "Told") -> Any:
    """What this host says of itself, the suite in mind; to another tare, which may have other suites, without."""
    found = await asyncio.to_thread(hello_here)
    if content.get("asked_by") != [found.version, found.commit]:
        return msgspec.to_builtins(found)
    suite = _suite(content["suite"])
    checks = await _doctor()
    backends = {one.name: checks.get(f"backend {one.type.name}", "") for one in suite.backends}
    named = {f"doctor: {name}": why or "works" for name, why in checks.items() if not name.startswith(_LEFT_OUT)}
    image = await asyncio.to_thread(_find_image, suite, content["image"])
    said = msgspec.structs.replace(
        found, backends=backends, conditions={**found.conditions, **named}, image=image.digest if image else ""
    )
    return msgspec.to_builtins(said)


async def _doctor() -> dict[str, str]:
    """What ``tare doctor`` looked at, with why it does not work (empty: it does)."""
    process = Popen([sys.executable, "-m", "tare", "doctor", "--json"], stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
    out, _ = await asyncio.to_thread(process.communicate)
    try:
        checks = json.loads(out)["checks"]
    except (ValueError, KeyError) as error:
        raise TareError(
            "`tare doctor --json` does not work there", remedy="run it there, and see what it says"
        ) from error
    return {str(one["name"]): "" if one["works"] else str(one["detail"]) for one in checks}


async def carry_out(worker: "FleetWorker", content: Any, told: "Told") -> Any:
    """Have the run of an order measured; meanwhile this worker keeps off the instances' CPUs."""
    order = msgspec.convert(content, Order)
    offer = HostOffer(worker.usable_cpus, None)
    worker.keep_off(bind_suite(_suite(order.suite), offer).envelope.cpus)

    async def tell(standing: Standing) -> None:
        told("standing", msgspec.to_builtins(standing))

    try:
        return msgspec.to_builtins(await on_host.carry_out(order, worker.usable_cpus, tell))
    finally:
        worker.keep_off(())


async def stop(_worker: "FleetWorker", content: Any, _told: "Told") -> Any:
    """End the run of an order."""
    return msgspec.to_builtins(await on_host.stop(msgspec.convert(content, Order)))


async def look(_worker: "FleetWorker", content: Any, _told: "Told") -> Any:
    """How the run of an order stands, without beginning it."""
    return msgspec.to_builtins(on_host.look(msgspec.convert(content, Order)))


async def listing(_worker: "FleetWorker", content: Any, _told: "Told") -> Any:
    """The files of the complete run."""
    return msgspec.to_builtins(await asyncio.to_thread(Place(msgspec.convert(content, Order)).listing))


async def pieces(_worker: "FleetWorker", content: Any, _told: "Told") -> Any:
    """Pieces of files of the complete run, each stated by name, offset and size."""
    order = msgspec.convert(content["order"], Order)
    return await asyncio.to_thread(on_host.read_pieces, order, content["pieces"])


async def build_image(_worker: "FleetWorker", content: Any, _told: "Told") -> Any:
    """Build the image of a suite, or find it; its digest."""

    def build() -> str:
        suite = _suite(content["suite"])
        with Ledger(ledger_directory()) as ledger:
            images = ImageStore(cache_directory(), ledger)
            if suite.file.image.use:
                return images.get(suite.file.image.use).digest
            return images.build(Recipe.of(suite.packages())).digest

    return await asyncio.to_thread(build)


async def export_image(_worker: "FleetWorker", content: Any, _told: "Told") -> Any:
    """Pack an image; the size and SHA-256 of the pack, whose pieces ``image_piece`` reads."""

    def export() -> Any:
        pack = _pack(content["digest"])
        with Ledger(ledger_directory()) as ledger:
            ImageStore(cache_directory(), ledger).pack(content["digest"], pack)
        return {"size": pack.stat().st_size, "sha256": _hash(pack)}

    return await asyncio.to_thread(export)


async def image_piece(_worker: "FleetWorker", content: Any, _told: "Told") -> Any:
    """A piece of a pack; with a ``size`` of 0 the pack is removed."""
    pack = _pack(content["digest"])
    if content["size"] == 0:
        pack.unlink(missing_ok=True)
        return b""
    return await asyncio.to_thread(_read, pack, content["offset"], min(content["size"], PIECE_BYTES))


async def receive_image(worker: "FleetWorker", content: Any, _told: "Told") -> Any:
    """Fetch a pack from the user's side and unpack it: whole, with the digest that was asked for, or not."""
    pack, size = _pack(content["digest"]), int(content["size"])
    pack.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with pack.open("wb") as file:
            while file.tell() < size:
                file.write(await worker.fetch("image", file.tell(), PIECE_BYTES))
        if await asyncio.to_thread(_hash, pack) != content["sha256"]:
            raise ImageError("the image that came is not the one that was sent")

        def unpack() -> str:
            with Ledger(ledger_directory()) as ledger:
                return ImageStore(cache_directory(), ledger).unpack(pack, content["digest"]).digest

        return await asyncio.to_thread(unpack)
    finally:
        pack.unlink(missing_ok=True)


async def leave(worker: "FleetWorker", _content: Any, _told: "Told") -> Any:
    """End this worker: its fleet needs it no more."""
    worker.dismissed = True
    return True


CALLS = {
    one.__name__: one
    for one in (
        hello,
        carry_out,
        stop,
        look,
        listing,
        pieces,
        build_image,
        export_image,
        image_piece,
        receive_image,
        leave,
    )
}


def _suite(written: Mapping[str, Any]) -> SuiteSpec:
    return resolve_suite(written, Path("suite.json"), find_backends(), find_workloads())


def _find_image(suite: SuiteSpec, chosen: str) -> Image | None:
    with Ledger(ledger_directory()) as ledger:
        images = ImageStore(cache_directory(), ledger)
        try:
            if wanted := chosen or suite.file.image.use:
                return images.get(wanted)
            return images.find(Recipe.of(suite.packages()))
        except ImageError:
            return None


def _pack(digest: str) -> Path:
    if len(digest) != 64 or not digest.isalnum():
        raise ImageError(f"{digest!r} is no digest of an image")
    return state_directory() / "fleet" / f"image-{digest}-{os.getpid()}.tar"


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)
