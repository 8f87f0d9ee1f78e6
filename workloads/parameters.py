"""Types of parameters that several workloads take, each with the constraint that refuses a wrong value by its key."""

from typing import Annotated

from msgspec import Meta

from tare.bench.units import format_size, parse_size

Size = Annotated[
    str,
    Meta(
        pattern=r"^[1-9][0-9]*(\.[0-9]+)?(([KMGT]i)?B)?$",
        description="a size in bytes or with an IEC prefix, such as 4KiB or 64MiB",
    ),
]
"""A size as written in a suite; ``tare.bench.units.parse_size`` reads it."""

WholeSeconds = Annotated[int, Meta(ge=1, le=3600, description="seconds; the tool takes whole ones only")]
Seconds = Annotated[float, Meta(ge=0.1, le=3600.0, description="seconds")]

Port = Annotated[int, Meta(ge=1024, le=65535)]

START_MARGIN_S = 60.0
"""What a command may take beyond its run time before it is killed: an emulated guest starts programs slowly."""


READY_WITHIN_S = 120.0
"""How long a server may take to answer: a database starts in seconds, and ten times slower in an emulated guest."""


SHARE_FOR_DATA = 5 / 6
"""How much of the scratch folder data may fill: a file system of 64 MiB keeps 15 % for itself (ext4)."""


def bounded_size(key: str, text: str, least: int, most: int) -> int:
    """Bytes of the size parameter ``key``. Raises ValueError that names the key if it is out of bounds."""
    value = parse_size(text)
    if not least <= value <= most:
        raise ValueError(f"{key}: {text} is not between {format_size(least)} and {format_size(most)}")
    return value
