"""The process that every instance is forked from.

Started once a run as ``python -I -S zygote.py FD IMPORT_ROOT CPUS FILES``; the first message is the Settings, with
the program that instances' inits become, if there is one, and what tells them when. FILES is how many they may open.

Standard library only, with as little imported as possible: what is in memory here is what ``clone3`` copies, and
a fork of the harness itself (numpy, pandas) takes more than twice as long. It answers one request at a time:
``start`` with a Plan, the instance's end of its channel, and its v2 cgroup folder if it has one.
"""

import _signal  # type: ignore[import-not-found]  # signal itself imports enum; typeshed has no stub for its core
import gc
import os
import resource
import sys
import time

_CALLS_UNTIL_REWRITTEN = 20
"""With a margin: 8 in CPython 3.11, and then as many again until its guesses have settled."""
TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.backends.native.operations import Operation
    from tare.backends.native.plan import Settings
    from tare.backends.native.wire import Channel


def main() -> None:
    """Serve until the harness closes its end (also by dying), then leave nothing running."""
    # Exited instances need no collecting, and their pidfds and cgroups tell the harness when they are gone.
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)
    cpus = [int(cpu) for cpu in sys.argv[3].split(",") if cpu]
    if cpus:
        os.sched_setaffinity(0, cpus)
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[4]), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    sys.path.insert(0, sys.argv[2])
    from tare.backends.native.wire import Channel

    channel = Channel(int(sys.argv[1]))
    kill_files: list[str] = []
    try:
        _serve(channel, kill_files)
    except (EOFError, BrokenPipeError):
        for path in kill_files:
            _kill_cgroup(path)


def _serve(channel: "Channel", kill_files: list[str]) -> None:
    from tare.backends.native import init, order, plan, syscalls
    from tare.backends.native.wire import Channel

    fields, programs = channel.receive()
    settings = plan.decode_settings(fields)
    resident = (programs[0], programs[1]) if programs else None
    failure = init.carry_out(order.zygote_operations(settings))
    if failure:
        channel.send(*failure)
        return
    flags = order.clone_flags(settings)
    same = order.same_operations(settings)
    _rehearse(settings, same)
    gc.collect()
    gc.freeze()  # what is there now is never looked at again, in instances either: nothing to copy on write
    gc.disable()
    channel.send(b"serving")
    while True:
        fields, descriptors = channel.receive()
        wanted = plan.decode_plan(fields)
        cgroup = descriptors[1] if len(descriptors) > 1 else None
        try:
            pid = syscalls.clone3(flags, cgroup)
        except OSError as error:
            channel.send(b"failed", (error.strerror or "").encode(), str(error.errno).encode())
        else:
            if pid == 0:
                channel.close()
                if cgroup is not None:
                    os.close(cgroup)
                try:
                    operations = order.instance_operations(settings, wanted, same)
                    init.run_init(Channel(descriptors[0]), operations, resident, system=settings.system)
                finally:
                    os._exit(0)
            created = time.monotonic_ns()
            if wanted.kill_file:
                kill_files.append(wanted.kill_file)
            channel.send(b"created", str(pid).encode(), str(created).encode())
        for descriptor in descriptors:
            os.close(descriptor)


def _rehearse(settings: "Settings", same: "list[Operation]") -> None:
    """Have CPython rewrite the code of what instances call, as it does with a function that has been called some times.

    Better here than in each instance, which would need copies of the memory that it lies in.
    """
    from tare.backends.native import init, order, plan

    example = plan.Plan(
        hostname="", lower="", upper="", work="", scratch="", cpus=(), join_files=("", "", "", "", ""), kill_file=""
    )
    for _ in range(_CALLS_UNTIL_REWRITTEN):
        order.instance_operations(settings, plan.decode_plan(list(example.encode())), same)
        for operation in order.rehearsal():
            init.carry_out([operation])


def _kill_cgroup(path: str) -> None:
    """Kill an instance that the harness can no longer stop; those it has stopped have no such file any more."""
    try:
        descriptor = os.open(path, os.O_WRONLY)
    except OSError:
        return
    try:
        os.write(descriptor, b"1")
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
