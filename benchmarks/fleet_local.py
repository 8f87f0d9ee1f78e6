"""A fleet on one machine: hosts that are made for it, a short suite, and what befalls them at random.

Run as root: ``python benchmarks/fleet_local.py [--hosts 8] [--combinations 5] [--faults worker,run] [--seed 1]``.
Hosts are namespaces (``made_hosts.py``) whose workers are started again when they are killed. Each combination draws
from: ``worker`` and ``run`` (``kill -9`` of it on a host), ``scheduler`` (of the command, which is then resumed),
``cut`` (a host without network for 30 s), ``silent`` (a host that never answers). Then every host that answered has to
have one complete run, here and verified, in which each planned instance is done exactly once, and nothing may be left.
With ``--image`` one host has no image, and is sent that of the others.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from made_hosts import USER_ADDRESS, MadeHost, made_hosts, require_inside, run, wait_for, write_hosts

from tare.bench.fleet.collection import FleetManifest, HostRow, HostState, load_fleet_manifest, run_folder
from tare.bench.records import EventKind, RunStatus
from tare.bench.store import attempt_of, load_run

CUT_S = 30.0
LOCKS = {"worker": "fleet/worker.lock", "run": "measuring.lock"}
"""The lock file that names the process of a host which a fault kills."""
FAULTS = ("worker", "run", "scheduler", "cut", "silent")
SUITE = """
[suite]
name = "short"
[envelope]
memory = "64MiB"
scratch = "16MiB"
[sampling]
blocks = {blocks}
iterations = 1
warmup = 0
prime = false
[[backend]]
type = "bare-metal"
[[backend]]
type = "native"
[[workload]]
name = "nap"
command = ["sh", "-c", "sleep 0.2"]
[[workload.metric]]
name = "time"
direction = "lower"
description = "The whole command."
exit_time = true
[[experiment]]
kind = "steady"
workload = "nap"
"""


class LocalFleet:
    """One fleet over made hosts, and the command that conducts it."""

    def __init__(
        self,
        base: Path,
        hosts: list[MadeHost],
        blocks: int,
        silent: set[str],
        *,
        ssh: bool,
        suite: str = SUITE,
        progress: str = "1s",
        pinned: tuple[str, ...] = (),
    ) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="fleet-", dir=base))
        self.hosts, self.silent = hosts, silent
        self.folder = self.base / "collected"
        self.log = self.base / "log"
        self._suite = self.base / "short.toml"
        self._suite.write_text(suite.replace("{blocks}", str(blocks)))
        self._progress, self._pinned = progress, pinned
        more = f'user = "root"\nkey = "{base}/ssh-key"\ntare = "{sys.executable} -m tare"\n' if ssh else ""
        self._file = write_hosts(self.base / "hosts.toml", hosts, "ssh" if ssh else "hand", more)
        if ssh:
            known = f'\n[ssh]\nknown_hosts = "{base}/known_hosts"\n'
            self._file.write_text(self._file.read_text() + known)
        self._keys = base / "keys"
        self._environment = {**os.environ, "TARE_STATE_DIR": str(base / "state"), "TARE_WORK_DIR": str(base / "work")}
        self.tare("fleet", "keys", "--hosts", str(self._file), "-o", str(self._keys))
        for host in hosts:
            if host.name not in silent and not ssh:
                host.start_worker(self.address, "--keys", str(self._keys / "hosts" / host.name))
        self.command = self._start(str(self._suite), "-o", str(self.folder))

    address = f"tls://{USER_ADDRESS}:8786"

    def tare(self, *arguments: str) -> None:
        """Run a command of tare's on the user's side."""
        subprocess.run(
            [sys.executable, "-m", "tare", *arguments], env=self._environment, check=True, capture_output=True
        )

    def _start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        argv = [*self._pinned, sys.executable, "-m", "tare", "fleet", "run", *arguments, "--hosts", str(self._file)]
        argv += [
            "--keys",
            str(self._keys),
            "--address",
            f"{USER_ADDRESS}:8786",
            "--wait",
            "90s",
            "--progress",
            self._progress,
        ]
        with self.log.open("ab") as log:
            return subprocess.Popen(argv, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill_and_resume(self) -> None:
        """``kill -9`` of the scheduler, and the command that takes up what the hosts have."""
        self.command.kill()
        self.command.wait()
        self.command = self._start("--resume", str(self.folder))

    def manifest(self) -> FleetManifest | None:
        """How the fleet stands; None before it has begun."""
        return load_fleet_manifest(self.folder) if (self.folder / "fleet.json").exists() else None

    def is_running(self) -> bool:
        """Whether a run has begun. Raises RuntimeError if the command has ended."""
        if self.command.poll() is not None:
            raise RuntimeError(f"the fleet ended early: {self.log.read_text()[-2000:]}")
        found = self.manifest()
        return found is not None and any(row.state is HostState.RUNNING for row in found.hosts)

    def problems(self) -> Iterator[str]:
        """What is not as it has to be, once the command has ended."""
        found = self.manifest()
        assert found is not None
        for host in self.hosts:
            row = found.row(host.name)
            if host.name in self.silent:
                if row.state is not HostState.SILENT:
                    yield f"{host.name} never answered, and is {row.state}"
                continue
            yield from (f"{host.name}: {problem}" for problem in wrong_with(self.folder, row))
            yield from (f"{host.name}: {problem}" for problem in _left(host))


def wrong_with(folder: Path, row: HostRow) -> Iterator[str]:
    """What is not as it has to be in the run of a host: complete, each instance done once, samples of each once."""
    if row.state is not HostState.COLLECTED:
        yield f"is {row.state}: {row.reason}"
        return
    run = load_run(run_folder(folder, row))
    done = Counter(attempt_of(one.instance)[0] for one in run.events if one.kind is EventKind.INSTANCE_DONE)
    if run.manifest.status is not RunStatus.COMPLETE or len(done) != run.manifest.planned_instances:
        planned = run.manifest.planned_instances
        yield f"its run is {run.manifest.status}, {len(done)} of {planned} instances are done"
    if twice := [name for name, count in done.items() if count > 1]:
        yield f"measured twice: {twice}"
    values = Counter(run.samples.count_by("instance"))
    if len(values) != len(done) or len(set(values.values())) != 1:
        yield f"samples are missing or there twice: {dict(values)}"


def _left(host: MadeHost) -> Iterator[str]:
    """What a host still has of the fleet that it should not."""
    try:
        wait_for("nothing runs any more", 60, lambda: not host.processes())
    except TimeoutError:
        yield f"still runs: {host.processes()}"
    if host.pid_in("measuring.lock") is not None:
        yield "its lock still names a run"
    for folder in (host.work, host.state / "ledger"):
        if folder.exists() and any(folder.iterdir()):
            yield f"left in {folder.name}: {[one.name for one in folder.iterdir()]}"


def draw(
    rng: random.Random, fleet_hosts: list[MadeHost], kinds: tuple[str, ...]
) -> tuple[list[tuple[float, str, MadeHost]], set[str]]:
    """The faults of one combination, when after the first run began and to whom; and the hosts that stay silent."""
    shuffled = rng.sample(fleet_hosts, len(fleet_hosts))
    silent = {shuffled.pop().name} if "silent" in kinds and rng.random() < 0.5 and len(shuffled) > 1 else set()
    active = [kind for kind in kinds if kind != "silent"]
    count = rng.randint(1, max(1, min(len(active) + 1, 5))) if active else 0
    drawn = [(rng.uniform(0, 10), rng.choice(active), rng.choice(shuffled)) for _ in range(count)]
    return sorted(drawn, key=lambda one: one[0]), silent


def combination(
    base: Path,
    hosts: list[MadeHost],
    faults: list[tuple[float, str, MadeHost]],
    silent: set[str],
    asked: argparse.Namespace,
) -> dict[str, Any]:
    """One fleet with its faults; what came of it."""
    began = time.monotonic()
    fleet = LocalFleet(base, hosts, asked.blocks, silent, ssh=asked.ssh)
    wait_for("a run begins", 400, fleet.is_running)
    running = time.monotonic()
    befell = [(at, kind, host.name, *_do(fleet, kind, host)) for at, kind, host in _timed(faults, running)]
    deadline = time.monotonic() + 900
    for *_, undo in befell:
        if undo is not None:
            undo()
    try:
        code: int | None = fleet.command.wait(timeout=max(1.0, deadline - time.monotonic()))
        problems = list(fleet.problems())
    except subprocess.TimeoutExpired:
        code, problems = None, ["the command did not end"]
        fleet.command.kill()
        fleet.command.wait()
    expected = 8 if silent else 0
    if code != expected:
        problems.append(f"exit code {code}, not {expected}")
    return {
        "faults": [[round(at, 1), kind, name, hit] for at, kind, name, hit, _ in befell],
        "silent": sorted(silent),
        "seconds": round(time.monotonic() - began, 1),
        "problems": problems,
        "log": fleet.log.read_text()[-3000:] if problems else "",
    }


def _timed(faults: list[tuple[float, str, MadeHost]], began: float) -> Iterator[tuple[float, str, MadeHost]]:
    for at, kind, host in faults:
        time.sleep(max(0.0, began + at - time.monotonic()))
        yield at, kind, host


def _do(fleet: LocalFleet, kind: str, host: MadeHost) -> tuple[bool, Callable[[], None] | None]:
    """Let a fault happen. Returns whether there was something that it could happen to, and what ends it if it lasts."""
    if kind == "scheduler":
        fleet.kill_and_resume()
    elif kind in LOCKS:
        return host.kill(LOCKS[kind]), None
    else:
        host.cut()
        mend_at = time.monotonic() + CUT_S

        def mend() -> None:
            time.sleep(max(0.0, mend_at - time.monotonic()))
            host.mend()

        return True, mend
    return True, None


def parse_faults(text: str, hosts: list[MadeHost]) -> list[tuple[float, str, MadeHost]]:
    """Faults that are stated as ``KIND:HOST:SECONDS``, separated by commas; a host by its number."""
    parts = [one.split(":") for one in text.split(",")]
    return sorted(((float(at), kind, hosts[int(host)]) for kind, host, at in parts), key=lambda one: one[0])


def main() -> None:
    """Parse the command line, try, print; ends with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=8)
    parser.add_argument("--combinations", type=int, default=5)
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--exactly", help="KIND:HOST:SECONDS,... after the first run began, instead of drawn ones")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ssh", action="store_true", help="workers are started over SSH, by the sshd of each host")
    parser.add_argument("--image", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    kinds = tuple(filter(None, asked.faults.split(",")))
    if unknown := set(kinds) - set(FAULTS):
        parser.error(f"there is no fault {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    require_inside()
    results = []
    with made_hosts(asked.hosts, own_cache=(asked.hosts - 1,) if asked.image else ()) as (base, hosts):
        if asked.ssh:
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(base / "ssh-key"))
            (base / "known_hosts").write_text("".join(f"{host.start_sshd(base / 'ssh-key')}\n" for host in hosts))
        for number in range(asked.combinations):
            faults, silent = draw(random.Random(f"{asked.seed}/{number}"), hosts, kinds)
            if asked.exactly:
                faults, silent = parse_faults(asked.exactly, hosts), set()
            result = combination(base, hosts, faults, silent, asked)
            results.append({"combination": number, **result})
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    failed = [result for result in results if result["problems"]]
    summary = {"hosts": asked.hosts, "seed": asked.seed, "combinations": results, "failed": len(failed)}
    print(
        json.dumps(summary, indent=2)
        if asked.json
        else f"{len(results) - len(failed)} of {len(results)} combinations as they have to be"
    )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
