"""libvirt's daemon and its log daemon, for one test: they see folders of their own and touch nothing of the host's."""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tare.bench.process import find_tool

_USER = "libvirt-qemu"
_DEADLINE_S = 20.0

# Mounts are private to the daemons. QEMU, which they start, finds the test's folders where they are.
_SCRIPT = """
set -e
for folder in /run/libvirt /etc/libvirt /var/lib /var/cache /var/log; do
    mkdir -p "$folder"
    mount -t tmpfs tmpfs "$folder"
done
mkdir -p /var/lib/libvirt /var/cache/libvirt /var/log/libvirt/qemu
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/group" /etc/group
"$2" --pid-file "$1/virtlogd.pid" & echo $! >"$1/virtlogd"
exec "$3" --config "$1/libvirtd.conf" --pid-file "$1/libvirtd.pid"
"""


def find_daemons() -> tuple[Path, Path] | None:
    """virtlogd and libvirtd, if both are installed."""
    log, main = find_tool("virtlogd"), find_tool("libvirtd")
    return None if log is None or main is None else (log, main)


@contextlib.contextmanager
def start_daemons(folder: Path) -> Iterator[str]:
    """The URI of a system driver; on exit both daemons are gone. ``folder`` is empty and has a short path."""
    daemons = find_daemons()
    assert daemons is not None
    socket = folder / "libvirt-sock"
    lines = {"passwd": f"{_USER}:x:0:0::/:/bin/false\n", "group": f"{_USER}:x:0:\nlibvirt:x:0:\n"}
    for name, line in lines.items():
        (folder / name).write_text(Path("/etc", name).read_text() + line)
    settings = f'unix_sock_dir = "{folder}"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
    (folder / "libvirtd.conf").write_text(settings)
    argv = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", _SCRIPT, "sh", folder, *daemons]
    partitions = set(_find_partitions())
    with (folder / "said").open("wb") as said, subprocess.Popen(argv, stdout=said, stderr=said) as main:
        try:
            deadline = time.monotonic() + _DEADLINE_S
            while not socket.exists():
                assert main.poll() is None, (folder / "said").read_text()
                assert time.monotonic() < deadline, (folder / "said").read_text()
                time.sleep(0.02)
            yield f"qemu+unix:///system?socket={socket}"
        finally:
            main.terminate()
            main.wait(timeout=_DEADLINE_S)
            _end(int((folder / "virtlogd").read_text()))
            for partition in set(_find_partitions()) - partitions:
                with contextlib.suppress(OSError):  # another daemon's, with guests in it
                    partition.rmdir()


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll(_DEADLINE_S * 1000)
        os.close(descriptor)


def _find_partitions() -> list[Path]:
    """The cgroups that libvirt makes for all its guests, and leaves."""
    return [*Path("/sys/fs/cgroup").glob("machine"), *Path("/sys/fs/cgroup").glob("*/machine")]
