"""How long the native runtime takes to start a container, beside crun, runc and a C program doing the same steps.

They take turns in one process, each after a pause in which the machine idles. Ours is from the call of
``Backend.start`` until the instance can execute (limits set, everything entered in the ledger); crun's and runc's is
`run` of /bin/true with the same root file system, namespaces, capabilities, system calls, masks and limits, from
start to exit; the floor's is floor.c, up to the same point as ours.

    python benchmarks/start_latency.py --rootfs DIR [--json]

Needs root, crun, runc and gcc. Leaves nothing behind; what a killed run left is removed at the next.
"""

import argparse
import contextlib
import errno
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

from tare.backends.cgroups.layout import Layout, Version, find_layout, prepare_parent
from tare.backends.cgroups.lifecycle import choose_controllers
from tare.backends.native.backend import Native
from tare.backends.native.options import NativeOptions
from tare.backends.native.seccomp import (
    ARCHITECTURES,
    DEFAULT_CAPABILITIES,
    Condition,
    allowed_calls,
    compile_filters,
    conditions,
)
from tare.backends.native.setup import MASKED, READ_ONLY
from tare.bench.errors import ExitCode, MissingToolError, TareError
from tare.bench.image import ImageStore
from tare.bench.interfaces import BackendContext
from tare.bench.ledger import Ledger, ResourceKind, clean
from tare.bench.linux.mounts import find_block_device
from tare.bench.locations import cache_directory
from tare.bench.model import Envelope, Image, InstanceSpec, Phase
from tare.bench.process import PIPE, Popen, find_tool, run
from tare.bench.trees import make_work_folder

HERE = Path(__file__).resolve().parent
LEDGER = Path("/var/tmp/tare-benchmark-ledger")
MEMORY_BYTES = 256 * 2**20
PIDS_MAX = 256
PAUSE_S = 0.15
TIME_LIMIT_S = 240.0

GRANTED = tuple(number for _, number in DEFAULT_CAPABILITIES)
OCI_RUNTIMES = ("crun", "runc")

Starter = Callable[..., float]
"""Starts one; seconds. That of a server takes the line to send it."""


class Result(TypedDict):
    """What `--json` prints."""

    ratios: dict[str, float]
    p99_over_median: float
    medians_s: dict[str, float]
    starts: int


def oci_seccomp(capabilities: tuple[int, ...]) -> dict[str, Any]:
    """The profile of tare's own containers as ``linux.seccomp`` of config.json (OCI runtime specification 1.0.2)."""
    calls = allowed_calls(capabilities)
    rules: list[dict[str, Any]] = [{"names": list(calls), "action": "SCMP_ACT_ALLOW"}]
    for condition in conditions(capabilities):
        argument: dict[str, Any] = {"index": condition.argument, "value": condition.value, "op": "SCMP_CMP_EQ"}
        if not condition.equal:
            argument["op"] = "SCMP_CMP_NE"
        elif condition.mask != Condition._field_defaults["mask"]:
            argument.update(op="SCMP_CMP_MASKED_EQ", value=condition.mask, valueTwo=condition.value)
        rules.append({"names": [condition.call], "action": "SCMP_ACT_ALLOW", "args": [argument]})
    if "clone3" not in calls:
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS})
    architectures = [f"SCMP_ARCH_{name}" for name in ARCHITECTURES.get(os.uname().machine, ())]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "architectures": architectures,
        "syscalls": rules,
    }


