"""xz 5.4 and pixz 1.0, one thread a CPU, on a corpus that is the same on every machine.

The corpus is text of made-up words, as frequent as words are in natural language (Zipf), from Python's own generator of
random numbers, whose sequence for a seed is the same in every version. It packs to a third, as prose does.
"""

import re
from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from tare.bench.interfaces import Workload
from tare.bench.model import SCRATCH, Command, Commands, Completed, Envelope, Measurement
from tare.bench.traits import Category, Parameter
from tare.bench.units import Size
from tare.workloads.metrics import bandwidth_of
from tare.workloads.output import one_match, positive, read_output, refuse
from tare.workloads.parameters import START_MARGIN_S, require_memory, require_scratch, require_size

GENERATOR = """
import random, sys
size, seed, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
random.seed(seed)
letters = "etaoinshrdlucmfwypvbgkjqxz"
words = ["".join(random.choices(letters, range(26, 0, -1), k=random.randint(2, 11))) for _ in range(20000)]
frequencies = [1 / rank for rank in range(1, len(words) + 1)]
with open(path, "w", encoding="ascii") as corpus:
    while size > 0:
        line = " ".join(random.choices(words, frequencies, k=1000)) + "\\n"
        size -= corpus.write(line[:size])
"""
"""A program for the image's Python: writes a number of bytes, generated from a seed, to a path."""

# What is unpacked goes through a pipe to be counted, so that no disk is measured and the result is seen to be right.
_COMPRESS = 'set -o pipefail; stat -c "plain %s" corpus && "$@" <corpus | wc -c | sed "s/^/packed /" && echo end'
_DECOMPRESS = (
    'set -o pipefail; rounds=$1; shift; stat -c "plain %s" corpus && for _ in $(seq "$rounds"); do '
    '"$@" <packed | wc -c | sed "s/^/unpacked /" || exit; done && echo end'
)
_COMPRESSED = re.compile(r"\Aplain (?P<plain>\d{1,15})\npacked (?P<packed>\d{1,15})\nend\n*\Z", re.ASCII)
_DECOMPRESSED = re.compile(r"\Aplain (?P<plain>\d{1,15})\n(?P<rounds>(?:unpacked \d{1,15}\n)+)end\n*\Z", re.ASCII)
_ROUNDS = 8
"""How often one measurement unpacks the corpus, because that takes a tenth of the time of packing it."""

_MIB = 2**20
_DICTIONARIES = tuple(mib * _MIB for mib in (0.25, 1, 2, 4, 4, 8, 8, 16, 32, 64))
_COMPRESSOR_MEMORY = tuple(mib * _MIB for mib in (3, 9, 17, 32, 48, 94, 94, 186, 370, 674))
_SLOWEST = 100


class CompressionParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``preset`` is the compressor's level. The same ``size`` and ``seed`` make the same corpus everywhere."""

    operation: Literal["compress", "decompress"] = "compress"
    preset: Annotated[int, Meta(ge=0, le=9, description="the level of compression")] = 3
    size: Size = Size("4MiB")
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1, description="of the corpus")] = 1

    def __post_init__(self) -> None:
        require_size("size", self.size, 2**20, 2**40)


