"""What tare adds to an engine: starts through tare against the same engine driven by hand, alternated.

Run as root: ``python benchmarks/engine_overhead.py [--engines runc,crun] [--starts 20] [--json]``. By hand is the
least that a careful user does: an overlay of the image mounted in a mount namespace of its own, the same
``config.json``, the engine's command, in no cgroup of anybody's. Docker by hand is its library, with the same body of
the request, without a cgroup parent and without what tare makes and reads around it; both from the same daemon. Both
are timed until the first instruction inside (a byte that the same program writes, or what it says of its clock) and
until the command returns. Printed are the medians and their ratios; the ratio's interval is a percentile bootstrap
over pairs.
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
import time
from pathlib import Path
from typing import Any

import msgspec

from tare.backends.cgroups.limits import limits_of
from tare.backends.engines.box import Box
from tare.backends.engines.core import Engine
from tare.backends.engines.docker import Docker
from tare.backends.engines.groups import Groups
from tare.backends.engines.oci import Crun, Runc
from tare.backends.engines.oci_config import Bind, Plan, make_config
from tare.backends.engines.start import HOLD, INSIDE, SocketReport
from tare.backends.native.seccomp import DEFAULT_CAPABILITIES
from tare.backends.native.zygote import find_program
from tare.bench.image import ImageStore
from tare.bench.ledger import Ledger, work_folder
from tare.bench.linux.mounts import find_block_device
from tare.bench.locations import cache_directory, ledger_directory, work_directory
from tare.bench.model import SCRATCH, Image, Phase, StartedBy
from tare.bench.testing.subject import BackendUnderTest, find_image, start_subject

ENGINES: dict[str, type[Engine]] = {"runc": Runc, "crun": Crun, "docker": Docker}
MOUNT = """
{hide}
mount -t overlay overlay -o "lowerdir={lower},upperdir={here}/upper,workdir={here}/work" "{here}/root"
exec taskset -c {cpus} {runtime} --root {here}/state {command}
"""
HIDE = "umount -l /sys/fs/cgroup/unified 2>/dev/null"


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", default="runc,crun,docker")
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    work = work_directory() / secrets.token_hex(4)
    results = {}
    with Ledger(ledger_directory()) as ledger, work_folder(ledger, work):
        image = find_image(ImageStore(cache_directory(), ledger), "")
        for name in asked.engines.split(","):
            with start_subject(ENGINES[name], ledger, work, image) as subject:
                hand = docker_by_hand if name == "docker" else by_hand
                pairs = [(through_tare(subject), hand(subject, work, image)) for _ in range(asked.starts + 1)][1:]
            results[name] = {end: compare([(a[end], b[end]) for a, b in pairs]) for end in ("returned", "instruction")}
    if asked.json:
        print(json.dumps(results, indent=1))
        return
    for name, ends in results.items():
        for end, one in ends.items():
            low, high = one["interval"]
            print(
                f"{name:5} {end:12} tare {one['tare_s'] * 1e3:6.1f} ms, by hand {one['hand_s'] * 1e3:6.1f} ms, "
                f"ratio {one['ratio']:.3f} ({low:.3f} to {high:.3f})"
            )


def through_tare(subject: BackendUnderTest) -> dict[str, float]:
    """Seconds of one start through tare, by end."""
    _, starting = subject.start()
    with starting as instance:
        timeline = instance.timeline
    asked = timeline.marks[Phase.REQUESTED]
    ends = {"returned": StartedBy.RETURNED, "instruction": StartedBy.INSTRUCTION}
    return {name: timeline.started[end] - asked for name, end in ends.items()}


def by_hand(subject: BackendUnderTest, work: Path, image: Image) -> dict[str, float]:
    """The same by hand."""
    here = work / f"hand-{secrets.token_hex(4)}"
    for name in ("root", "upper", "work", "given", "scratch"):
        (here / name).mkdir(parents=True)
    program = here / "given/program"
    program.write_bytes(find_program(cache_directory(), work).content)
    program.chmod(0o755)
    runtime = type(subject.backend).program
    identifier = f"hand-{secrets.token_hex(4)}"
    limits = limits_of(subject.envelope, find_block_device(work))
    plan = Plan(
        root=str(here / "root"),
        argv=HOLD,
        hostname=identifier,
        cgroup=f"/{identifier}",
        limits=limits,
        binds=(Bind(str(here / "given"), INSIDE, read_only=True), Bind(str(here / "scratch"), SCRATCH)),
        capabilities=tuple(dict(DEFAULT_CAPABILITIES).values()),
    )
    script = MOUNT.format(
        hide=HIDE if runtime == "crun" else ":",
        lower=image.rootfs,
        here=here,
        cpus=",".join(map(str, subject.envelope.cpus)),
        runtime=runtime,
        command='"$@"',
    )
    private = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, "sh"]
    keep_in, keep_out = os.pipe()
    told, tell = os.pipe()
    try:
        asked = time.monotonic()
        (here / "config.json").write_bytes(msgspec.json.encode(make_config(plan)))
        argv = [*private, "run", "--detach", "--bundle", str(here), identifier]
        with subprocess.Popen(argv, stdin=keep_in, stdout=tell, stderr=subprocess.PIPE) as started:
            ends = wait_for(told, os.pidfd_open(started.pid))
            assert started.stderr is not None
            assert started.wait() == 0
        return {name: at - asked for name, at in ends.items()}
    finally:
        for descriptor in (keep_in, keep_out, told, tell):
            os.close(descriptor)
        subprocess.run([*private, "delete", "--force", identifier], check=True)
        shutil.rmtree(here)


def docker_by_hand(subject: BackendUnderTest, work: Path, image: Image) -> dict[str, float]:
    """The same by Docker's library, from its own copy of the image."""
    del image
    backend = subject.backend
    assert isinstance(backend, Docker)
    here = work / f"hand-{secrets.token_hex(4)}"
    for name in ("given", "scratch"):
        (here / name).mkdir(parents=True)
    (here / "given/program").hardlink_to(backend.launcher)
    limits = limits_of(subject.envelope, find_block_device(work))
    spec = subject.spec(here.name)
    client = backend.server.starting.client
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, here)
        report = SocketReport(stack, here / "given")
        asked = time.monotonic()
        box = Box(spec, here, Groups(backend.layout, here.name, at_top=True, container="*"), limits)
        config: Any = backend.container(box)
        del config["HostConfig"]["CgroupParent"]
        made = client.create_container_from_config(config, here.name)["Id"]
        stack.callback(client.remove_container, made, force=True)
        client.start(made)
        returned = time.monotonic()
        started = report.hear(returned + 60)
        assert started is not None
        stack.callback(started.close)
        return {"returned": returned - asked, "instruction": started.first_s - asked}


def wait_for(told: int, ended: int) -> dict[str, float]:
    """When the byte came, and when the command returned."""
    names = {told: "instruction", ended: "returned"}
    ends: dict[str, float] = {}
    while names:
        ready, _, _ = select.select(list(names), [], [], 60)
        assert ready, "no answer within 60 s"
        for descriptor in ready:
            ends[names.pop(descriptor)] = time.monotonic()
    os.close(ended)
    return ends


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
        "starts": len(pairs),
    }


if __name__ == "__main__":
    main()