def main() -> int:
    """Run, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rootfs", type=Path, help="root file system to start (default: tare's newest image)")
    parser.add_argument("--rounds", type=int, default=60, help="starts of each kind (default 60)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    try:
        result = measure(arguments.rootfs or newest_rootfs(), arguments.rounds)
    except TareError as error:
        print(f"start_latency: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    finally:
        with contextlib.suppress(OSError):  # not there, or another benchmark uses it
            LEDGER.rmdir()
    if arguments.json:
        print(json.dumps(result))
        return ExitCode.OK
    for name, median in result["medians_s"].items():
        print(f"{name:8} {median * 1e3:8.2f} ms")
    for name, ratio in result["ratios"].items():
        print(f"native / {name}: {ratio:.3f}")
    print(f"native p99 / median: {result['p99_over_median']:.2f}")
    return ExitCode.OK


def newest_rootfs() -> Path:
    """The tree of the image that was built last. Raises TareError."""
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder)) as ledger:
        for listed in ImageStore(cache_directory(), ledger).list():
            if listed.description is not None and (listed.directory / "rootfs").is_dir():
                return listed.directory / "rootfs"
    raise TareError(
        "there is no image yet", remedy="run `tare image build`, or give a root file system with --rootfs DIR"
    )


def measure(rootfs: Path, rounds: int) -> Result:
    """Alternate them and compare. Raises TareError."""
    for tool in (*OCI_RUNTIMES, "gcc"):
        if find_tool(tool) is None:
            raise MissingToolError(f"{tool} is not installed", remedy=f"apt-get install {tool}")
    if not (rootfs / "bin/true").exists():
        raise TareError(f"{rootfs} has no /bin/true", remedy="give a root file system with --rootfs DIR")
    clean(LEDGER)
    cpu = max(os.sched_getaffinity(0))
    times: dict[str, list[float]] = {name: [] for name in ("native", *OCI_RUNTIMES, "floor")}
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(Ledger(LEDGER))
        folder = Path(f"/var/tmp/tare-start-latency-{os.getpid()}")
        stack.enter_context(ledger.holding(ResourceKind.DIRECTORY, folder))
        stack.enter_context(start_folder(folder))
        layout = find_layout()
        starters: dict[str, Starter] = {
            "native": stack.enter_context(start_native(ledger, folder, rootfs, cpu)),
            **{name: stack.enter_context(start_oci(name, folder, rootfs, layout, cpu)) for name in OCI_RUNTIMES},
            "floor": stack.enter_context(start_floor(folder, rootfs, layout, cpu)),
        }
        deadline = time.monotonic() + TIME_LIMIT_S
        for round_number in range(rounds):
            for name, start in starters.items():
                time.sleep(PAUSE_S)  # the idling is part of what is measured: it is what starts meet in practice
                took = start()
                if round_number:  # the first of each warms caches
                    times[name].append(took)
            if time.monotonic() > deadline:
                break
    return summarise(times)


def summarise(times: dict[str, list[float]]) -> Result:
    """Medians, our median over the others', and our tail."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    ours = sorted(times["native"])
    return {
        "ratios": {name: medians["native"] / medians[name] for name in (*OCI_RUNTIMES, "floor")},
        "p99_over_median": ours[min(len(ours) - 1, int(len(ours) * 0.99))] / medians["native"],
        "medians_s": medians,
        "starts": len(ours),
    }


@contextlib.contextmanager
def start_folder(folder: Path) -> Iterator[None]:
    """A folder like that of a run, removed with all it holds."""
    make_work_folder(folder)
    try:
        yield
    finally:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=folder.name) as trash:
            folder.rename(Path(trash) / "folder")


@contextlib.contextmanager
def start_native(ledger: Ledger, folder: Path, rootfs: Path, cpu: int) -> Iterator[Starter]:
    """Our own runtime, through the contract that every backend has."""
    image = Image("", "", rootfs.parent, rootfs, None, None, None, "", {}, 0)
    envelope = Envelope((cpu,), MEMORY_BYTES, 2**30, PIDS_MAX)
    others = tuple(sorted(os.sched_getaffinity(0) - {cpu}))
    backend = Native(BackendContext(ledger, folder, folder, NativeOptions(), others))
    number = 0

    def start() -> float:
        nonlocal number
        number += 1
        with backend.start(InstanceSpec(f"start-{os.getpid()}-{number}", image, envelope)) as instance:
            took = instance.timeline.between(Phase.REQUESTED, Phase.READY)
        assert took is not None
        return took

    try:
        backend.prepare(image, envelope)
        yield start
    finally:
        backend.close()


