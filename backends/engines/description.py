"""What a report says of an engine: its facts, and what it does not have of the profile and the envelope."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tare.backends.cgroups.layout import Layout, Version
from tare.backends.cgroups.limits import Limits, limit_confounds, outer_confounds
from tare.backends.engines.box import Network
from tare.bench.catalogue import ConfoundCode
from tare.bench.model import BackendDescription, Confound, named_facts
from tare.bench.network_path import PATHS_OF_BRIDGE, PATHS_OF_HOST, PATHS_OF_OWN_LO

if TYPE_CHECKING:
    from tare.backends.engines.core import Engine

_NETWORKS = {
    Network.NONE: "lo only",
    Network.HOST: "the host's",
    Network.BRIDGE: "lo, and a veth pair into the engine's bridge",
}
_PATHS = {
    Network.NONE: PATHS_OF_OWN_LO,
    Network.HOST: PATHS_OF_HOST,
    Network.BRIDGE: PATHS_OF_BRIDGE,
}
_OWN_NETWORK = {
    Network.NONE: "its network namespace holds lo only; bare metal has the host's",
    Network.BRIDGE: "its network is a veth pair and a bridge that the engine made; bare metal has the host's",
}


def describe(
    engine: "Engine", limits: Limits, layout: Layout, unenforced: Mapping[str, str], library: str
) -> BackendDescription:
    """An engine that was prepared; ``limits`` are asked for, ``library`` is the C library of tare's program."""
    asked = [name for name in limits if name != "io_device" and name not in unenforced]
    by_engine = [name for name in asked if name in engine.engine_limits]
    by_tare = [name for name in asked if name not in engine.engine_limits]
    network = engine.options.network
    facts = {
        "engine": engine.version(),
        "init": f"tare's ({library})",
        "root": "overlay of tare's" if engine.overlay else "the engine's own store",
        **({"image layers": str(engine.options.layers)} if engine.options.layers > 1 else {}),
        "network": _NETWORKS[network],
        **_PATHS[network],
        "cgroups": layout.version.value,
        "controllers": ",".join(sorted(layout.granted())),
        "limits set by the engine": ",".join(by_engine) or "none",
        "limits set by tare": ",".join(by_tare) or "none",
        **engine.facts(),
    }
    confounds = [
        *layout.confounds(engine.name, layout.granted(), waits_for_all=engine.waits_for_all),
        *limit_confounds(engine.name, limits, unenforced, layout.version),
        *outer_confounds(engine.name, limits["memory_bytes"], layout),
        *([Confound(ConfoundCode.OWN_NETWORK, _OWN_NETWORK[network], engine.name)] if network in _OWN_NETWORK else []),
        *engine.confounds(),
    ]
    if limits.get("io_device") is None and layout.version is not Version.V2:
        confounds.append(Confound(ConfoundCode.IO_UNACCOUNTED, "the work folder lies on no block device", engine.name))
    return BackendDescription(engine.name, engine.isolation(), "", named_facts(facts), tuple(confounds))
