"""Tap devices (``/dev/net/tun``): made, and looked for, in the network namespace of the calling thread.

Sources: Linux's Documentation/networking/tuntap.rst and include/uapi/linux/{if_tun,vhost}.h.
"""

import errno
import fcntl
import os
import socket
import struct
from pathlib import Path

from tare.bench.errors import UnavailableError

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
