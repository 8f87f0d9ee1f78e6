"""A network namespace of tare's own, with a bridge that instances are ports of: containers by veth, guests by tap.

Nothing here touches the host's own network. The namespace belongs to threads and a few descriptors of this process, so
it is gone when they are, also after a kill, and all its links with it: nothing to enter in the ledger. A container's
pair goes with the container's namespace, which the kernel takes apart after its last process, and a guest's tap is
deleted in a thread of its own: both outside what a stop waits for, as deleting a link takes tens of milliseconds.

Messages to the kernel about links and addresses are pyroute2's, the sockets are not: those of its IPRoute belong to
whichever thread first uses them, each in that thread's namespace, and one request of it takes 5 ms where the kernel
takes one. Taps: Linux's Documentation/networking/tuntap.rst and include/uapi/linux/{if_tun,vhost}.h.
"""

import contextlib
import errno
import fcntl
import ipaddress
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NLMSG_ERROR, nlmsg
from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from tare.backends.native import syscalls
from tare.bench.errors import BackendError, UnavailableError

TUN = Path("/dev/net/tun")
VHOST = Path("/dev/vhost-net")
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_VHOST_SET_OWNER = 0xAF01
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_TUN_EXCL = 0x8000
_REQUEST = struct.Struct("16sH22x")
"""``struct ifreq`` with flags."""


def make_tap(name: str) -> int:
    """A tap device that stays until it is deleted; its index. Raises OSError: EBUSY where a device has the name.

    With the header of virtio-net, so that large segments and checksums are handed on as they are.
    """
    descriptor = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
        fcntl.ioctl(descriptor, _TUNSETIFF, _REQUEST.pack(name.encode(), flags))
        fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
    finally:
        os.close(descriptor)
    return socket.if_nametoindex(name)


