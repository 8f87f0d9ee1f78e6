"""A pseudo-terminal inside an instance. Standard library only, because init uses it."""

import fcntl
import os
import struct
import termios

from tare.backends.native.wire import Channel

_TIOCSPTLCK = 0x40045431
_TIOCGPTN = 0x80045430
"""Neither has a name in ``termios``."""


def give_terminal(channel: Channel, size: bytes) -> tuple[str, int]:
    """Allocate a terminal of the instance's own devpts and send its master side; its path, and its other side open.

    ``size`` is a ``struct winsize``. Raises OSError.
    """
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("=i", 0))
        (number,) = struct.unpack("=I", fcntl.ioctl(master, _TIOCGPTN, bytes(4)))
        fcntl.ioctl(master, termios.TIOCSWINSZ, size)
        path = f"/dev/pts/{number}"
        other = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        channel.send(b"terminal", descriptors=(master,))
    finally:
        os.close(master)
    return path, other
