"""Why a ramp ended."""

import msgspec

from tare.bench.catalogue import StopReason
from tare.bench.errors import TareError
from tare.bench.experiments.density_exhausted import find_exhausted


class Stop(msgspec.Struct, frozen=True):
    """The end of a ramp. ``resource`` is what ran out, and is empty where nothing did or nobody can tell."""

    reason: StopReason
    message: str
    resource: str = ""
    remedy: str = ""
    evidence: str = ""


def failed(error: TareError | OSError, population: int) -> Stop:
    """A ramp that ended because something failed, with what ran out where that can be told."""
    message = error.message if isinstance(error, TareError) else f"{type(error).__name__}: {error}"
    exhausted = find_exhausted(error)
    remedy = getattr(error, "remedy", None) or ""
    return Stop(
        StopReason.FAILURE,
        f"after {population} instances: {message}",
        resource="" if exhausted is None else exhausted.resource,
        remedy=remedy if exhausted is None else exhausted.remedy,
        evidence=getattr(error, "evidence", ""),
    )
