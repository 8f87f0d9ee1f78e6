"""Reads tar archives strictly: to their end, with every checksum of what compresses them, within limits.

``tarfile`` ends silently at a damaged header, and its readers of compressed files pass over what follows the first
stream; both would make an image of a part of an archive.
"""

import bz2
import contextlib
import hashlib
import itertools
import lzma
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Protocol

import msgspec

from tare.bench.errors import ImageError
from tare.bench.process import DEVNULL, PIPE, Popen, require_tool
from tare.bench.units import format_size

_CHUNK = 1 << 20
_MOST_DESCRIBING = 4 << 20
"""Bytes that describe one member (names, extended attributes, sparse map)."""
_FREE_OF_RATIO = 64 << 20
_SKIPPABLE = tuple(bytes([number]) + b"\x2a\x4d\x18" for number in range(0x50, 0x60))
_LONGEST_MAGIC = 6


class ArchiveLimits(msgspec.Struct, frozen=True):
    """The most that one archive, all its layers together, may hold."""

    size_bytes: int = 32 << 30
    members: int = 1_000_000
    depth: int = 100
    ratio: int = 200
    """Content to compressed size, beyond the first 64 MiB."""


class Account:
    """What the archives of one import have held so far. Each method raises ImageError beyond a limit."""

    def __init__(self, limits: ArchiveLimits) -> None:
        self.limits = limits
        self._read = self._files = self._members = 0

    def add_content(self, size: int) -> None:
        """Count bytes of a decompressed archive."""
        self._read += size
        self._check_size(self._read)

    def add_member(self, member: tarfile.TarInfo) -> None:
        """Count a member, its size and the folders above it."""
        self._members += 1
        if self._members > self.limits.members:
            raise _beyond(f"more than {self.limits.members} members", "--max-members")
        depth = sum(part not in ("", ".") for part in member.name.split("/"))
        self.check_depth(depth, member.name)
        if member.isreg():
            self._files += member.size
            self._check_size(self._files)

    def check_depth(self, depth: int, name: str) -> None:
        """Check the number of names in a path."""
        if depth > self.limits.depth:
            raise _beyond(f"a path of {depth} names, {quoted(name)}", "--max-depth", self.limits.depth)

    def check_ratio(self, content: int, compressed: int) -> None:
        """Check the ratio of one archive's content to its size."""
        if content - _FREE_OF_RATIO > self.limits.ratio * compressed:
            raise _beyond(f"more than {self.limits.ratio} times its own size", "--max-ratio")

    def _check_size(self, size: int) -> None:
        if size > self.limits.size_bytes:
            raise _beyond(f"{format_size(size)} or more", "--max-size", format_size(self.limits.size_bytes))


def _beyond(what: str, option: str, limit: object = "") -> ImageError:
    return ImageError(
        f"the archive holds {what}" + (f"; the limit is {limit}" if limit else ""),
        remedy=f"import it with a higher {option} if you trust it",
    )


def quoted(name: str) -> str:
    """A member's name for a message: no control characters, not too long."""
    return repr(name if len(name) <= 120 else f"{name[:119]}…")


class Archive:
    """An open archive: iterate over its members once, and copy the content of each before going on."""

    def __init__(self, content: "_Content", account: Account) -> None:
        self._content = content
        self._account = account
        self._tar = tarfile.TarFile(fileobj=content, tarinfo=_Member)  # type: ignore[arg-type]  # the part it needs

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        while member := self._tar.next():
            self._tar.members = []  # type: ignore[attr-defined]  # it would keep them all
            self._account.add_member(member)
            if member.isreg() and member.sparse is not None:
                _check_map(member)
                self._content.holes += member.size - sum(size for _, size in _map(member))
                self._content.check_ratio()
            yield member
        while block := self._content.read(_CHUNK):
            if block.count(0) != len(block):
                raise tarfile.ReadError("there is more after its end")

    def copy(self, member: tarfile.TarInfo, file: IO[bytes]) -> str:
        """Write the content of a regular file and return its SHA-256; a sparse file keeps its holes and has none."""
        source = self._tar.extractfile(member)
        assert source is not None
        if member.sparse is not None:
            for offset, size in _map(member):
                source.seek(offset)
                file.seek(offset)
                for chunk in _pieces(source, size):
                    file.write(chunk)
            file.truncate(member.size)
            return ""
        digest = hashlib.sha256()
        for chunk in _pieces(source, member.size):
            digest.update(chunk)
            file.write(chunk)
        return digest.hexdigest()


