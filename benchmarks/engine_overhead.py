"""What tare adds to an engine: starts, and work inside, through tare against the same engine by hand, alternated.

Run as root: ``python benchmarks/engine_overhead.py [--engines runc,crun] [--starts 20] [--workloads 0] [--json]``.
By hand is the least that a careful user does: an overlay of the image mounted in a mount namespace of its own, the
engine's command with the same arguments on the same CPU, in no cgroup but those that the engine makes; for Docker the
same request by its library, to the same daemon, without a cgroup parent. Both are timed until the first instruction
inside (by the clock of the same program) and, where it returns, until the command does.
The work is a loop that times itself, as the container's only command by hand. Printed are the medians and their
ratios; a ratio's interval is a percentile bootstrap over pairs.
"""

import argparse
import contextlib
import json
import os
import random
import secrets
import select
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tare.backends.cgroups.limits import limits_of
from tare.backends.engines.box import Box, make_folders
from tare.backends.engines.containerd import Containerd
from tare.backends.engines.core import Engine
from tare.backends.engines.docker import Docker
from tare.backends.engines.groups import Groups, JoinWatch, start_groups
from tare.backends.engines.start import HOLD, LIVE, SocketReport
from tare.backends.native import syscalls
from tare.bench.engine import StartedBy
from tare.bench.errors import UnavailableError
from tare.bench.image import ImageStore
from tare.bench.ledger import Ledger, work_folder
from tare.bench.linux.mounts import find_block_device
from tare.bench.locations import cache_directory, ledger_directory, work_directory
from tare.bench.model import SCRATCH, Command, Phase
from tare.bench.testing.subject import BackendUnderTest, find_image, load_backend, start_subject

ENGINES = ("runc", "crun", "bubblewrap", "lxc", "nspawn", "gvisor", "podman", "containerd", "docker")
OVERLAY = 'mount -t overlay overlay -o "lowerdir={lower},upperdir={here}/upper,workdir={here}/work" "{here}/root"'
RUN = 'exec taskset -c {cpus} "$@"'
HIDE = "umount -l /sys/fs/cgroup/unified 2>/dev/null"
BEFORE = {
    "crun": HIDE,
    "podman": f"{HIDE}; mount --bind {{state}}/run /run",
    "nspawn": "mount -t tmpfs tmpfs /run",
}
"""What has to be done for an engine's command on this kind of host, next to mounting its root."""
LOOP = """
import time
began = time.perf_counter_ns()
total = 0
for number in range(6_000_000):
    total += number * number
print(time.perf_counter_ns() - began)
"""
DEADLINE_S = 60.0
IN_MOVED_TO = 0x80


class Hand(NamedTuple):
    """An instance to be made by hand: the engine, what it gets to know, and how its commands are called."""

    engine: Engine
    box: Box
    ledger: Ledger

    def shell(self, *, mounted: bool) -> list[str]:
        """What stands before a command: its mounts, with the root unless it is ``mounted`` already, and the CPU."""
        places = {"lower": self.box.spec.image.rootfs, "here": self.box.folder, "state": self.engine.folder}
        steps = [BEFORE.get(self.engine.name, ":"), RUN.format(cpus=",".join(map(str, self.box.spec.envelope.cpus)))]
        if not mounted:
            steps.insert(0, OVERLAY)
        script = "\n".join(steps).format(**places)
        if isinstance(self.engine, Containerd):
            assert self.engine.daemon is not None
            return ["nsenter", f"--mount=/proc/{self.engine.daemon.pid}/ns/mnt", "sh", "-c", script, "sh"]
        return ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, "sh"]

    def command(self, inside: Sequence[str]) -> list[str]:
        """The engine's start command, with another command inside than tare's."""
        given = LIVE if not self.engine.tells_by_stream() else HOLD
        argv = list(self.engine.start_command(self.box))
        if tuple(argv[-len(given) :]) == tuple(given):
            argv[-len(given) :] = inside
        config = self.box.folder / "config.json"
        if config.exists():
            said = msgspec.json.decode(config.read_bytes())
            said["process"]["args"] = list(inside)
            if self.engine.tells_by_stream():  # runsc sets up no cgroup but the last of a path
                said["linux"]["cgroupsPath"] = f"/{self.box.groups.name}"
            config.write_bytes(msgspec.json.encode(said))
        config = self.box.folder / "lxc.conf"
        if config.exists():
            program = self.box.folder / "given/command"
            if tuple(inside) != tuple(given):
                program.write_text(inside[-1])
                inside = ("/bin/sh", "/.tare/command")
            lines = [line for line in config.read_text().splitlines() if not line.startswith("lxc.init.cmd")]
            config.write_text("\n".join([*lines, f"lxc.init.cmd = {' '.join(inside)}", ""]))
        return argv

    @contextlib.contextmanager
    def start(
        self, inside: Sequence[str], streams: tuple[int, int] | None = None
    ) -> Iterator["subprocess.Popen[bytes]"]:
        """The engine's start command; on exit the container is removed by the engine's own commands."""
        with contextlib.ExitStack() as stack:
            descriptors = []
            for content in self.engine.start_files():
                file = os.memfd_create("given")
                stack.callback(os.close, file)
                os.write(file, content)
                os.lseek(file, 0, os.SEEK_SET)
                descriptors.append(file)
            argv = [*self.shell(mounted=False), *self.command(inside)]
            for number, descriptor in enumerate(descriptors, 3):
                argv = ["sh", "-c", f'exec {number}<&{descriptor}; exec "$@"', "sh", *argv]
            if self.engine.name == "bubblewrap":  # by hand it has bubblewrap's own /dev
                at = argv.index("--dev-bind")
                argv[at : at + 3] = ["--dev", "/dev"]
            log = stack.enter_context((self.box.folder / "log").open("wb"))
            started = stack.enter_context(
                subprocess.Popen(
                    argv,
                    stdin=streams[0] if streams else subprocess.DEVNULL,
                    stdout=streams[1] if streams else log,
                    stderr=log,
                    pass_fds=descriptors,
                    env={**os.environ, **self.engine.environment()},
                )
            )
            try:
                yield started
            except BaseException:
                print((self.box.folder / "log").read_text(errors="replace"))
                raise
            finally:
                self.remove()
                if not self.engine.returns:
                    started.kill()

    def remove(self) -> None:
        """By the engine's own commands."""
        asked = self.engine.remove_command(self.box)
        commands = [asked] if asked else []
        if isinstance(self.engine, Containerd):
            commands.append([*asked[:3], "containers", "delete", self.box.identifier] if asked else [])
        for argv in commands:
            command = [*self.shell(mounted=True), *argv]
            if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # podman's first may miss the exit
        if isinstance(self.engine, Containerd):
            assert self.engine.daemon is not None
            inside = f"--mount=/proc/{self.engine.daemon.pid}/ns/mnt"
            subprocess.run(["nsenter", inside, "umount", str(self.box.root)], check=True)


