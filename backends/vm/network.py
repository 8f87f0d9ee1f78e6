"""What guests are connected to: taps on a bridge of tare's, or QEMU's own user-mode stack; both in tare's namespace.

QEMU is started by a thread that is in the namespace, and stays there. So a guest reaches no network of the host's by
either way, and nothing of it is left once QEMU and this process are gone.
"""

import contextlib
from collections.abc import Iterator

import msgspec

from tare.backends.network.bridge import GATEWAY, BridgeNetwork, require_tap, start_network, why_no_vhost
from tare.backends.vm.domain_xml import Interface
from tare.backends.vm.options import Network
from tare.bench.catalogue import ConfoundCode
from tare.bench.errors import UnavailableError
from tare.bench.model import Availability, Confound
from tare.bench.network_path import ServerPlace, describe_paths

_USER_SUBNET = ("10.0.2.0", 24)
_USER_GATEWAY = "10.0.2.2"
_USER_ADDRESS = "10.0.2.15"
"""What QEMU's user-mode stack has and gives by itself; every guest has these, as each has a stack of its own."""
_USER_MAC = "52:54:00:9d:ff:ff"
_INSIDE = "the guest's lo"
_DEVICE = "virtio-net, 1 queue, MTU 1500, checksum and segmentation offloads on"


class GuestPort(msgspec.Struct, frozen=True):
    """What one guest is connected by.

    ``kernel_arguments`` give its init an address; others reach it there if ``address`` is set.
    """

    interface: Interface
    kernel_arguments: tuple[str, ...]
    address: str | None


class GuestNetwork:
    """The network of a backend's guests. Made by ``start_guest_network``.

    ``bridge`` is what there is of it on the host: all ports are on it, and its own address is that of the host's side.
    ``without_vhost`` is why the kernel does not move the packets of taps by itself, empty if it does.
    """

    def __init__(self, kind: Network, bridge: BridgeNetwork, without_vhost: str) -> None:
        self.kind = kind
        self.bridge = bridge
        self.without_vhost = without_vhost

    @contextlib.contextmanager
    def start_port(self) -> Iterator[GuestPort]:
        """A port for one guest, which has to be gone by the exit. Raises BackendError."""
        if self.kind is Network.USER:
            address = f"tare.net={_USER_ADDRESS}/{_USER_SUBNET[1]}"
            yield GuestPort(Interface(_USER_MAC, subnet=_USER_SUBNET), (address, f"tare.gateway={_USER_GATEWAY}"), None)
            return
        with self.bridge.start_tap() as tap:
            interface = Interface(tap.mac, tap=tap.name, vhost=not self.without_vhost)
            yield GuestPort(interface, (tap.kernel_argument,), tap.address)

    def facts(self) -> dict[str, str]:
        """What it is, and what lies between the ends."""
        if self.kind is Network.USER:
            way = f"virtio-net, QEMU's user-mode stack (slirp), {GATEWAY} in a network namespace of tare's"
            return {
                "network": "lo, and QEMU's user-mode stack (slirp) in a network namespace of tare's",
                "network_device": _DEVICE,
                **describe_paths(inside=_INSIDE, host=way),
            }
        mover = f"QEMU ({self.without_vhost})" if self.without_vhost else "vhost"
        end = f"virtio-net, {'QEMU' if self.without_vhost else 'vhost'}, tap"
        back = ", ".join(reversed(end.split(", ")))
        return {
            "network": "lo, and a tap on a bridge in a network namespace of tare's",
            "network_device": _DEVICE,
            "packets_moved_by": mover,
            **describe_paths(inside=_INSIDE, other=f"{end}, bridge, {back}", host=f"{end}, bridge"),
        }

    def confounds(self, backend: str) -> Iterator[Confound]:
        """What of it may explain a difference."""
        if self.kind is Network.USER:
            text = (
                "QEMU's user-mode stack takes its connections apart and makes them again; bare metal has the host's lo"
            )
            yield Confound(ConfoundCode.OWN_NETWORK, text, backend)
            return
        text = "its network is virtio-net, a tap and a bridge that tare made; bare metal has the host's"
        yield Confound(ConfoundCode.OWN_NETWORK, text, backend)
        if self.without_vhost:
            yield Confound(
                "no-vhost",
                "QEMU itself moves each packet between the guest and its tap; where guests are deployed the kernel "
                f"mostly does (vhost-net), which is not here: {self.without_vhost}",
                backend,
            )


def no_network_facts() -> dict[str, str]:
    """The facts of guests without a network."""
    return {"network": "lo only", **describe_paths(inside=_INSIDE)}


def check_server(network: Network, place: ServerPlace) -> None:
    """Raises ValueError where a guest with ``network`` has no way to a server in ``place``."""
    if place is ServerPlace.SAME_INSTANCE or network is Network.TAP:
        return
    if network is Network.NONE:
        raise ValueError(f'network: "{Network.NONE}" reaches nothing outside; "{Network.TAP}" does')
    if place is ServerPlace.OTHER_INSTANCE:
        raise ValueError(
            f'network: "{Network.USER}" lets a guest reach the host\'s side, and nobody reach the guest; '
            f'"{Network.TAP}" does'
        )


def probe_network(network: Network) -> Availability:
    """Whether this host has what ``network`` needs before a namespace can be tried."""
    if network is Network.TAP:
        try:
            require_tap()
        except UnavailableError as error:
            return Availability.no(error.message, error.remedy)
        return Availability(available=True, reason=_vhost_words(why_no_vhost()))
    return Availability(available=True, reason="")


def _vhost_words(absent: str) -> str:
    return f"without vhost: {absent}" if absent else "vhost too"


@contextlib.contextmanager
def start_guest_network(network: Network) -> Iterator[GuestNetwork | None]:
    """What guests with ``network`` are to be connected to, if to anything. Raises UnavailableError."""
    if network is Network.NONE:
        yield None
        return
    with start_network(network) as bridge:
        yield GuestNetwork(network, bridge, why_no_vhost())