def _pieces(source: IO[bytes], size: int) -> Iterator[bytes]:
    while size:
        chunk = source.read(min(size, _CHUNK))
        if not chunk:
            raise tarfile.ReadError("unexpected end of data")
        size -= len(chunk)
        yield chunk


def _map(member: tarfile.TarInfo) -> list[tuple[int, int]]:
    return member.sparse  # type: ignore[return-value]  # (offset, size) of what is not a hole


def _check_map(member: tarfile.TarInfo) -> None:
    at = 0
    for offset, size in _map(member):
        if offset < at or size < 0:
            at = member.size + 1
            break
        at = offset + size
    if at > member.size:
        raise tarfile.ReadError(f"the sparse map of {quoted(member.name)} makes no sense")


class _Member(tarfile.TarInfo):
    """A member whose header is whole, or an error."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_Member":
        content: _Content = tar.fileobj  # type: ignore[assignment]  # set by Archive
        with content.at_most(_MOST_DESCRIBING):
            try:
                member = super().fromtarfile(tar)
            except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the zeros at the end
                raise
            except (tarfile.HeaderError, ValueError, ArithmeticError, LookupError, TypeError, RecursionError) as error:
                raise tarfile.ReadError(f"damaged header after byte {content.tell()}: {error}") from None
        if member.size < 0 or tar.offset < content.tell():
            raise tarfile.ReadError(f"{quoted(member.name)} has the size {member.size}")
        return member


@contextlib.contextmanager
def open_archive(path: Path, account: Account) -> Iterator[Archive]:
    """An archive for reading from front to back, opened once: it may be a pipe. Raises ImageError, MissingToolError."""
    with path.open("rb", buffering=0) as file:
        try:
            source = _Source(file)
            with source.decompressed() as chunks:
                yield Archive(_Content(chunks, source, account), account)
        except (tarfile.TarError, EOFError) as error:
            raise ImageError(f"{quoted(path.name)} cannot be read as a tar archive: {error}") from error


class _Source:
    """The bytes of the file, in pieces, counted."""

    def __init__(self, file: IO[bytes]) -> None:
        self.taken = 0
        self._file = file

    def _chunks(self) -> Iterator[bytes]:
        while chunk := self._file.read(_CHUNK):
            self.taken += len(chunk)
            yield chunk

    @contextlib.contextmanager
    def decompressed(self) -> Iterator[Iterator[bytes]]:
        """Its content by whatever its first bytes say; every stream in it, each with its own checks."""
        chunks = self._chunks()
        first = b""
        while len(first) < _LONGEST_MAGIC and (chunk := next(chunks, b"")):
            first += chunk
        chunks = itertools.chain([first], chunks)
        if first.startswith((b"\x28\xb5\x2f\xfd", *_SKIPPABLE)):
            with _unzstd(chunks) as content:
                yield content
        elif first.startswith(b"\x1f\x8b"):
            yield _streams(chunks, _Gunzip)
        elif first.startswith(b"BZh"):
            yield _streams(chunks, bz2.BZ2Decompressor)
        elif first.startswith(b"\xfd7zXZ\0"):
            yield _streams(chunks, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ))
        else:
            yield chunks


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


class _Gunzip:
    """zlib's reader of a gzip member, which checks CRC and length, with the interface of the other two."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = 0, /) -> bytes:
        content = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        self.needs_input = not self._inner.unconsumed_tail and len(content) < max_length
        return content


