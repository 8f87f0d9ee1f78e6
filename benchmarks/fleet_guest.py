"""A fleet of which one host is a guest: slow, under emulation, with a kernel and a network of its own.

Run as root: ``python benchmarks/fleet_guest.py``. Two hosts: one of namespaces (``made_hosts.py``), and one that is
emulated (``tests/kvm/emulated_host.py``), whose worker reaches the user's side through QEMU's own network. Its run and
its worker are hit by ``kill -9``. Both hosts' runs have to come back, each instance measured once. Takes 5 minutes.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fleet_local import LOCKS, SUITE, wrong_with
from made_hosts import USER_ADDRESS, made_hosts, require_inside, wait_for

from tare.bench.fleet.collection import FleetManifest, HostState, load_fleet_manifest, run_folder
from tare.bench.fleet.keys import make_keys
from tare.bench.locations import cache_directory
from tare.bench.store import load_run
from tests.kvm.emulated_host import EmulatedHost, find_or_fetch_kernel, start_emulated_host

GUEST, MADE = "guest", "host0"
ADDRESS = f"tls://{USER_ADDRESS}:8786"
_CONNECT = """
set -e
modprobe virtio_net
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
mkdir -p /data/cache/images /data/state /data/work
cp -a {cache}/names {cache}/recipes /data/cache
mount --bind {cache}/images /data/cache/images
cp -a /exchange/keys /data/keys
cd /data
export TARE_STATE_DIR=/data/state TARE_WORK_DIR=/data/work TARE_CACHE_DIR=/data/cache
setsid sh -c 'until {worker}; do sleep 1; done' >/exchange/worker.log 2>&1 </dev/null &
"""


_KILL = """kill -9 $(sed -n 's/.*"pid":\\([0-9]*\\).*/\\1/p' /data/state/{lock})"""


def _is_running(folder: Path) -> bool:
    if not (folder / "fleet.json").exists():
        return False
    row = load_fleet_manifest(folder).row(GUEST)
    return row.state is HostState.RUNNING and row.done > 0


def start_worker(guest: EmulatedHost, keys: Path) -> None:
    """Connect the guest, and start its worker by hand."""
    shutil.copytree(keys / "hosts" / GUEST, guest.exchange / "keys")
    worker = [sys.executable, "-m", "tare", "fleet", "worker", ADDRESS, "--name", GUEST, "--keys", "/data/keys"]
    cache = shlex.quote(str(cache_directory()))
    guest.check("sh", "-c", _CONNECT.format(cache=cache, worker=shlex.join(worker)), timeout_s=300)


def problems(manifest: FleetManifest, folder: Path) -> Iterator[str]:
    """What is not as it has to be."""
    for row in manifest.hosts:
        yield from (f"{row.name}: {problem}" for problem in wrong_with(folder, row))
        if row.state is HostState.COLLECTED and (
            found := load_run(run_folder(folder, row)).manifest.is_host_emulated
        ) is not (row.name == GUEST):
            yield f"the run of {row.name} says that its host is {'' if found else 'not '}emulated"


def main() -> None:
    """Try, print; ends with 1 if anything was wrong."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    find_or_fetch_kernel(cache_directory())  # while there is a network
    require_inside()
    began = time.monotonic()
    with made_hosts(1) as (base, (host,)), tempfile.TemporaryDirectory(prefix="tare-guest-") as short:
        keys, folder, log = base / "keys", base / "collected", base / "log"
        list(make_keys(keys, [MADE, GUEST], 30))
        rows = [(MADE, host.address), (GUEST, "10.77.0.99")]
        hosts = "".join(f'[[host]]\nname = "{name}"\naddress = "{at}"\nstart = "hand"\n' for name, at in rows)
        (base / "hosts.toml").write_text(hosts)
        (base / "short.toml").write_text(SUITE.replace("{blocks}", "3"))
        with start_emulated_host(Path(short), cache_directory(), networked=True) as guest:
            print(f"the guest is up after {time.monotonic() - began:.0f} s", file=sys.stderr)
            argv = [sys.executable, "-m", "tare", "fleet", "run", str(base / "short.toml"), "-o", str(folder)]
            argv += ["--hosts", str(base / "hosts.toml"), "--keys", str(keys), "--address", f"{USER_ADDRESS}:8786"]
            with log.open("wb") as said:
                command = subprocess.Popen(
                    [*argv, "--wait", "10m", "--progress", "1s"],
                    env={**os.environ, "TARE_STATE_DIR": str(base / "state")},
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                )
            wait_for("the command listens", 120, lambda: b"waiting for" in log.read_bytes())
            host.start_worker(ADDRESS, "--keys", str(keys / "hosts" / MADE))
            start_worker(guest, keys)
            wait_for("the guest measures", 900, lambda: _is_running(folder) or command.poll() is not None)
            killed = [guest.run(_KILL.format(lock=lock)).code == 0 for lock in (LOCKS["run"], LOCKS["worker"])]
            code = command.wait()
            left = guest.run("cat /data/state/measuring.lock; ls /data/work /data/state/ledger").out.split()
            print(log.read_text(), (guest.exchange / "worker.log").read_text(), file=sys.stderr)
            wrong = list(problems(load_fleet_manifest(folder), folder))
        wrong += [f"exit code {code}"] * bool(code)
        wrong += [f"run and worker were hit: {killed}"] * (not all(killed))
        print(json.dumps({"seconds": round(time.monotonic() - began), "left": left, "problems": wrong}, indent=2))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