@contextlib.contextmanager
def start_server(argv: list[str]) -> Iterator[Starter]:
    """A program that answers each line with nanoseconds, after having said that it serves."""
    # In a session of its own, so that ctrl-C lets it finish the container at hand, and remove it.
    with Popen(argv, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asking, answers = process.stdin, process.stdout

        def answer() -> str:
            line = answers.readline().strip()
            if not line:
                assert process.stderr is not None
                raise TareError(f"{argv[0]} ended: {process.stderr.read().strip()}")
            if line.startswith("failed"):
                raise TareError(f"{Path(argv[0]).name}: {line}")
            return line

        def start(command: str = "") -> float:
            asking.write(f"{command}\n")
            asking.flush()
            return int(answer()) / 1e9

        try:
            answer()
            yield start
        finally:
            asking.close()
            process.wait()


@contextlib.contextmanager
def start_floor(folder: Path, rootfs: Path, layout: Layout, cpu: int) -> Iterator[Starter]:
    """floor.c, compiled here."""
    program, work = folder / "floor", folder / "floor-work"
    run(["gcc", "-O2", "-static", "-o", str(program), str(HERE / "floor.c")], timeout_s=60)
    for below in ("root", "empty"):
        (work / below).mkdir(parents=True)
    if layout.version is Version.V2 and layout.unified is not None and layout.unified_root is not None:
        groups = [f"v2={prepare_parent(layout.unified, layout.unified_root)}"]
    else:
        groups = [f"{name}={layout.controllers[name]}" for name in choose_controllers(layout)]
        groups += [] if layout.unified is None else [f"unified={layout.unified}"]
    filters = compile_filters(GRANTED)
    (work / "filter").write_bytes(filters.inherited)
    (work / "own-filter").write_bytes(filters.own)
    places = [str(rootfs), str(work), str(cpu), str(MEMORY_BYTES), str(PIDS_MAX), find_block_device(folder) or ""]
    programs = [str(work / "filter"), str(work / "own-filter")]
    with start_server([str(program), *places, *programs, *groups]) as start:
        yield start


@contextlib.contextmanager
def start_oci(name: str, folder: Path, rootfs: Path, layout: Layout, cpu: int) -> Iterator[Starter]:
    """An OCI runtime, in the mount namespace it needs."""
    bundle = folder / f"bundle-{name}"
    for below in ("rootfs", "upper", "work", "scratch", "state"):
        (bundle / below).mkdir(parents=True)
    run(["crun", "spec", "--bundle", str(bundle)], timeout_s=10)
    config = bundle / "config.json"
    config.write_text(json.dumps(like_ours(json.loads(config.read_text()), bundle, cpu)))
    detach = [str(layout.unified_root)] if layout.version is Version.HYBRID else []
    program = str(find_tool(name))
    arguments = [str(bundle), str(rootfs), str(bundle / "upper"), str(bundle / "work"), program, *detach]
    with start_server([sys.executable, str(HERE / "oci_server.py"), *arguments]) as start:
        yield start


def like_ours(config: dict[str, object], bundle: Path, cpu: int) -> dict[str, object]:
    """The template of the runtime itself with the rights, calls, masks, mounts and limits that our containers have."""
    spec: dict[str, object] = json.loads(json.dumps(config))
    capabilities = [f"CAP_{name}" for name, _ in DEFAULT_CAPABILITIES]
    process, linux, mounts = spec["process"], spec["linux"], spec["mounts"]
    assert isinstance(process, dict)
    assert isinstance(linux, dict)
    assert isinstance(mounts, list)
    process.update(terminal=False, args=["/bin/true"], noNewPrivileges=True)
    process.pop("rlimits", None)
    process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), capabilities)
    spec["root"] = {"path": "rootfs", "readonly": False}
    scratch = {"destination": "/scratch", "type": "bind", "source": str(bundle / "scratch"), "options": ["bind"]}
    spec["mounts"] = [mount for mount in mounts if mount["destination"] != "/sys/fs/cgroup"] + [scratch]
    linux.update(
        seccomp=oci_seccomp(GRANTED),
        maskedPaths=list(MASKED),
        readonlyPaths=list(READ_ONLY),
        namespaces=[{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
        resources={
            "memory": {"limit": MEMORY_BYTES, "swap": MEMORY_BYTES},
            "pids": {"limit": PIDS_MAX},
            "cpu": {"cpus": str(cpu)},
        },
    )
    return spec


if __name__ == "__main__":
    sys.exit(main())
