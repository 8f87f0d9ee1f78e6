"""What lay between a workload and its server, in words, for subjects where that is part of the result."""

from tare.bench.analysis import MeasuredBackend, Subject
from tare.bench.model import Category, Manifest
from tare.bench.network_path import ServerPlace, find_path
from tare.bench.readable import one_line

_OPTION = "server"


def path_sentence(subject: Subject, manifest: Manifest, backends: list[MeasuredBackend]) -> str:
    """The path on each backend; empty where the subject has no server, or the run is older than such facts.

    A subject is told to have one by its option ``server``, or by its category.
    """
    traits = manifest.workloads.get(subject.workload)
    in_section = traits is not None and traits.category is Category.NETWORK
    if not subject.traits.of_workload or not (in_section or _OPTION in subject.params):
        return ""
    place = str(subject.params.get(_OPTION, ServerPlace.SAME_INSTANCE.value))
    known = {
        backend.label: path
        for backend in backends
        if backend.name in manifest.backends
        and (path := find_path(manifest.backends[backend.name].texts, place)) is not None
    }
    told = "; ".join(f"{one_line(label)}: {one_line(path, 200)}" for label, path in known.items())
    return f"Path to the server ({one_line(place)}): {told}." if told else ""
