"""Requests to the kernel about links and addresses, in the network namespace of the thread that makes them.

Messages are pyroute2's, the sockets are not: those of its IPRoute belong to whichever thread first uses them, each in
that thread's namespace, and one request of it takes 5 ms where the kernel takes one.
"""

import ipaddress
import os
import socket
import struct
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NLMSG_ERROR, nlmsg
from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

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