def _streams(chunks: Iterator[bytes], decoder_of: Callable[[], _Decoder]) -> Iterator[bytes]:
    """The content of all streams, one after another; between and after them zeros may stand, and nothing else."""
    given = next(chunks)
    while given:
        decoder = decoder_of()
        while not decoder.eof:
            try:
                content = decoder.decompress(given, _CHUNK)
            except (OSError, ValueError, zlib.error, lzma.LZMAError) as error:
                raise tarfile.ReadError(f"its compressed data is damaged: {error}") from None
            if content:
                yield content
            given = b""
            if decoder.needs_input and not decoder.eof:
                given = next(chunks, b"")
                if not given:
                    raise tarfile.ReadError("its compressed data is cut short")
        given = next(filter(None, (rest.lstrip(b"\0") for rest in itertools.chain([decoder.unused_data], chunks))), b"")


@contextlib.contextmanager
def _unzstd(chunks: Iterable[bytes]) -> Iterator[Iterator[bytes]]:
    with Popen([str(require_tool("zstd")), "-dcq"], stdin=PIPE, stdout=PIPE, stderr=DEVNULL) as process:
        feeder = threading.Thread(target=_feed, args=(chunks, process.stdin), daemon=True)
        feeder.start()
        try:
            yield _output(process)
        finally:
            process.kill()  # has ended already unless reading failed
            feeder.join(timeout=1)  # it may wait for the other end of a pipe


def _output(process: "Popen[bytes]") -> Iterator[bytes]:
    assert process.stdout is not None
    while content := process.stdout.read(_CHUNK):
        yield content
    if process.wait() != 0:
        raise tarfile.ReadError("zstd reports that its compressed data is damaged")


def _feed(chunks: Iterable[bytes], stdin: IO[bytes]) -> None:
    with contextlib.suppress(OSError, ValueError), stdin:  # ended by us, or by damage that its exit status reports
        for chunk in chunks:
            stdin.write(chunk)


class _Content:
    """What the archive holds once decompressed, as a file that goes forward only."""

    def __init__(self, chunks: Iterator[bytes], source: _Source, account: Account) -> None:
        self.holes = 0
        self._chunks = chunks
        self._source = source
        self._account = account
        self._chunk = memoryview(b"")
        self._at = 0
        self._allowed: int | None = None

    @contextlib.contextmanager
    def at_most(self, size: int) -> Iterator[None]:
        """Refuse to read more than this in the block; one inside another has what is left."""
        before = self._allowed
        if before is None:
            self._allowed = size
        try:
            yield
        finally:
            self._allowed = self._allowed if before is not None else None

    def check_ratio(self) -> None:
        """Raise ImageError if content and holes are too much for the file's size."""
        self._account.check_ratio(self._at + self.holes, self._source.taken)

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> None:
        """Go forward to ``position``."""
        if position < self._at:
            raise tarfile.ReadError("members overlap")
        while self._at < position:
            if not self.read(min(position - self._at, _CHUNK)):
                raise tarfile.ReadError("unexpected end of data")

    def read(self, size: int) -> bytes:
        """``size`` bytes, or what is left."""
        if self._allowed is not None:
            self._allowed -= size
            if size < 0 or self._allowed < 0:
                raise tarfile.ReadError(f"more than {_MOST_DESCRIBING} bytes describe one member")
        parts = []
        while size > 0 and (self._chunk or self._fill()):
            part = self._chunk[:size]
            self._chunk = self._chunk[len(part) :]
            self._at += len(part)
            size -= len(part)
            parts.append(part)
        return parts[0].tobytes() if len(parts) == 1 else b"".join(parts)

    def _fill(self) -> bool:
        chunk = next(self._chunks, b"")
        self._chunk = memoryview(chunk)
        self._account.add_content(len(chunk))
        self._account.check_ratio(self._at + len(chunk) + self.holes, self._source.taken)
        return bool(chunk)
