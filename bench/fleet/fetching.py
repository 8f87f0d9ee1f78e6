"""Files from a host, in pieces, verified: a run directory is here whole, with the digest its host states, or not."""

import hashlib
import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tare.bench.errors import TareError
from tare.bench.fleet.listing import PIECE_BYTES, ListedFile, digest_of, list_run, require_below
from tare.bench.fleet.on_host import Order
from tare.bench.trees import make_folders, sync

Ask = Callable[[str, Any], Awaitable[Any]]
"""Asks the host a call with its content; raises TareError."""
_MOST_A_CALL = 500
"""Files."""


async def collect(ask: Ask, order: Order, digest: str, target: Path) -> None:
    """Fetch a complete run into the folder ``target``. What an earlier attempt fetched whole is kept.

    Raises TareError if the files are not those of the digest, OSError.
    """
    if digest_of(list_run(target)) == digest:
        return
    plain = msgspec.to_builtins(order)
    files = msgspec.convert(await ask("listing", plain), tuple[ListedFile, ...])
    if digest_of(files) != digest:
        raise TareError("the listing that came is not that of its digest", remedy="`tare fleet collect` tries again")
    part = target.with_name(f".{target.name}.part")
    make_folders(part)
    here = {one.name: one for one in list_run(part)}
    wanted = [one for one in files if here.get(one.name) != one]
    for batch in _batches(wanted):
        contents = await ask("pieces", {"order": plain, "pieces": batch})
        for (name, offset, size), content in zip(batch, contents, strict=True):
            _write(part / require_below(name), offset, _exactly(content, size))
    if digest_of(list_run(part)) != digest:
        raise TareError("the files that came are not those of its digest", remedy="`tare fleet collect` tries again")
    _put_in_place(part, target)


async def fetch_image(ask: Ask, digest: str, target: Path) -> dict[str, Any]:
    """Fetch the pack of an image into a file; its ``size`` and ``sha256``. Raises TareError, OSError."""
    stated = await ask("export_image", {"digest": digest})
    size, sha256 = int(stated["size"]), str(stated["sha256"])
    found = hashlib.sha256()
    with target.open("wb") as file:
        while file.tell() < size:
            place = {"digest": digest, "offset": file.tell(), "size": PIECE_BYTES}
            piece = _exactly(await ask("image_piece", place), min(PIECE_BYTES, size - file.tell()))
            found.update(piece)
            file.write(piece)
    await ask("image_piece", {"digest": digest, "offset": 0, "size": 0})
    if found.hexdigest() != sha256:
        raise TareError("the image that came is not the one that was sent")
    return {"size": size, "sha256": sha256}


def _batches(files: Sequence[ListedFile]) -> Iterator[list[tuple[str, int, int]]]:
    """The pieces of these files, several small ones a call, in order."""
    batch: list[tuple[str, int, int]] = []
    total = 0
    for file in files:
        for offset in range(0, max(file.size, 1), PIECE_BYTES):
            size = min(PIECE_BYTES, file.size - offset)
            if batch and (total + size > PIECE_BYTES or len(batch) >= _MOST_A_CALL):
                yield batch
                batch, total = [], 0
            batch.append((file.name, offset, size))
            total += size
    if batch:
        yield batch


def _put_in_place(part: Path, target: Path) -> None:
    for folder in {file.parent for file in part.rglob("*") if file.is_file()}:
        sync(folder)
    if target.exists():
        shutil.rmtree(target)
    part.rename(target)
    sync(target.parent)


def _write(path: Path, offset: int, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if offset else "wb") as file:
        file.seek(offset)
        file.write(content)


def _exactly(content: Any, size: int) -> bytes:
    if not isinstance(content, bytes) or len(content) != size:
        raise TareError("a piece of a file has another length than it was stated to have")
    return content