@contextlib.contextmanager
def by_hand(subject: BackendUnderTest, work: Path, ledger: Ledger) -> Iterator[Hand]:
    """The folders of an instance by hand; what it leaves in cgroups is removed."""
    engine = subject.backend
    assert isinstance(engine, Engine)
    identifier = f"tare-hand-{secrets.token_hex(4)}"
    groups = Groups(
        engine.layout, identifier, at_top=engine.groups_at_top, container=engine.container_group(identifier)
    )
    limits = limits_of(subject.envelope, find_block_device(work))
    box = Box(subject.spec(identifier), work / identifier, groups, limits)
    with start_groups(ledger, groups):
        try:
            yield Hand(engine, box, ledger)
        finally:
            shutil.rmtree(box.folder, ignore_errors=True)


def start_by_tare(subject: BackendUnderTest) -> dict[str, float]:
    """Seconds of one start through tare, by end."""
    _, starting = subject.start()
    with starting as instance:
        timeline = instance.timeline
    asked = timeline.marks[Phase.REQUESTED]
    ends = {"returned": StartedBy.RETURNED, "instruction": StartedBy.INSTRUCTION}
    return {name: timeline.started[end] - asked for name, end in ends.items() if end in timeline.started}


def docker_by_hand(subject: BackendUnderTest, work: Path, ledger: Ledger) -> dict[str, float]:
    """The same by Docker's library, from its own copy of the image."""
    engine = subject.backend
    assert isinstance(engine, Docker)
    client = engine.server.starting.client
    with by_hand(subject, work, ledger) as hand, contextlib.ExitStack() as stack:
        asked = time.monotonic()
        make_folders(hand.box, engine.launcher)
        report = SocketReport(stack, hand.box.given)
        config: dict[str, Any] = engine.container(hand.box)
        del config["HostConfig"]["CgroupParent"]
        made = client.create_container_from_config(config, hand.box.identifier)["Id"]
        stack.callback(client.remove_container, made, force=True)
        client.start(made)
        returned = time.monotonic()
        started = report.hear(returned + DEADLINE_S)
        assert started is not None
        stack.callback(started.close)
        return {"returned": returned - asked, "instruction": started.first_s - asked}


