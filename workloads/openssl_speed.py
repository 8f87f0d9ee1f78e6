"""``openssl speed`` 3: ciphers and hashes over a buffer in memory, RSA signatures, one process per CPU.

Of its forms the one for machines is taken (``-mr``), which has all digits. ``-elapsed``, because it would divide by
its own CPU time else, from which the time that a hypervisor or a neighbour took is missing.
"""

import re
from decimal import Decimal
from typing import Literal

import msgspec

from tare.bench.interfaces import Workload
from tare.bench.model import Command, Commands, Completed, Envelope, Measurement
from tare.bench.traits import Category, Parameter
from tare.bench.units import Size
from tare.workloads.metrics import bandwidth_of, rate_of
from tare.workloads.output import LINES, one_match, positive, read_output, refuse
from tare.workloads.parameters import START_MARGIN_S, WholeSeconds, require_size

_TOOL = "openssl speed"
_WHOLE = re.compile(r"\A(?:(?:Forked child|Got:) [^\n]*\n)+\+F[^\n]*\n*\Z", re.ASCII)
_FORKED = re.compile(r"^Forked child \d+$", LINES)
_DATA = r"\+F:\d{1,3}:[A-Za-z0-9-]+:(?P<first>\d{1,15}\.\d\d)"
_KEYS = r"\+F2:\d{1,3}:\d{4,5}:(?P<first>\d{1,15}\.\d{6}):(?P<second>\d{1,15}\.\d{6})"
_RSA = "rsa"


class OpensslSpeed(Workload):
    """What the processor's instructions for cryptography give, and big-number arithmetic for RSA.

    No system calls and no memory beyond the caches: a guest or a container should cost next to nothing, unless it is
    not shown the instructions (a guest's CPU model) or is not given the CPU.
    """

    name = "openssl-speed"
    summary = "cryptography: AES-GCM, SHA-2 or RSA in memory, one process per CPU"
    title = "Cryptography (OpenSSL)"
    parameters = (
        Parameter("algorithm", "Algorithm"),
        Parameter("block_size", "Block size"),
        Parameter("runtime_s", "Run time (s)"),
    )
    packages = ("openssl",)
    licence = "Apache-2.0"
    category = Category.CPU
    fixed_time = True
    metrics = (
        bandwidth_of(
            "data.bandwidth",
            "Bytes encrypted or hashed per second by all processes.",
            "Bytes of {algorithm} per second",
        ),
        rate_of(
            "sign.operations_per_second",
            "Signatures made per second by all processes.",
            "Signatures per second",
        ),
        rate_of(
            "verify.operations_per_second",
            "Signatures verified per second by all processes.",
            "Verifications per second",
        ),
    )

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``block_size`` is of one call of a cipher or a hash; RSA signs for ``runtime_s``, then verifies."""

        algorithm: Literal[
            "aes-128-gcm", "aes-256-gcm", "chacha20-poly1305", "rsa2048", "rsa4096", "sha256", "sha512"
        ] = "aes-256-gcm"
        block_size: Size = Size("16KiB")
        runtime_s: WholeSeconds = 1

        def __post_init__(self) -> None:
            require_size("block_size", self.block_size, 16, 64 * 2**20)

    def commands(self, params: Params, envelope: Envelope) -> Commands:
        """One process on each CPU of ``envelope``, each with buffers of its own."""
        options = ("-mr", "-elapsed", "-seconds", str(params.runtime_s), "-multi", str(len(envelope.cpus)))
        if params.algorithm.startswith(_RSA):
            what: tuple[str, ...] = (params.algorithm,)
        else:
            what = ("-bytes", str(int(params.block_size)), "-evp", params.algorithm)
        timeout_s = 2 * self.duration_s(params) + START_MARGIN_S
        return Commands(Command(("openssl", "speed", *options, *what), timeout_s=timeout_s))

    def parse(self, completed: Completed) -> list[Measurement]:
        """The totals as printed; they have to be the sums of what each process is printed to have done."""
        text = read_output(_TOOL, completed)
        one_match(_TOOL, "the whole report", _WHOLE, text)
        form = _KEYS if "\n+F2:" in text else _DATA
        total = one_match(_TOOL, "the total", re.compile(rf"^{form}$", LINES), text)
        children = list(re.finditer(rf"^Got: {form} from \d+$", text, LINES))
        if len(children) != len(_FORKED.findall(text)):
            refuse(_TOOL, "not every process is there once", text)
        for place in total.groupdict():
            # Each figure is rounded by itself.
            allowed = (len(children) + 1) * Decimal("0.01")
            if abs(sum(Decimal(child[place]) for child in children) - Decimal(total[place])) > allowed:
                refuse(_TOOL, f"{total[place]} is not the sum over the processes", text)
        if form is _DATA:
            return [Measurement("data.bandwidth", positive(_TOOL, "the bandwidth", total["first"], text))]
        return [
            Measurement("sign.operations_per_second", positive(_TOOL, "the rate of signing", total["first"], text)),
            Measurement("verify.operations_per_second", positive(_TOOL, "of verifying", total["second"], text)),
        ]

    @classmethod
    def duration_s(cls, params: Params) -> float:
        """The run time, twice for RSA: openssl stops by its clock."""
        return float(params.runtime_s * (2 if params.algorithm.startswith(_RSA) else 1))
