"""The network of containers with a veth pair: a network namespace of tare's own, with a bridge that all are ports of.

Nothing here touches the host's own network. The namespace belongs to one thread and a few descriptors of this
process, so it is gone when they are, also after a kill, and all its links with it: nothing to enter in the ledger. A
container's pair goes with the container's namespace, which the kernel takes apart after its last process, outside
what a stop waits for; deleting a link takes tens of milliseconds.

Messages are pyroute2's, the sockets are not: those of its IPRoute belong to whichever thread first uses them, each in
that thread's namespace, and one request of it takes 5 ms where the kernel takes one.
"""

import contextlib
import errno
import ipaddress
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NLMSG_ERROR, nlmsg
from pyroute2.netlink.rtnl import RTM_NEWADDR, RTM_NEWLINK
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from backends.native import syscalls
from bench.errors import BackendError, UnavailableError

Result = TypeVar("Result")

SUBNET = ipaddress.IPv4Network("10.157.0.0/16")
"""Where instances have their addresses. Nobody outside sees it, so it may be in use on the host's own network."""
GATEWAY = str(SUBNET[1])
"""The address of tare's own namespace."""
LINK = "eth0"
"""What the pair's end is called inside."""
MOST_INSTANCES = 1023
"""The ports that a bridge can have (BR_MAX_PORTS of the kernel)."""
_BRIDGE = "tare0"
_NEW = NLM_F_CREATE | NLM_F_EXCL
_IFF_UP = 1
_ERROR = struct.Struct("=IHHIIi")
"""``struct nlmsghdr`` and the error number that follows it."""


class VethNetwork:
    """A bridge in a namespace of its own. Made by ``start_network``."""

    def __init__(self, worker: ThreadPoolExecutor) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self._next = 2
        self._used: set[str] = set()
        self._namespace = -1
        self._requests: _Netlink | None = None
        self._bridge = 0

    @contextlib.contextmanager
    def start_port(self, pid: int) -> Iterator[str]:
        """Connect the network namespace of the process ``pid`` to the bridge; the address it has from now on.

        On exit the address may be given to another; the links are gone with the process. Raises BackendError.
        """
        address = self._take_address()
        try:
            try:
                self.run_inside(lambda: self._attach(pid, address))
            except OSError as error:
                if error.errno == errno.EXFULL:
                    raise BackendError(
                        f"no more than {MOST_INSTANCES} instances with network = veth can live at once",
                        remedy="a bridge has no more ports; use network = none for more",
                    ) from error
                raise BackendError(
                    f"could not connect the instance to its network: {error.strerror}",
                    remedy="see that the kernel has veth (modprobe veth); `dmesg` may tell more",
                ) from error
            yield address
        finally:
            with self._lock:
                self._used.discard(address)

    def run_inside(self, function: Callable[[], Result]) -> Result:
        """Call ``function`` in the thread that is in the namespace: a socket made there belongs to it."""
        return self._worker.submit(function).result()

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

    def enter(self) -> None:
        """Make the namespace and its bridge; called once, in the thread. Raises OSError."""
        syscalls.unshare(syscalls.CLONE_NEWNET)
        self._namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._requests = requests = _Netlink()
        requests.ask(RTM_NEWLINK, _link(index=socket.if_nametoindex("lo"), up=True))
        requests.ask(RTM_NEWLINK, _link(_BRIDGE, kind="bridge", up=True), _NEW)
        self._bridge = socket.if_nametoindex(_BRIDGE)
        requests.ask(RTM_NEWADDR, _address(self._bridge, GATEWAY), _NEW)

    def leave(self) -> None:
        """Close what holds the namespace, beside the thread."""
        if self._requests is not None:
            self._requests.close()
            self._requests = None
        if self._namespace >= 0:
            os.close(self._namespace)
            self._namespace = -1

    def _attach(self, pid: int, address: str) -> None:
        assert self._requests is not None
        name = "veth" + "-".join(address.split(".")[2:])
        theirs = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            peer = {"attrs": [["IFLA_IFNAME", LINK], ["IFLA_NET_NS_FD", theirs]]}
            pair = _link(name, kind="veth", data={"attrs": [["VETH_INFO_PEER", peer]]}, master=self._bridge, up=True)
            self._requests.ask(RTM_NEWLINK, pair, _NEW)
            syscalls.setns(theirs, syscalls.CLONE_NEWNET)
            try:
                index, inside = socket.if_nametoindex(LINK), _Netlink()
            finally:
                syscalls.setns(self._namespace, syscalls.CLONE_NEWNET)
        finally:
            os.close(theirs)
        with contextlib.closing(inside):
            inside.ask(RTM_NEWADDR, _address(index, address), _NEW)
            inside.ask(RTM_NEWLINK, _link(index=index, up=True))


@contextlib.contextmanager
def start_network() -> Iterator[VethNetwork]:
    """The namespace and its bridge. Raises UnavailableError where the kernel or our privileges do not allow it."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tare-network") as worker:
        network = VethNetwork(worker)
        try:
            try:
                network.run_inside(network.enter)
            except OSError as error:
                raise UnavailableError(
                    f"network = veth needs a network namespace with a bridge, which was refused: {error.strerror}",
                    remedy="modprobe bridge and veth, and run tare as root; or use network = none",
                ) from error
            yield network
        finally:
            network.leave()


class _Netlink:
    """A route socket in the namespace of the thread that makes it; each request waits for the kernel's answer."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._sequence = 0

    def ask(self, kind: int, message: nlmsg, flags: int = 0) -> None:
        """Send one request. Raises OSError with what the kernel answers."""
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
        self._socket.close()


def _link(
    name: str = "",
    *,
    index: int = 0,
    kind: str = "",
    data: dict[str, Any] | None = None,
    master: int = 0,
    up: bool = False,
) -> ifinfmsg:
    message = ifinfmsg()
    message["index"] = index
    if up:
        message["flags"] = message["change"] = _IFF_UP
    attributes: list[list[Any]] = [["IFLA_IFNAME", name]] if name else []
    if master:
        attributes.append(["IFLA_MASTER", master])
    if kind:
        details = [["IFLA_INFO_KIND", kind], *([["IFLA_INFO_DATA", data]] if data else [])]
        attributes.append(["IFLA_LINKINFO", {"attrs": details}])
    message["attrs"] = attributes
    return message


def _address(index: int, address: str) -> ifaddrmsg:
    message = ifaddrmsg()
    message["family"] = socket.AF_INET
    message["prefixlen"] = SUBNET.prefixlen
    message["index"] = index
    message["attrs"] = [["IFA_LOCAL", address], ["IFA_ADDRESS", address], ["IFA_BROADCAST", str(SUBNET[-1])]]
    return message
