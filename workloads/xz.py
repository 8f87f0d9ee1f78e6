"""xz 5.4: the compressor of Debian's packages, in blocks so that several threads have work."""

from tare.workloads.corpus import Compression


class Xz(Compression):
    """``xz -T``: LZMA2 is bound by memory latency when it packs and by branches when it unpacks."""

    name = "xz"
    summary = "compression: xz packs or unpacks a generated corpus, one thread a CPU"
    packages = ("xz-utils", "python3")
    licence = "0BSD"

    def compressor(self, preset: int, threads: int, block_bytes: int, dictionary_bytes: float) -> tuple[str, ...]:
        """The preset's own dictionary, which a block may be smaller than."""
        del dictionary_bytes
        return ("xz", f"-{preset}", f"-T{threads}", f"--block-size={block_bytes}", "--stdout")

    def decompressor(self, threads: int) -> tuple[str, ...]:
        """With the checksum verified."""
        return ("xz", "--decompress", f"-T{threads}", "--stdout")
