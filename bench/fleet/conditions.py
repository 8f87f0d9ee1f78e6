"""Whether the hosts of a fleet measure under the same conditions: what differs is listed, what must not is refused."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime

import msgspec

from tare.bench.fleet.collection import ConditionDifference
from tare.bench.readable import readable

CLOCK_TOLERANCE_S = 300.0
"""More than that and the times in a run say nothing, and certificates are not valid where they should be."""
NEEDED_BYTES = 2**30


class Hello(msgspec.Struct, frozen=True):
    """What a host says of itself.

    ``backends`` are those of the suite, with why one does not work there (empty: it does). ``image`` is the digest of
    the image of the suite there, empty if there is none. ``conditions`` are facts of the host and what ``tare doctor``
    found, as text. ``free`` is by folder, in bytes.
    """

    version: str
    commit: str
    python: str
    utc: str
    architecture: str
    fingerprint: str
    backends: Mapping[str, str] = {}
    image: str = ""
    conditions: Mapping[str, str] = {}
    free: Mapping[str, int] = {}
    cpus: int = 0


def refuse_alone(hello: Hello, here: Hello, elapsed_s: float) -> str:
    """Why a host cannot take part whatever the others are, or empty. ``here`` is the user's side.

    ``elapsed_s`` is how long ago it answered, at most.
    """
    if (hello.version, hello.commit) != (here.version, here.commit):
        there, ours = f"{hello.version} {hello.commit}".strip(), f"{here.version} {here.commit}".strip()
        return f"tare {readable(there)} is installed there, and {ours} here. Install the same version on all hosts."
    if hello.python.split(".")[:2] != here.python.split(".")[:2]:
        return (
            f"tare runs on Python {readable(hello.python)} there, and on {here.python} here. "
            "Install it there with the same Python."
        )
    if problem := _clock(hello.utc, here.utc, elapsed_s):
        return problem
    full = [f"{folder} ({size / 2**30:.1f} GiB free)" for folder, size in hello.free.items() if size < NEEDED_BYTES]
    if full:
        return f"there is no space in {readable(', '.join(full))}. Make {NEEDED_BYTES / 2**30:.0f} GiB of room."
    return ""


def refuse_together(hellos: Mapping[str, Hello]) -> dict[str, str]:
    """Why hosts cannot take part with the others, by name, in the order of the hosts file.

    What most hosts have counts: an architecture, and the backends of the suite that work.
    """
    refused: dict[str, str] = {}
    machines: dict[str, str] = {}
    usual = _most_common(hello.architecture for hello in hellos.values())
    working = Counter(name for hello in hellos.values() for name, why in hello.backends.items() if not why)
    for name, hello in hellos.items():
        first = machines.setdefault(hello.fingerprint, name) if hello.fingerprint else name
        lacking = {one: why for one, why in hello.backends.items() if why and working[one] * 2 > len(hellos)}
        if first != name:
            refused[name] = f"is the same machine as {first}: it would measure two runs at once. Leave one out."
        elif hello.architecture != usual:
            refused[name] = f"is {readable(hello.architecture)}, and most hosts are {usual}. Leave it out."
        elif lacking:
            listed = "; ".join(f"{one}: {readable(why)}" for one, why in lacking.items())
            refused[name] = (
                f"backends that work on the other hosts do not work there: {listed}. See `tare doctor` there."
            )
    return refused


def find_differences(hellos: Mapping[str, Hello]) -> tuple[ConditionDifference, ...]:
    """The conditions in which hosts differ, with who has what."""
    values: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    names = dict.fromkeys(condition for hello in hellos.values() for condition in hello.conditions)
    for condition in names:
        for host, hello in hellos.items():
            values[condition][hello.conditions.get(condition, "not recorded")].append(host)
    return tuple(
        ConditionDifference(condition, {value: tuple(hosts) for value, hosts in by_value.items()})
        for condition, by_value in values.items()
        if len(by_value) > 1
    )


def choose_image(hellos: Mapping[str, Hello]) -> str:
    """The image that most hosts have for the suite; empty if none has one."""
    return _most_common(hello.image for hello in hellos.values() if hello.image)


def _most_common(values: Iterable[str]) -> str:
    """The most frequent value, of several the first; empty if there is none."""
    return next((value for value, _ in Counter(values).most_common(1)), "")


def _clock(theirs: str, ours: str, elapsed_s: float) -> str:
    try:
        ahead = (datetime.fromisoformat(theirs) - datetime.fromisoformat(ours)).total_seconds()
    except (ValueError, TypeError):
        return f"its clock says {readable(theirs)!r}, which is no time"
    if abs(ahead) <= CLOCK_TOLERANCE_S + elapsed_s:
        return ""
    hours = f"{abs(ahead) / 3600:.1f} hours" if abs(ahead) >= 3600 else f"{abs(ahead) / 60:.0f} minutes"
    direction = "ahead of" if ahead > 0 else "behind"
    return f"its clock is {hours} {direction} this machine's. Set the clocks, for example with chrony."
