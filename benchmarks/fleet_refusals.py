"""A fleet whose hosts are each wrong in their own way: what tare says of each, and that the others go on.

Run as root: ``python benchmarks/fleet_refusals.py``. Hosts are namespaces (``made_hosts.py``) reached over SSH; two are
as they should be. For each of the others the row of the fleet has to name what is wrong and what to do, the two right
ones have to come back, and nothing may be left on any. Needs iproute2 and openssh-server.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from fleet_local import SUITE
from made_hosts import USER_ADDRESS, MadeHost, made_hosts, require_inside, run, wait_for

from tare.bench.fleet.collection import HostState, load_fleet_manifest
from tare.bench.fleet.keys import _authority, _issue  # which sign also what has expired

TARE = f"{sys.executable} -m tare"
EXPECTED_CODE = 8
LATE = """
import datetime

class Later(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(hours=5)

datetime.datetime = Later
"""
"""A clock that is five hours ahead, for a Python that finds this as its ``sitecustomize``."""


class Wrong(NamedTuple):
    """A host that is wrong: what its row has to say, and what its table in the hosts file has."""

    state: HostState
    says: str
    keys: Mapping[str, Any] = MappingProxyType({})
    make: Callable[[MadeHost, Path], None] = lambda _host, _base: None


def _old(host: MadeHost, _base: Path) -> None:
    folder = host.folder / "instead" / "tarebench-0.1.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: tarebench\nVersion: 0.1\n")


def _late(host: MadeHost, _base: Path) -> None:
    (host.folder / "instead").mkdir()
    (host.folder / "instead" / "sitecustomize.py").write_text(LATE)


def _full(host: MadeHost, _base: Path) -> None:
    host.run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(host.state))


def _brimful(host: MadeHost, _base: Path) -> None:
    _full(host, _base)
    host.run("sh", "-c", f"head -c 8m /dev/zero > {host.state}/filled", check=False)


def _mute(host: MadeHost, _base: Path) -> None:
    host.run("ip", "route", "add", "blackhole", USER_ADDRESS)  # what is sent to it is never answered


def _measuring(host: MadeHost, base: Path) -> None:
    """Let a run of somebody else measure on the host."""
    suite = base / "other.toml"
    suite.write_text(SUITE.replace("{blocks}", "500"))
    argv = host.entering(sys.executable, "-m", "tare", "run", str(suite), "-o", str(host.folder / "other"))
    log = (host.folder / "other.log").open("wb")
    host.workers.append(subprocess.Popen(argv, env=host.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
    log.close()
    wait_for("a run of somebody else measures", 120, lambda: host.pid_in("measuring.lock"))


def _expire(name: str, base: Path) -> None:
    certificate, key = _authority(base / "keys" / "authorities" / "hosts", "", 1)
    _issue(base / "keys" / "hosts" / name, name, certificate, key, 0)


_INSTEAD = {"tare": "env PYTHONPATH={folder}/instead " + TARE}
WRONG: dict[str, Wrong] = {
    "no-name": Wrong(HostState.SILENT, "no-such-host.invalid", {"address": "no-such-host.invalid"}),
    "no-sshd": Wrong(HostState.SILENT, "Connection refused"),
    "no-route": Wrong(HostState.SILENT, "No route to host.*check address", {"address": "10.77.0.250"}),
    "mute": Wrong(HostState.SILENT, "no answer.*is it up, and is its address right", {}, _mute),
    "stranger": Wrong(HostState.SILENT, "its host key is not known"),
    "denied": Wrong(HostState.SILENT, "was refused.*check user and key", {"key": "other-key"}),
    "no-tare": Wrong(HostState.SILENT, "there is no `/nowhere/tare`.*install tare there", {"tare": "/nowhere/tare"}),
    "old": Wrong(
        HostState.REFUSED,
        "tare 0.1 .*is installed there.*Install the same version",
        _INSTEAD,
        _old,
    ),
    "no-root": Wrong(
        HostState.REFUSED,
        "backends that work on the other hosts.*root.*tare doctor",
        {"tare": f"unshare --user --map-user=1000 {TARE}"},
    ),
    "full": Wrong(HostState.REFUSED, "there is no space in.*Make 1 GiB of room", {}, _full),
    "brimful": Wrong(HostState.SILENT, "No space left on device", {}, _brimful),
    "clock": Wrong(HostState.REFUSED, "its clock is 5.0 hours ahead.*Set the clocks", _INSTEAD, _late),
    "expired": Wrong(HostState.SILENT, "certificate of expired expired on.*tare fleet keys"),
    "measuring": Wrong(HostState.FAILED, "another run measures there.*wait until it has ended", {}, _measuring),
    "twofold": Wrong(HostState.SILENT, "worker of another fleet works here.*wait until that fleet has ended"),
}
RIGHT = ("right-1", "right-2")


def write_hosts_file(path: Path, base: Path, hosts: dict[str, MadeHost]) -> None:
    """The hosts file: what is wrong with each stands in its table."""
    lines = [f'[ssh]\nuser = "root"\nknown_hosts = "{base}/known_hosts"\n']
    for name, host in hosts.items():
        keys = {"address": host.address, "tare": TARE, "key": "ssh-key"} | (WRONG[name].keys if name in WRONG else {})
        keys = {**keys, "key": f"{base}/{keys['key']}", "tare": keys["tare"].format(folder=host.folder)}
        lines.append(f'[[host]]\nname = "{name}"\n' + "".join(f'{key} = "{value}"\n' for key, value in keys.items()))
    path.write_text("\n".join(lines))


class Fleet:
    """One fleet of made hosts, and the command that conducts it."""

    def __init__(self, base: Path, name: str, hosts: dict[str, MadeHost], port: int, blocks: int) -> None:
        self.folder, self.log = base / f"collected-{name}", base / f"{name}.log"
        suite, file = base / f"{name}.toml", base / f"{name}-hosts.toml"
        suite.write_text(SUITE.replace("{blocks}", str(blocks)))
        write_hosts_file(file, base, hosts)
        environment = {**os.environ, "TARE_STATE_DIR": str(base / "state"), "TARE_WORK_DIR": str(base / "work")}
        argv = [sys.executable, "-m", "tare", "fleet", "run", str(suite), "-o", str(self.folder), "--hosts", str(file)]
        argv += ["--keys", str(base / "keys"), "--address", f"{USER_ADDRESS}:{port}", "--progress", "1s"]
        with self.log.open("wb") as log:
            self.command = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def is_running(self, name: str) -> bool:
        """Whether the run of a host has begun."""
        with_manifest = (self.folder / "fleet.json").exists()
        return with_manifest and load_fleet_manifest(self.folder).row(name).state is HostState.RUNNING


def _problems(fleet: Fleet, hosts: dict[str, MadeHost], code: int) -> Iterator[str]:
    if code != EXPECTED_CODE:
        yield f"exit code {code}, not {EXPECTED_CODE}"
    manifest = load_fleet_manifest(fleet.folder)
    for name in hosts:
        row = manifest.row(name)
        state, says = (WRONG[name].state, WRONG[name].says) if name in WRONG else (HostState.COLLECTED, r"\Z")
        if row.state is not state or not re.match(f".*(?:{says})" if name in WRONG else says, row.reason, re.DOTALL):
            yield f"{name} is {row.state}: {row.reason!r}, not {state}: {says!r}"
    if "Traceback" in fleet.log.read_text():
        yield "a traceback"


def _left(name: str, host: MadeHost) -> Iterator[str]:
    """What a host still has of the fleet that it should not."""
    if name in {"measuring", "twofold"}:
        return
    try:
        wait_for("nothing runs any more", 60, lambda: not host.processes())
    except TimeoutError:
        yield f"{name}: still runs: {host.processes()}"
    listed = host.run("find", str(host.state), str(host.work), "-mindepth", "1", check=False).stdout.split()
    if name not in RIGHT and (
        left := [one for one in listed if not one.endswith((".lock", "worker.log", "filled", "/fleet", "/ledger"))]
    ):
        yield f"{name}: left: {left}"


def prepare(base: Path, made: Sequence[MadeHost], chosen: Sequence[str]) -> dict[str, MadeHost]:
    """The hosts by name, each with what is wrong with it."""
    for key in ("ssh-key", "other-key"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(base / key))
    hosts = dict(zip((*RIGHT, *chosen), made, strict=True))
    known = []
    for name, host in hosts.items():
        if name != "no-sshd":
            line = host.start_sshd(base / "ssh-key")
            known += [line] * (name != "stranger")
    (base / "known_hosts").write_text("".join(f"{line}\n" for line in known))
    write_hosts_file(base / "hosts.toml", base, hosts)
    run(sys.executable, "-m", "tare", "fleet", "keys", "--hosts", str(base / "hosts.toml"), "-o", str(base / "keys"))
    for name, host in hosts.items():
        if name in WRONG:
            WRONG[name].make(host, base)
    if "expired" in hosts:
        _expire("expired", base)
    return hosts


def main() -> None:
    """Parse the command line, try, print; ends with 1 if anything was not said as it has to be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(WRONG), help="what is wrong, separated by commas")
    asked = parser.parse_args()
    chosen = asked.only.split(",")
    if unknown := set(chosen) - set(WRONG):
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(WRONG)}")
    require_inside()
    with made_hosts(len(RIGHT) + len(chosen)) as (base, made):
        hosts = prepare(base, made, chosen)
        other = None
        if "twofold" in hosts:
            other = Fleet(base, "other", {"twofold": hosts["twofold"]}, 8787, 500)
            wait_for("another fleet measures", 120, lambda: other.is_running("twofold"))
        began = time.monotonic()
        fleet = Fleet(base, "fleet", hosts, 8786, 4)
        code = fleet.command.wait(timeout=600)
        problems = list(_problems(fleet, hosts, code))
        for name, host in hosts.items():
            problems += _left(name, host)
        if other is not None and not (other.command.poll() is None and other.is_running("twofold")):
            problems.append("the other fleet did not go on")
        print(fleet.log.read_text(), file=sys.stderr)
        print(
            json.dumps(
                {"hosts": len(hosts), "seconds": round(time.monotonic() - began, 1), "problems": problems}, indent=2
            )
        )
        if other is not None:
            other.command.terminate()
            other.command.wait()
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
