"""What a command prints, kept as it comes: little of it in memory, the rest on the disk, with a bound."""

import io
import os
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, cast

from tare.bench.errors import BackendError, OutputTooLargeError
from tare.bench.model import KEPT_BYTES, MAX_OUTPUT_BYTES


class _Unnamed(io.FileIO):
    """A file without a name, gone with the last reference to it."""

    def __init__(self, folder: Path | None) -> None:
        with tempfile.TemporaryFile(dir=folder) as made:
            super().__init__(os.dup(made.fileno()), "r+")

    def __del__(self) -> None:
        self.close()

    def append(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self.write(left) :]


class _Stream:
    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._parts: list[bytes] = []
        self._size = 0
        self.whole: _Unnamed | None = None

    def add(self, data: bytes) -> None:
        self._size += len(data)
        if self.whole is None and self._size > KEPT_BYTES:
            self.whole = _Unnamed(self._folder)
            for part in self._parts:
                self.whole.append(part)
            self._parts.clear()
        if self.whole is None:
            self._parts.append(data)
        else:
            self.whole.append(data)

    def end(self) -> bytes:
        if self.whole is None:
            return b"".join(self._parts)
        self.whole.seek(self._size - KEPT_BYTES)
        end = self.whole.readall()
        self.whole.seek(0)
        return end


class Spool:
    """Both streams of one command. One that is longer than ``KEPT_BYTES`` is in a file without a name."""

    def __init__(self, program: str, folder: Path | None = None) -> None:
        """``folder`` is where such a file lies; the system's for temporary files if there is none."""
        self._program = program
        self._bytes = 0
        self._streams = {"stdout": _Stream(folder), "stderr": _Stream(folder)}

    def add(self, stream: str, data: bytes) -> None:
        """Append to ``stdout`` or ``stderr``. Raises OutputTooLargeError, or BackendError if the disk takes no more."""
        self._bytes += len(data)
        if self._bytes > MAX_OUTPUT_BYTES:
            raise OutputTooLargeError(self._program, MAX_OUTPUT_BYTES)
        try:
            self._streams[stream].add(data)
        except OSError as error:
            raise BackendError(
                f"what {self._program} prints cannot be kept: {error.strerror}",
                remedy="make room where the suite's storage is",
            ) from error

    def fields(self) -> dict[str, Any]:
        """``stdout``, ``stderr`` and ``whole`` of ``Completed``."""
        ends = {name: stream.end() for name, stream in self._streams.items()}
        files = {name: stream.whole for name, stream in self._streams.items() if stream.whole is not None}
        return {**ends, "whole": cast("dict[str, BinaryIO]", files)}