class Compression(Workload):
    """Packs or unpacks the corpus with a thread on each CPU, cut into as many blocks of their own."""

    licence: ClassVar[str]
    category = Category.CPU
    metrics = (
        bandwidth_of(
            "compress.bandwidth",
            "Bytes compressed per second of the whole command, on the host's clock.",
            "Bytes compressed per second",
        ),
        bandwidth_of(
            "decompress.bandwidth",
            "Bytes decompressed per second of the whole command, on the host's clock.",
            "Bytes decompressed per second",
        ),
    )

    Params = CompressionParams

    @abstractmethod
    def compressor(self, preset: int, threads: int, block_bytes: int, dictionary_bytes: float) -> tuple[str, ...]:
        """The command that packs standard input to standard output in blocks of ``block_bytes``."""

    @abstractmethod
    def decompressor(self, threads: int) -> tuple[str, ...]:
        """The command that unpacks standard input to standard output."""

    def commands(self, params: CompressionParams, envelope: Envelope) -> Commands:
        """The corpus is made once an instance, and packed once. Raises WorkloadError where it does not fit."""
        threads, size = len(envelope.cpus), int(params.size)
        self._check_fit(params, threads, envelope)
        folder = f"{SCRATCH}/tare-{self.name}"
        pack = self.compressor(params.preset, threads, -(-size // threads), _DICTIONARIES[params.preset])
        prepare: tuple[Command, ...] = (
            Command(("mkdir", "-p", folder)),
            Command(("python3", "-c", GENERATOR, str(size), str(params.seed), f"{folder}/corpus"), timeout_s=600),
        )
        timeout_s = START_MARGIN_S + _SLOWEST * self.duration_s(params)
        if params.operation == "compress":
            measured = Command(("bash", "-c", _COMPRESS, self.name, *pack), cwd=folder, timeout_s=timeout_s)
        else:
            to_file = ("sh", "-c", '"$@" <corpus >packed', self.name, *pack)
            prepare = (*prepare, Command(to_file, cwd=folder, timeout_s=timeout_s))
            unpack = ("bash", "-c", _DECOMPRESS, self.name, str(_ROUNDS), *self.decompressor(threads))
            measured = Command(unpack, cwd=folder, timeout_s=timeout_s)
        return Commands(measured, setup=prepare, teardown=(Command(("rm", "-rf", folder)),))

    def parse(self, completed: Completed) -> list[Measurement]:
        """The bytes that the tool was seen to have taken or given, over the time between start and end."""
        text = read_output(self.name, completed)
        if compressed := _COMPRESSED.match(text):
            plain = positive(self.name, "the size of the corpus", compressed["plain"], text)
            packed = positive(self.name, "what it was packed to", compressed["packed"], text)
            if packed >= plain:
                refuse(self.name, f"it packed {plain:.0f} bytes of text to {packed:.0f}", text)
            return [Measurement("compress.bandwidth", plain / completed.duration_s)]
        decompressed = one_match(self.name, "the sizes of corpus and output", _DECOMPRESSED, text)
        plain = positive(self.name, "the size of the corpus", decompressed["plain"], text)
        rounds = [line.removeprefix("unpacked ") for line in decompressed["rounds"].splitlines()]
        if any(unpacked != decompressed["plain"] for unpacked in rounds) or len(rounds) != _ROUNDS:
            refuse(self.name, f"it did not give {plain:.0f} bytes {_ROUNDS} times", text)
        return [Measurement("decompress.bandwidth", len(rounds) * plain / completed.duration_s)]

    @classmethod
    def duration_s(cls, params: CompressionParams) -> float:
        """From tenths of a second a MiB and level on one CPU; unpacking hardly depends on the level."""
        mib = params.size / _MIB
        return mib * (0.1 * (1 + params.preset) if params.operation == "compress" else 0.035 * _ROUNDS)

    def _check_fit(self, params: CompressionParams, threads: int, envelope: Envelope) -> None:
        size = int(params.size)
        packed = f"{self.name}'s corpus (size = {params.size}), plain and packed"
        require_scratch(envelope, 2 * size, packed, "a smaller size")
        needed = _COMPRESSOR_MEMORY[params.preset] * threads + 3 * size
        what = f"{self.name} with {threads} threads at preset = {params.preset}"
        require_memory(envelope, needed, what, "a lower preset or a smaller size")


class Xz(Compression):
    """``xz -T``: LZMA2 is bound by memory latency when it packs and by branches when it unpacks."""

    name = "xz"
    summary = "compression: xz on a generated corpus, one thread per CPU"
    title = "Compression (xz)"
    parameters = (
        Parameter("operation", "Operation"),
        Parameter("preset", "Level"),
        Parameter("size", "Corpus"),
        Parameter("seed", "Seed of the corpus"),
    )
    packages = ("xz-utils", "python3")
    licence = "0BSD"

    def compressor(self, preset: int, threads: int, block_bytes: int, dictionary_bytes: float) -> tuple[str, ...]:
        """The preset's own dictionary, which a block may be smaller than."""
        del dictionary_bytes
        return ("xz", f"-{preset}", f"-T{threads}", f"--block-size={block_bytes}", "--stdout")

    def decompressor(self, threads: int) -> tuple[str, ...]:
        """With the checksum verified."""
        return ("xz", "--decompress", f"-T{threads}", "--stdout")


class Pixz(Compression):
    """``pixz -t``: one more thread reads and one writes, so more data passes between threads."""

    name = "pixz"
    summary = "compression: pixz on a generated corpus, one thread per CPU"
    title = "Compression (pixz)"
    parameters = Xz.parameters
    packages = ("pixz", "python3")
    licence = "BSD-2-Clause"

    def compressor(self, preset: int, threads: int, block_bytes: int, dictionary_bytes: float) -> tuple[str, ...]:
        """With blocks as pixz states them: as a multiple of the dictionary."""
        return ("pixz", f"-{preset}", "-t", "-p", str(threads), "-f", f"{block_bytes / dictionary_bytes:.6f}")

    def decompressor(self, threads: int) -> tuple[str, ...]:
        """With the checksum verified."""
        return ("pixz", "-d", "-t", "-p", str(threads))
