"""What a suite may say about the ``vm`` backend."""

from typing import Literal

import msgspec


class VmOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of ``[[backend]]`` with ``name = "vm"``; the default of each is what a good operator would choose.

    ``accel``: ``kvm`` is refused where no guest boots under it; ``auto`` then emulates, and says so.
    ``stop``: ``kill`` ends QEMU at once; ``shutdown`` has the guest's init end what runs and power off first.
    """

    accel: Literal["auto", "kvm", "tcg"] = "auto"
    stop: Literal["kill", "shutdown"] = "kill"
