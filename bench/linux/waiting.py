"""Waiting for descriptors, of any number: ``select`` refuses those from 1024 on, which a large population has."""

import select
from collections.abc import Iterable


def is_readable(descriptor: int, within_s: float = 0.0) -> bool:
    """Whether a descriptor can be read, or its other end has gone, by the end of that time (negative: now)."""
    return bool(readable_of((descriptor,), within_s))


def readable_of(descriptors: Iterable[int], within_s: float = 0.0) -> list[int]:
    """Those that can be read, or whose other end has gone, as soon as there is one; none after that time."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(max(0.0, within_s) * 1000)]
