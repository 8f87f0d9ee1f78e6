"""What a suite may choose about a container: each field is a dimension of the comparison."""

from enum import StrEnum

import msgspec

from tare.backends.layers import Layers


class Seccomp(StrEnum):
    """The system-call filter: equal in intent to Docker's default, or none."""

    DEFAULT = "default"
    NONE = "none"


class Capabilities(StrEnum):
    """The capabilities a container keeps: those that Docker grants, or none."""

    DEFAULT = "default"
    NONE = "none"


class Upper(StrEnum):
    """Where the writable layer of the root lies: on the suite's storage, or in memory."""

    DISK = "disk"
    TMPFS = "tmpfs"


class Network(StrEnum):
    """``none``: lo only. ``host``: the host's own. ``veth``: a pair into a namespace that tare made."""

    NONE = "none"
    HOST = "host"
    VETH = "veth"


class Profile(StrEnum):
    """What runs in a container beside what it is asked to: nothing, or the image's whole Debian with systemd."""

    MINIMAL = "minimal"
    FULL = "full"


class NativeOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[backend.options]`` of ``native``.

    ``profile`` is what is booted before the container is ready. ``boot_offset_s`` is how far the boot clock inside is
    ahead of the host's, in whole seconds; it needs ``time_namespace``. ``layers`` are those of the image below the
    writable one.
    """

    seccomp: Seccomp = Seccomp.DEFAULT
    capabilities: Capabilities = Capabilities.DEFAULT
    user_namespace: bool = False
    time_namespace: bool = False
    boot_offset_s: int = 0
    upper: Upper = Upper.DISK
    network: Network = Network.NONE
    profile: Profile = Profile.MINIMAL
    layers: Layers = 1

    def __post_init__(self) -> None:
        if self.profile is Profile.FULL and (self.user_namespace or self.capabilities is Capabilities.NONE):
            raise ValueError('profile = "full" needs user_namespace = false and capabilities = "default", for systemd')
        if self.boot_offset_s and not self.time_namespace:
            raise ValueError("boot_offset_s needs time_namespace = true")
        if self.user_namespace and self.network is Network.HOST:
            # Nor does Docker: /sys can be mounted only by who owns the network namespace that it shows.
            raise ValueError('user_namespace = true cannot have network = "host"')