def require_tap(tun: Path = TUN) -> None:
    """Raises UnavailableError where this host has no tap devices, or none for us."""
    try:
        os.close(os.open(tun, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        absent = error.errno in {errno.ENOENT, errno.ENODEV, errno.ENXIO}
        make = f"modprobe tun; if {tun} is missing then: mkdir -p {tun.parent} && mknod {tun} c 10 200"
        raise UnavailableError(
            f'network = "tap" needs {tun}, which {"is not here" if absent else "was refused"}: {error.strerror}',
            remedy=make if absent else "run tare as root; in a container, have the device allowed",
        ) from error


def why_no_vhost(device: Path = VHOST) -> str:
    """Why the kernel cannot move a guest's packets by itself here (vhost-net); empty if it can."""
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, _VHOST_SET_OWNER)
        finally:
            os.close(descriptor)
    except OSError as error:
        return f"{device}: {error.strerror}"
    return ""


_NEW = NLM_F_CREATE | NLM_F_EXCL
_IFF_UP = 1
_ERROR = struct.Struct("=IHHIIi")
"""``struct nlmsghdr`` and the error number that follows it."""


class Netlink:
    """A route socket in the namespace of the thread that makes it; each request waits for the kernel's answer.

    All methods raise OSError with what the kernel answers.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._sequence = 0

    def add_link(
        self, name: str, kind: str, *, data: dict[str, Any] | None = None, master: int = 0, mac: str = ""
    ) -> None:
        """Make a link of ``kind``, and bring it up.

        A port of the bridge with the index ``master`` if that is not 0; with the hardware address ``mac`` if given.
        """
        self._ask(RTM_NEWLINK, _link(name, kind=kind, data=data, master=master, mac=mac, up=True), _NEW)

    def set_link(self, index: int, *, master: int = 0, up: bool = True) -> None:
        """Change what is given of a link that is there."""
        self._ask(RTM_NEWLINK, _link(index=index, master=master, up=up))

    def delete_link(self, index: int) -> None:
        """Remove a link; this takes the kernel tens of milliseconds."""
        self._ask(RTM_DELLINK, _link(index=index))

    def add_address(self, index: int, address: str, subnet: ipaddress.IPv4Network) -> None:
        """Give a link an address of ``subnet``."""
        message = ifaddrmsg()
        message["family"] = socket.AF_INET
        message["prefixlen"] = subnet.prefixlen
        message["index"] = index
        message["attrs"] = [["IFA_LOCAL", address], ["IFA_ADDRESS", address], ["IFA_BROADCAST", str(subnet[-1])]]
        self._ask(RTM_NEWADDR, message, _NEW)

    def _ask(self, kind: int, message: nlmsg, flags: int = 0) -> None:
        self._sequence += 1
        message["header"] = {
            "type": kind,
            "flags": NLM_F_REQUEST | NLM_F_ACK | flags,
            "sequence_number": self._sequence,
            "pid": 0,
        }
        message.encode()
        self._socket.send(message.data)
        while True:
            _, answer, _, sequence, _, number = _ERROR.unpack_from(self._socket.recv(65536))
            if answer == NLMSG_ERROR and sequence == self._sequence:
                break
        if number:
            raise OSError(-number, os.strerror(-number))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _link(
    name: str = "",
    *,
    index: int = 0,
    kind: str = "",
    data: dict[str, Any] | None = None,
    master: int = 0,
    mac: str = "",
    up: bool = False,
) -> ifinfmsg:
    message = ifinfmsg()
    message["index"] = index
    if up:
        message["flags"] = message["change"] = _IFF_UP
    attributes: list[list[Any]] = [["IFLA_IFNAME", name]] if name else []
    if master:
        attributes.append(["IFLA_MASTER", master])
    if mac:
        attributes.append(["IFLA_ADDRESS", mac])
    if kind:
        details = [["IFLA_INFO_KIND", kind], *([["IFLA_INFO_DATA", data]] if data else [])]
        attributes.append(["IFLA_LINKINFO", {"attrs": details}])
    message["attrs"] = attributes
    return message


Result = TypeVar("Result")

SUBNET = ipaddress.IPv4Network("10.157.0.0/16")
"""Where instances have their addresses. Nobody outside sees it, so it may be in use on the host's own network."""
GATEWAY = str(SUBNET[1])
"""The address of tare's own namespace, which is the bridge's."""
LINK = "eth0"
"""What the pair's end is called inside a container."""
MOST_INSTANCES = 1023
"""The ports that a bridge can have (BR_MAX_PORTS of the kernel)."""
_BRIDGE = "tare0"
_TAKEN = frozenset({errno.EEXIST, errno.EBUSY})


class Tap(msgspec.Struct, frozen=True):
    """A port for a guest: ``name`` of the device in tare's namespace, what the guest's interface is to have."""

    name: str
    address: str
    mac: str

    @property
    def kernel_argument(self) -> str:
        """The kernel argument that gives the guest's init its address."""
        return f"tare.net={self.address}/{SUBNET.prefixlen}"


@contextlib.contextmanager
def inside_network(namespace: int) -> Iterator[None]:
    """Have the calling thread in an open network namespace meanwhile, and the processes that it starts for good."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(namespace, syscalls.CLONE_NEWNET)
        try:
            yield
        finally:
            syscalls.setns(own, syscalls.CLONE_NEWNET)
    finally:
        os.close(own)


class BridgeNetwork:
    """A bridge in a namespace of its own, in which ``address`` is that of tare. Made by ``start_network``."""

    address = GATEWAY

    def __init__(self, worker: ThreadPoolExecutor, remover: ThreadPoolExecutor) -> None:
        self._worker = worker
        self._remover = remover
        self._lock = threading.Lock()
        self._next = 2
        self._used: set[str] = set()
        self._namespace = -1
        self._requests: Netlink | None = None
        self._bridge = 0

    @contextlib.contextmanager
    def start_port(self, pid: int) -> Iterator[str]:
        """Connect the network namespace of the process ``pid`` to the bridge; the address it has from now on.

        On exit the address may be given to another; the links are gone with the process. Raises BackendError.
        """
        address = self._take_address()
        try:
            with _port_errors("veth"):
                self.run_inside(lambda: self._attach(pid, address))
            yield address
        finally:
            self._let_go(address)

    @contextlib.contextmanager
    def start_tap(self) -> Iterator[Tap]:
        """A tap device on the bridge, for a QEMU that opens it ``inside``; it is deleted soon after the exit.

        Raises BackendError.
        """
        address = self._take_address()
        tap = Tap(_name("tap", address), address, _mac(address))
        index = 0
        try:
            with _port_errors("tap"):
                index = self.run_inside(lambda: self._add_tap(tap.name))
            yield tap
        finally:
            if index:
                self._remover.submit(self._remove, index, address)
            else:
                self._let_go(address)

    def run_inside(self, function: Callable[[], Result]) -> Result:
        """Call ``function`` in the thread that is in the namespace: a socket made there belongs to it."""
        return self._worker.submit(function).result()

    def inside(self) -> contextlib.AbstractContextManager[None]:
        """Have the calling thread in the namespace meanwhile, and the processes that it starts for good."""
        return inside_network(self._namespace)

    def _take_address(self) -> str:
        with self._lock:
            # Counting on, so that an address comes again only long after the kernel has let go of its last link.
            for number in range(self._next, self._next + SUBNET.num_addresses):
                offset = 2 + (number - 2) % (SUBNET.num_addresses - 3)
                address = str(SUBNET[offset])
                if address not in self._used:
                    self._next = offset + 1
                    self._used.add(address)
                    return address
        raise BackendError(f"every address of {SUBNET} is in use")

    def _let_go(self, address: str) -> None:
        with self._lock:
            self._used.discard(address)

    def enter(self) -> None:
        """Make the namespace and its bridge; called once, in the thread. Raises OSError."""
        syscalls.unshare(syscalls.CLONE_NEWNET)
        self._namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._requests = requests = Netlink()
        requests.set_link(socket.if_nametoindex("lo"))
        # Without an address of its own it takes on another whenever the port with the lowest comes or goes, and whoever
        # has resolved the old one talks to nobody for up to a minute.
        requests.add_link(_BRIDGE, "bridge", mac=_mac(GATEWAY))
        self._bridge = socket.if_nametoindex(_BRIDGE)
        requests.add_address(self._bridge, GATEWAY, SUBNET)

    def leave(self) -> None:
        """Close the descriptors that hold the namespace; its threads hold it too."""
        if self._requests is not None:
            self._requests.close()
            self._requests = None
        if self._namespace >= 0:
            os.close(self._namespace)
            self._namespace = -1

    def _attach(self, pid: int, address: str) -> None:
        assert self._requests is not None
        theirs = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            peer = {"attrs": [["IFLA_IFNAME", LINK], ["IFLA_NET_NS_FD", theirs]]}
            ends = {"attrs": [["VETH_INFO_PEER", peer]]}
            self._requests.add_link(_name("veth", address), "veth", data=ends, master=self._bridge)
            syscalls.setns(theirs, syscalls.CLONE_NEWNET)
            try:
                index, inside = socket.if_nametoindex(LINK), Netlink()
            finally:
                syscalls.setns(self._namespace, syscalls.CLONE_NEWNET)
        finally:
            os.close(theirs)
        with contextlib.closing(inside):
            inside.add_address(index, address, SUBNET)
            inside.set_link(index)

    def _add_tap(self, name: str) -> int:
        assert self._requests is not None
        index = make_tap(name)
        try:
            self._requests.set_link(index, master=self._bridge)
        except OSError:
            self._requests.delete_link(index)
            raise
        return index

    def _remove(self, index: int, address: str) -> None:
        with self.inside(), contextlib.closing(Netlink()) as requests, contextlib.suppress(OSError):
            requests.delete_link(index)
        self._let_go(address)


@contextlib.contextmanager
def start_network(option: str) -> Iterator[BridgeNetwork]:
    """The namespace and its bridge, for who chose ``network = OPTION``.

    Raises UnavailableError where the kernel or our privileges do not allow it.
    """
    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="tare-network"))
        network = BridgeNetwork(worker, ThreadPoolExecutor(1, thread_name_prefix="tare-network-removal"))
        stack.callback(network.leave)
        stack.callback(network._remover.shutdown)  # noqa: SLF001 - its maker
        try:
            network.run_inside(network.enter)
        except OSError as error:
            absent = error.errno == errno.EOPNOTSUPP
            reason = "this kernel has no bridges" if absent else f"which was refused: {error.strerror}"
            raise UnavailableError(
                f'network = "{option}" needs a network namespace with a bridge: {reason}',
                remedy=f'{"modprobe bridge" if absent else "run tare as root"}; or use network = "none"',
            ) from error
        yield network


def _name(kind: str, address: str) -> str:
    return kind + "-".join(address.split(".")[2:])


def _mac(address: str) -> str:
    """In QEMU's range, and its own as long as the address is."""
    third, fourth = (int(part) for part in address.split(".")[2:])
    return f"52:54:00:9d:{third:02x}:{fourth:02x}"


@contextlib.contextmanager
def _port_errors(kind: str) -> Iterator[None]:
    """What can go wrong with a new port, in words. Raises BackendError."""
    try:
        yield
    except OSError as error:
        if error.errno in _TAKEN:
            raise BackendError(
                f"could not connect the instance to its network: its {kind} is there already ({error.strerror})",
                remedy="somebody else made a device in tare's network namespace; start the run again",
            ) from error
        if error.errno == errno.EXFULL:
            raise BackendError(
                f'no more than {MOST_INSTANCES} instances with network = "{kind}" can live at once',
                remedy='a bridge has no more ports; use network = "none" for more',
            ) from error
        module = "tun" if kind == "tap" else kind
        reason = f"this kernel has no {kind}" if error.errno == errno.EOPNOTSUPP else error.strerror
        raise BackendError(
            f"could not connect the instance to its network: {reason}",
            remedy=f"see that the kernel has {kind} (modprobe {module}); `dmesg` may say more",
        ) from error
