"""Which CPU models a guest can have here, as libvirt says."""

import difflib
import xml.etree.ElementTree as ET
from collections.abc import Mapping

from tare.backends.vm.hypervisors import Accelerator
from tare.bench.errors import UnavailableError


def parse_cpu_models(capabilities: str) -> Mapping[str, bool]:
    """The modes and models in what ``virDomainGetDomainCapabilities`` returns, and whether each can be had."""
    cpu = ET.fromstring(capabilities).find("cpu")  # noqa: S314 - it is libvirt's own
    if cpu is None:
        return {}
    found = {mode.get("name", ""): mode.get("supported") == "yes" for mode in cpu.findall("mode")}
    del found["custom"]
    models = {model.text or "": model.get("usable") == "yes" for model in cpu.findall("mode[@name='custom']/model")}
    return {**models, **found}


def require_cpu_model(model: str, accelerator: Accelerator, capabilities: str) -> None:
    """Raises UnavailableError, with the key and the names that come close, if guests cannot have ``model``."""
    known = parse_cpu_models(capabilities)
    if known.get(model):
        return
    usable = sorted(name for name, can in known.items() if can)
    close = difflib.get_close_matches(model, usable, n=5, cutoff=0.5) or usable
    why = "lacks features that this host cannot give" if model in known else "is not known to libvirt"
    if model in {"host-passthrough", "maximum", "host-model"}:
        why = "is not possible"
    raise UnavailableError(
        f"options.cpu_model: {model} {why} under {accelerator}", remedy=f"choose one of: auto, {', '.join(close)}"
    )