def start_by_hand(subject: BackendUnderTest, work: Path, ledger: Ledger) -> dict[str, float]:
    """The same by hand."""
    engine = subject.backend
    assert isinstance(engine, Engine)
    if isinstance(engine, Docker):
        return docker_by_hand(subject, work, ledger)
    with by_hand(subject, work, ledger) as hand, contextlib.ExitStack() as stack:
        asked = time.monotonic()
        make_folders(hand.box, engine.folder / "program")
        ends: dict[str, float] = {}
        streams, inside, report = None, LIVE, None
        if engine.tells_by_stream():
            keep, told = os.pipe(), os.pipe()
            for descriptor in (*keep, *told):
                stack.callback(os.close, descriptor)
            streams, inside, ready = (keep[0], told[1]), HOLD, told[0]
        else:
            report = SocketReport(stack, hand.box.given)
            ready = report.fileno()
        with hand.start(inside, streams) as started:
            ended = os.pidfd_open(started.pid)
            stack.callback(os.close, ended)
            waited = {ready: "instruction", **({ended: "returned"} if engine.returns else {})}
            while waited:
                found, _, _ = select.select(list(waited), [], [], DEADLINE_S)
                assert found, f"{engine.name} by hand: no answer within {DEADLINE_S} s"
                for descriptor in found:
                    ends[waited.pop(descriptor)] = time.monotonic()
            if report is not None:
                said = report.hear(time.monotonic() + DEADLINE_S)
                assert said is not None
                ends["instruction"] = said.first_s
                stack.callback(said.close)
            if engine.returns:
                assert started.wait() == 0
        return {name: at_s - asked for name, at_s in ends.items()}


def work_by_tare(subject: BackendUnderTest) -> dict[str, float]:
    """Seconds of the loop in an instance of tare's."""
    _, starting = subject.start()
    with starting as instance:
        done = instance.execute(Command(("python3", "-c", LOOP)))
    return {"work": int(done.stdout) / 1e9}


def work_by_hand(subject: BackendUnderTest, work: Path, ledger: Ledger) -> dict[str, float]:
    """Seconds of the loop as a container's own command."""
    engine = subject.backend
    assert isinstance(engine, Engine)
    script = f"cd {SCRATCH}; python3 loop.py >taken; mv taken done; exec sleep 600"
    with by_hand(subject, work, ledger) as hand:
        make_folders(hand.box, engine.folder / "program")
        (hand.box.scratch / "loop.py").write_text(LOOP)
        watch = JoinWatch([hand.box.scratch], ("done",), syscalls.IN_CREATE | IN_MOVED_TO)
        with contextlib.closing(watch), hand.start(("/bin/sh", "-c", script)):
            while not watch.joined():
                assert select.select([watch], [], [], DEADLINE_S)[0], f"{engine.name} by hand did no work"
            return {"work": int((hand.box.scratch / "done").read_text()) / 1e9}


def alternate(
    first: Callable[[], dict[str, float]], second: Callable[[], dict[str, float]], pairs: int
) -> list[tuple[dict[str, float], dict[str, float]]]:
    """So many pairs, each in the other order than the last, after one that does not count."""
    found = []
    for number in range(pairs + 1):
        if number % 2:
            b, a = second(), first()
        else:
            a, b = first(), second()
        found.append((a, b))
    return found[1:]


def compare(pairs: list[tuple[float, float]]) -> dict[str, object]:
    """The medians of both and their ratio, with its interval."""
    chance = random.Random(1)

    def ratio(some: list[tuple[float, float]]) -> float:
        return statistics.median(a for a, _ in some) / statistics.median(b for _, b in some)

    resampled = sorted(ratio(chance.choices(pairs, k=len(pairs))) for _ in range(2000))
    return {
        "tare_s": statistics.median(a for a, _ in pairs),
        "hand_s": statistics.median(b for _, b in pairs),
        "ratio": ratio(pairs),
        "interval": (resampled[50], resampled[1949]),
        "pairs": len(pairs),
    }


def measure(subject: BackendUnderTest, work: Path, ledger: Ledger, starts: int, workloads: int) -> dict[str, object]:
    """What one engine's two ways took, by end."""
    pairs = alternate(lambda: start_by_tare(subject), lambda: start_by_hand(subject, work, ledger), starts)
    if workloads and not isinstance(subject.backend, Docker):
        pairs += alternate(lambda: work_by_tare(subject), lambda: work_by_hand(subject, work, ledger), workloads)
    ends = list(dict.fromkeys(end for _, hand in pairs for end in hand))
    return {end: compare([(a[end], b[end]) for a, b in pairs if end in a and end in b]) for end in ends}


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--workloads", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    work = work_directory() / secrets.token_hex(4)
    results = {}
    with Ledger(ledger_directory()) as ledger, work_folder(ledger, work):
        image = find_image(ImageStore(cache_directory(), ledger), "")
        for name in asked.engines.split(","):
            try:
                with start_subject(load_backend(name), ledger, work, image) as subject:
                    results[name] = measure(subject, work, ledger, asked.starts, asked.workloads)
            except UnavailableError as error:
                print(error, file=sys.stderr)
                continue
            if not asked.json:
                show(name, results[name])
    if asked.json:
        print(json.dumps(results, indent=1))


def show(name: str, ends: dict[str, object]) -> None:
    """One line an end."""
    for end, one in ends.items():
        assert isinstance(one, dict)
        low, high = one["interval"]
        print(
            f"{name:10} {end:12} tare {one['tare_s'] * 1e3:6.1f} ms, by hand {one['hand_s'] * 1e3:6.1f} ms, "
            f"ratio {one['ratio']:.3f} ({low:.3f} to {high:.3f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
