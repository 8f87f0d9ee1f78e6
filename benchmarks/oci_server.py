"""Answers each line on stdin with the nanoseconds that one `crun run` or `runc run` took, in a mount namespace for it.

Usage: oci_server.py BUNDLE LOWER UPPER WORK RUNTIME [MOUNT_TO_DETACH...]

crun refuses hybrid cgroups, so the v2 tree is detached here; the host keeps it. The overlay that is the
container's root is mounted once, outside the measured time, which favours the runtime.
"""

import os
import sys
import time
from pathlib import Path

from tare.backends.native import syscalls
from tare.backends.native.steps import escape_option
from tare.bench.process import DEVNULL, PIPE, Popen


def main() -> None:
    """Serve until stdin ends."""
    bundle, lower, upper, work, runtime, *detach = sys.argv[1:]
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_SLAVE)
    layers = f"lowerdir={escape_option(lower)},upperdir={escape_option(upper)},workdir={escape_option(work)}"
    syscalls.mount("overlay", f"{bundle}/rootfs", "overlay", 0, layers)
    for mount in detach:
        syscalls.umount2(mount, syscalls.MNT_DETACH)
    print("serving", flush=True)
    for number, _ in enumerate(sys.stdin):
        argv = [runtime, "--root", f"{bundle}/state", "run", "--bundle", bundle, f"tare-oci-{os.getpid()}-{number}"]
        began = time.perf_counter_ns()
        with Popen(argv, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE) as process:
            assert process.stderr is not None
            code = process.wait()
            took = time.perf_counter_ns() - began
            message = process.stderr.read().decode(errors="replace").strip()
        print(took if code == 0 else f"failed {code} {message}", flush=True)


if __name__ == "__main__":
    Path("/proc/self/comm").write_text("oci-server")
    main()
