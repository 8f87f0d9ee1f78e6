"""Connections per second: nginx and wrk, with a connection of its own for each small request."""

from typing import Annotated

import msgspec
from msgspec import Meta

from tare.bench.model import Category, Commands, Completed, Envelope, Measurement
from tare.workloads.metrics import rate_of
from tare.workloads.nginx import Nginx
from tare.workloads.parameters import TimedWorkload, WholeSeconds

_NGINX = Nginx()


class NginxConnections(TimedWorkload):
    """How fast TCP connections are made and taken down: the handshake, one request of a few bytes, the end.

    The server closes, so that what waits after the end (TIME_WAIT) is on its side.
    """

    name = "nginx-connections"
    summary = "new TCP connections: each carries one small request, by a number of clients at a time"
    packages = Nginx.packages
    licence = Nginx.licence
    category = Category.NETWORK
    metrics = (
        rate_of(
            "connections.per_second",
            "Connections that were made, had their request answered and were closed, in a second.",
        ),
    )

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``clients`` is how many connections there are at a time."""

        clients: Annotated[int, Meta(ge=1, le=1000)] = 10
        runtime_s: WholeSeconds = 1

    def commands(self, params: Params, envelope: Envelope) -> Commands:
        """Those of nginx with a page of 64 bytes, and connections that are not kept."""
        chosen = Nginx.Params(connections=params.clients, keep_alive=False, page_size="64B", runtime_s=params.runtime_s)
        return _NGINX.commands(chosen, envelope)

    def parse(self, completed: Completed) -> list[Measurement]:
        """The rate of requests, as each had its own connection."""
        rates = {one.metric: one.value for one in _NGINX.parse(completed)}
        return [Measurement("connections.per_second", rates["http.requests_per_second"])]
