"""What instances that boot the image's whole distribution have in common, guests and containers."""

TARGET = "multi-user.target"
PACKAGES = ("dbus", "systemd-sysv", "udev")
"""What an image needs for it."""
MASKED_UNITS = (
    *("mariadb.service", "nginx.service", "postgresql.service", "redis-server.service"),
    *("timers.target", "e2scrub_reap.service", "serial-getty@ttyS0.service", "qemu-guest-agent.service"),
)
"""What the image's packages brought for workloads, which start it themselves; what would begin in the middle of a
measurement; what would share a guest's console or the port of its agent. bench/image/guest/system.c has the same."""
