"""The JSON schema of what a run's folder holds, made from the types that write it."""

from typing import Any

import msgspec

from tare.bench.records import SCHEMA_VERSION, Event, HistogramRecord, Manifest, Sample

FILES = {"manifest.json": Manifest, "samples.jsonl": Sample, "histograms.jsonl": HistogramRecord, "events.jsonl": Event}
"""The files of a run that hold records, and the type of each record: one a file, or one a line."""


def run_schema() -> dict[str, Any]:
    """A schema of draft 2020-12 with a definition for each file. Fields that later versions add are allowed."""
    schemas, defs = msgspec.json.schema_components(FILES.values(), ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Folder of a run of tare, schema version {SCHEMA_VERSION}",
        "properties": dict(zip(FILES, schemas, strict=True)),
        "$defs": defs,
    }
