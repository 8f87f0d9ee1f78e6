"""Hosts for trying fleets on one machine: namespaces with an address each, on a bridge that only they know.

A host has namespaces of its own for network, mounts, processes and its name, its own machine-id, and its own state,
work and configuration folders; the image cache is this machine's unless it gets one of its own. Everything lives below
one process in namespaces of its own, and ends with it. Needs root and iproute2.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tare.bench.locations import cache_directory

USER_ADDRESS = "10.77.0.1"
INSIDE = "TARE_INSIDE_MADE_HOSTS"
_FOREVER = "sleep infinity"


def require_inside() -> None:
    """Start this program again in network, mount and process namespaces of its own, unless it is there already."""
    if INSIDE in os.environ:
        return
    unshare = ["unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    done = subprocess.run(
        [*unshare, "--mount-proc", sys.executable, *sys.argv], env={**os.environ, INSIDE: "1"}, check=False
    )
    sys.exit(done.returncode)


def run(*argv: str) -> str:
    """Run a command to its end; its standard output."""
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


class MadeHost:
    """One host. ``init`` is the process that all others of it end with."""

    def __init__(self, number: int, base: Path, *, own_cache: bool = False) -> None:
        self.name = f"host{number}"
        self.address = f"10.77.0.{number + 10}"
        self.link = f"veth{number}"
        self.folder = base / self.name
        self.state, self.work = self.folder / "state", self.folder / "work"
        for folder in (self.state, self.work, self.folder / "home"):
            folder.mkdir(parents=True)
        (self.folder / "machine-id").write_text(f"{uuid.uuid5(uuid.NAMESPACE_DNS, self.name).hex}\n")
        users = Path("/etc/passwd").read_text().splitlines()
        root = f"root:x:0:0:root:{self.folder}/home:/bin/sh"
        (self.folder / "passwd").write_text(
            "\n".join([root, *(one for one in users if not one.startswith("root:"))]) + "\n"
        )
        self.environment = {
            **os.environ,
            "HOME": str(self.folder / "home"),
            "TARE_STATE_DIR": str(self.state),
            "TARE_WORK_DIR": str(self.work),
            "TARE_CACHE_DIR": str(self.folder / "cache" if own_cache else cache_directory()),
        }
        self.workers: list[subprocess.Popen[bytes]] = []
        self.init = self._start_init()
        self._connect()

    def _start_init(self) -> int:
        binds = [f"mount --bind {self.folder}/{name} /etc/{name}" for name in ("machine-id", "passwd")]
        named = " && ".join([*binds, "mount -t tmpfs tmpfs /run", f"hostname {self.name}"])
        setup = f"{named} && echo ready && {{ {_FOREVER} & wait; }}"  # a shell that waits reaps orphans
        unshare = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._outer = subprocess.Popen([*unshare, "sh", "-c", setup], stdout=subprocess.PIPE, text=True)
        assert self._outer.stdout is not None
        if self._outer.stdout.readline() != "ready\n":
            raise RuntimeError(f"{self.name} did not start")
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        return int(children[0])

    def _connect(self) -> None:
        run("ip", "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", str(self.init))
        run("ip", "link", "set", self.link, "master", "fleet0", "up")
        inside = ["nsenter", "-t", str(self.init), "-n", "ip"]
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "addr", "add", f"{self.address}/24", "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")

    def entering(self, *argv: str) -> list[str]:
        """The command line that runs ``argv`` on the host."""
        return ["nsenter", "-t", str(self.init), "-n", "-m", "-u", "-p", *argv]

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command on the host to its end."""
        return subprocess.run(self.entering(*argv), env=self.environment, check=check, capture_output=True, text=True)

    def start_worker(self, address: str, *options: str) -> None:
        """Start a worker as a service manager would: again whenever it is killed."""
        worker = [sys.executable, "-m", "tare", "fleet", "worker", address, "--name", self.name, *options]
        command = f"until {shlex.join(worker)}; do sleep 0.2; done"
        log = (self.folder / "worker.log").open("ab")
        argv = self.entering("sh", "-c", command)
        self.workers.append(
            subprocess.Popen(argv, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        )
        log.close()

    def start_sshd(self, key: Path) -> str:
        """Start the host's own sshd, which lets in who has the private ``key``; its line for ``known_hosts``."""
        folder = self.folder / "ssh"
        folder.mkdir()
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host"))
        folders = " ".join(
            f"{name}={self.environment[name]}" for name in ("TARE_STATE_DIR", "TARE_WORK_DIR", "TARE_CACHE_DIR")
        )
        lines = [
            f"HostKey {folder}/host",
            f"AuthorizedKeysFile {key}.pub",
            "StrictModes no",
            "UsePAM no",
            "PermitRootLogin yes",
            "PidFile none",
            "Subsystem sftp internal-sftp",
            f"SetEnv {folders}",
        ]
        (folder / "config").write_text("\n".join(lines) + "\n")
        self.run("mkdir", "/run/sshd")
        log = (self.folder / "sshd.log").open("ab")
        argv = self.entering("/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "config"))
        self.workers.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        log.close()
        kind, public, *_ = (folder / "host.pub").read_text().split()
        return f"{self.address} {kind} {public}"

    def pid_in(self, file: str) -> int | None:
        """The process that a lock file of tare's on this host names, by its number there."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            return int(json.loads((self.state / file).read_bytes())["pid"])
        return None

    def kill(self, file: str) -> bool:
        """``kill -9`` the process that a lock file names; whether there was one."""
        pid = self.pid_in(file)
        return pid is not None and self.run("kill", "-9", str(pid), check=False).returncode == 0

    def cut(self) -> None:
        """Take the host off the network."""
        run("ip", "link", "set", self.link, "down")

    def mend(self) -> None:
        """Put it back."""
        run("ip", "link", "set", self.link, "up")

    def processes(self) -> list[str]:
        """What runs on the host, its first process left out."""
        listed = self.run("ps", "-eo", "pid=,args=").stdout.splitlines()
        ours = ("1 sh -c mount", "ps -eo pid=,args=", _FOREVER, "sshd")
        return [line.strip() for line in listed if not any(one in line for one in ours)]

    def end(self) -> None:
        """End it, with all that runs on it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.init, signal.SIGKILL)
        self._outer.wait()
        for worker in self.workers:
            worker.wait()


@contextlib.contextmanager
def made_hosts(count: int, *, own_cache: Sequence[int] = ()) -> Iterator[tuple[Path, list[MadeHost]]]:
    """A folder and hosts with addresses on one bridge; all of it is gone afterwards."""
    base = Path(tempfile.mkdtemp(prefix="tare-fleet-", dir="/var/tmp"))
    hosts: list[MadeHost] = []
    try:
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "fleet0", "type", "bridge")
        run("ip", "addr", "add", f"{USER_ADDRESS}/24", "dev", "fleet0")
        run("ip", "link", "set", "fleet0", "up")
        hosts.extend(MadeHost(number, base, own_cache=number in own_cache) for number in range(count))
        yield base, hosts
    finally:
        for host in hosts:
            host.end()
        run("ip", "link", "delete", "fleet0")
        shutil.rmtree(base)


def write_hosts(path: Path, hosts: Sequence[MadeHost], start: str = "hand", more: str = "") -> Path:
    """The hosts file for made hosts."""
    rows = []
    for number, host in enumerate(hosts):
        keys = {"name": host.name, "address": host.address, "start": start, "type": "ab"[number % 2]}
        rows.append("[[host]]\n" + "".join(f'{key} = "{value}"\n' for key, value in keys.items()) + more)
    path.write_text("\n".join(rows))
    return path


def wait_for(what: str, seconds: float, ready: Callable[[], object]) -> None:
    """Wait until ``ready()`` is true. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} within {seconds:g} s")
        time.sleep(0.05)
