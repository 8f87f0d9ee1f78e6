"""The samples as Parquet: one flat table for the reader's own tools."""

from pathlib import Path

from tare.bench.errors import TareError
from tare.bench.interfaces import Reporter
from tare.bench.store import load_run


class ParquetReporter(Reporter):
    """Every sample, warm-ups included, a row each; ``params`` is JSON. The metadata says which run it is."""

    name = "parquet"
    summary = "every sample as one flat table (Parquet)"
    suffix = ".parquet"

    def write(self, run: Path, output: Path) -> None:
        """Write the table. Raises RunDirectoryError, TareError if the file cannot be written."""
        import msgspec
        import pyarrow as pa
        import pyarrow.parquet as pq

        from tare.reports.frames import sample_frame

        loaded = load_run(run)
        table = pa.Table.from_pandas(sample_frame(loaded), preserve_index=False)
        manifest = loaded.manifest
        labels = {name: backend.label for name, backend in manifest.backends.items()}
        about = {
            "tare.run": manifest.run,
            "tare.schema_version": str(manifest.schema_version),
            "tare.baseline": manifest.baseline,
            "tare.status": str(manifest.status),
            "tare.labels": msgspec.json.encode(labels).decode(),
        }
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **about})
        part = output.with_name(f".{output.name}.part")
        try:
            pq.write_table(table, part, compression="zstd")
            part.replace(output)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise TareError(f"cannot write {output}: {error.strerror or error}") from error
