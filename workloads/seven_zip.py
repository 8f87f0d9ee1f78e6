"""7-Zip's own benchmark, ``7zz b``: LZMA over random data of its making, packing and unpacking.

It rates in MIPS of a processor that it once ran on; its speeds in KiB/s say the same with another constant, and both
are kept.
"""

import re
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from tare.bench.interfaces import Workload
from tare.bench.model import Command, Commands, Completed, Envelope, Measurement, Metric
from tare.bench.traits import Category, Parameter
from tare.workloads.metrics import bandwidth_of, rate_of
from tare.workloads.output import LINES, one_match, positive, read_output, refuse
from tare.workloads.parameters import START_MARGIN_S, WholeSeconds, require_memory

_TOOL = "7zz b"
_FIRST = re.compile(r"\A\n7-Zip \(z\) \d+\.\d\d \(\w+\) : Copyright [^\n]*\n", re.ASCII)
_SIDE = r"{0}(?P<{1}_speed>\d{{1,12}}) +(?P<{1}_usage>\d{{1,6}}) +(?P<{1}_unit>\d{{1,12}}) +(?P<{1}_rating>\d{{1,12}})"
_COLUMNS = f"{_SIDE.format(' +', 'compress')}  \\|{_SIDE.format(' +', 'decompress')}"
_HEADINGS = re.compile(
    r"^ +Compressing +\| +Decompressing\nDict +Speed Usage +R/U Rating +\| +Speed Usage +R/U Rating\n"
    r" +KiB/s +% +MIPS +MIPS +\| +KiB/s +% +MIPS +MIPS\n$",
    LINES,
)
_ROW = re.compile(rf"^\d\d:{_COLUMNS}$", LINES)
_AVERAGE = re.compile(rf"^Avr:{_COLUMNS}$", LINES)
_TOTAL = re.compile(r"^Tot: +\d{1,6} +\d{1,12} +(?P<rating>\d{1,12})\n*\Z", LINES)
_SLOWEST = 50


def _declare(operation: str, verb: str) -> tuple[Metric, ...]:
    return (
        bandwidth_of(
            f"{operation}.bandwidth",
            f"Bytes of uncompressed data {verb} per second by all threads, averaged over the dictionary sizes.",
            f"Bytes {verb} per second (LZMA)",
        ),
        rate_of(
            f"{operation}.rating",
            f"7-Zip's rating of how fast it {verb}: instructions per second of its reference processor.",
            f"7-Zip rating ({operation})",
        ),
    )


class SevenZip(Workload):
    """Integer work with much of it in the caches: dictionary look-ups and branches that cannot be predicted."""

    name = "7zip"
    summary = "compression: 7-Zip's LZMA benchmark, one thread per CPU"
    title = "Compression (7-Zip)"
    parameters = (Parameter("step_s", "Step (s)"), Parameter("dictionary_bits", "Dictionary (bits)"))
    packages = ("7zip",)
    licence = "LGPL-2.1-or-later"
    category = Category.CPU
    metrics = (*_declare("compress", "packed"), *_declare("decompress", "unpacked"))
    nominal_row_s: ClassVar[float] = 2.0

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``step_s`` is what packing and unpacking each take at least, for each size of dictionary.

        7-Zip does every power of two from 2^18 up to ``dictionary_bits``; from 2^22 where that is 22 or more.
        """

        step_s: WholeSeconds = 1
        dictionary_bits: Annotated[int, Meta(ge=18, le=27, description="the largest dictionary is a power of 2")] = 18

    def commands(self, params: Params, envelope: Envelope) -> Commands:
        """One thread on each CPU. Raises WorkloadError if the dictionaries do not fit the memory of ``envelope``."""
        threads = len(envelope.cpus)
        # As 7zz states it before it begins (``RAM usage``): 65 MB at 2^22 bytes for two threads of one encoder.
        needed = 2**20 * 6 + 16 * 2**params.dictionary_bits * -(-threads // 2)
        what = f"7zip (dictionary_bits = {params.dictionary_bits}, {threads} threads)"
        require_memory(envelope, needed, what, "fewer dictionary_bits")
        argv = ("7zz", "b", f"-mmt{threads}", f"-md{params.dictionary_bits}", f"-mtime={params.step_s}")
        return Commands(Command(argv, timeout_s=START_MARGIN_S + _SLOWEST * self.duration_s(params)))

    def parse(self, completed: Completed) -> list[Measurement]:
        """The averages as printed, which have to be those of the rows."""
        text = read_output(_TOOL, completed)
        one_match(_TOOL, "the line with the version", _FIRST, text)
        one_match(_TOOL, "the heading of the table", _HEADINGS, text)
        rows = list(_ROW.finditer(text))
        average = one_match(_TOOL, "the line of averages", _AVERAGE, text)
        total = one_match(_TOOL, "the last line, the total,", _TOTAL, text)
        for name, printed in average.groupdict().items():
            if not rows or abs(sum(int(row[name]) for row in rows) / len(rows) - int(printed)) > 1:
                refuse(_TOOL, f"{printed} is not the average of the rows", text)
        if abs((int(average["compress_rating"]) + int(average["decompress_rating"])) / 2 - int(total["rating"])) > 1:
            refuse(_TOOL, f"{total['rating']} is not the average of packing and unpacking", text)
        found = []
        for operation in ("compress", "decompress"):
            speed = positive(_TOOL, f"the speed of {operation}", average[f"{operation}_speed"], text)
            rating = positive(_TOOL, f"the rating of {operation}", average[f"{operation}_rating"], text, exponent=6)
            found += [
                Measurement(f"{operation}.bandwidth", speed * 1024),
                Measurement(f"{operation}.rating", rating),
            ]
        return found

    @classmethod
    def duration_s(cls, params: Params) -> float:
        """A step each for packing and unpacking, for each size of dictionary."""
        rows = params.dictionary_bits - (21 if params.dictionary_bits >= 22 else 17)
        return cls.nominal_row_s * params.step_s * rows
