"""What workloads with a server share: ports, and how the client finds out that the server answers."""

from typing import Annotated

from msgspec import Meta

from bench.model import Command

Port = Annotated[int, Meta(ge=1024, le=65535)]

READY_WITHIN_S = 30.0
"""How long a server may take to answer: an emulated guest starts programs slowly."""

_ATTEMPTS = " ".join(str(number) for number in range(20))
_UNTIL = f'for _ in {_ATTEMPTS}; do "$@" >/dev/null 2>&1 && exit; sleep 0.05; done; exec "$@"'


def answers(*argv: str, timeout_s: float = 15.0) -> Command:
    """Ends with 0 as soon as ``argv`` does, which it tries for about a second; what the last one says is its failure.

    For ``Service.ready``, together with ``ready_within_s``. A port that nobody listens on yet refuses at once, so there
    is nothing to wait for but the next attempt.
    """
    return Command(("sh", "-c", _UNTIL, "sh", *argv), timeout_s=timeout_s)
