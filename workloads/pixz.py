"""pixz 1.0: the same format as xz, read, packed and written by threads of their own."""

from tare.workloads.corpus import Compression


class Pixz(Compression):
    """``pixz -t``: beside the threads that pack one reads and one writes, so that more is handed over."""

    name = "pixz"
    summary = "compression: pixz packs or unpacks a generated corpus, one thread a CPU"
    packages = ("pixz", "python3")
    licence = "BSD-2-Clause"

    def compressor(self, preset: int, threads: int, block_bytes: int, dictionary_bytes: float) -> tuple[str, ...]:
        """With blocks as pixz states them: as a multiple of the dictionary."""
        return ("pixz", f"-{preset}", "-t", "-p", str(threads), "-f", f"{block_bytes / dictionary_bytes:.6f}")

    def decompressor(self, threads: int) -> tuple[str, ...]:
        """With the checksum verified."""
        return ("pixz", "-d", "-t", "-p", str(threads))
