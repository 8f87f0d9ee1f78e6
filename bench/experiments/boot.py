"""``boot``: how long an instance takes from the request until it can execute, and to stop, phase by phase.

Every mark is on the host's monotonic clock. What a guest reports of itself (firmware, kernel, init) is kept as well.
"""

from tare.bench.catalogue import TRAITS, Builtin, GuestSplit
from tare.bench.catalogue import BootMetric as Name
from tare.bench.engine import StartedBy
from tare.bench.experiments.engines import BOOT_METRICS as ENGINE
from tare.bench.experiments.engines import TRUE, record_started
from tare.bench.experiments.work import Work, prime_work
from tare.bench.interfaces import Experiment, Instance, InstanceRun, NoOptions
from tare.bench.model import Command, Commands, Footprint, Metric, Phase, lower
from tare.bench.units import Unit

CREATE = lower(
    Name.CREATE,
    Unit.SECOND,
    "From the request until the first process, or QEMU, exists.",
    title="Start: until its first process exists",
)
INIT = lower(
    Name.INIT,
    Unit.SECOND,
    "From then until the first user-space instruction inside: root, kernel, mounts.",
    title="Start: until the first instruction inside",
)
READY = lower(
    Name.READY,
    Unit.SECOND,
    "From then until the harness knows that the instance can execute a command.",
    title="Start: until it takes commands",
)
TOTAL = lower(
    Name.TOTAL, Unit.SECOND, "From the request until the instance can execute a command.", title="Time to start"
)
VCPU = lower(
    Name.VCPU,
    Unit.SECOND,
    "From the hypervisor's process until the guest's processor began to run.",
    title="Start: until the guest's processor runs",
)
FIRMWARE = lower(
    Name.FIRMWARE,
    Unit.SECOND,
    "From then until the guest's kernel began, by its clock: BIOS, loader.",
    title="Start: firmware and boot loader",
)
LOADER = lower(
    "boot.loader",
    Unit.SECOND,
    "The part of boot.firmware from the boot loader's first words on.",
    title="Start: boot loader",
)
KERNEL = lower(
    Name.KERNEL,
    Unit.SECOND,
    "From the start of the guest's kernel until its first user-space instruction.",
    title="Start: the guest's kernel",
)
AGENT = lower(
    "boot.agent",
    Unit.SECOND,
    "From the first user-space instruction until the guest's agent answered.",
    title="Start: until the guest's agent answers",
)
FIRST_COMMAND = lower(
    "boot.first_command",
    Unit.SECOND,
    "The first command in the fresh instance, /bin/true.",
    title="First command in a fresh instance",
)
STOP = lower(
    "boot.stop",
    Unit.SECOND,
    "From the request to stop until its last process and host resource were gone.",
    title="Time to stop",
)
STOP_GUEST = lower(
    "boot.stop_guest",
    Unit.SECOND,
    "The part of boot.stop until the guest's own kernel had shut down.",
    title="Stop: until the guest's kernel is down",
)
STOP_PROCESS = lower(
    "boot.stop_process",
    Unit.SECOND,
    "The part of boot.stop until its last host process was gone.",
    title="Stop: until its last process is gone",
)
RELEASE = lower(
    "boot.release",
    Unit.SECOND,
    "The rest of boot.stop: until cgroup, mounts and files were gone.",
    title="Stop: until its resources are released",
)
PSS = lower(
    Name.PSS,
    Unit.BYTE,
    "Proportional set size of all its host processes once it was ready and idle.",
    title="Memory of an idle instance",
)
CHARGE = lower(
    "boot.charge",
    Unit.BYTE,
    "Memory charged to its cgroup once it was ready and idle.",
    title="Memory charged to an idle instance",
)
PRIVATE = lower(
    "boot.private",
    Unit.BYTE,
    "The part of its processes' memory that nobody shares.",
    title="Memory of an idle instance that nobody shares",
)
GUEST_RAM = lower(
    "boot.guest_ram",
    Unit.BYTE,
    "The part of boot.pss that is the guest's RAM, as far as touched.",
    title="Memory touched by the guest",
)
TCG_CACHE = lower(
    "boot.tcg_cache",
    Unit.BYTE,
    "The part of boot.pss that is code translated for an emulated CPU.",
    title="Memory for translated code",
)
HYPERVISOR = lower(
    "boot.hypervisor",
    Unit.BYTE,
    "The rest of boot.pss: the hypervisor's devices, heap and program.",
    title="Memory of the hypervisor itself",
)
DISK_OWNED = lower(
    "boot.disk_owned",
    Unit.BYTE,
    "Disk blocks of its own: its overlay, or its scratch disk.",
    title="Disk space of its own",
)
DISK_SHARED = lower(
    "boot.disk_shared",
    Unit.BYTE,
    "Disk blocks of the image, which all its instances share.",
    title="Disk space of the shared image",
)
CPU = lower(
    Name.CPU,
    Unit.SECOND,
    "CPU seconds, user and system, the host spent until it was ready and idle.",
    title="CPU time to start",
)
STARTS = (VCPU, FIRMWARE, LOADER, KERNEL, AGENT)
STOPS = (STOP_GUEST, STOP_PROCESS, RELEASE)
FOOTPRINT = (PSS, PRIVATE, GUEST_RAM, TCG_CACHE, HYPERVISOR, CHARGE, DISK_OWNED, DISK_SHARED)
_SPLITS = (
    lower(
        GuestSplit.KERNEL,
        Unit.SECOND,
        "From the kernel's start to the first user-space instruction, by the guest's clock.",
        "The guest's kernel, by its clock",
    ),
    lower(
        GuestSplit.INIT,
        Unit.SECOND,
        "From the first user-space instruction until its services run, by the guest's clock.",
        "The guest's services, by its clock",
    ),
    lower(
        GuestSplit.INITRAMFS,
        Unit.SECOND,
        "The part of guest.init before systemd, where that is what boots.",
        "The guest's initramfs, by its clock",
    ),
    lower(
        GuestSplit.SYSTEM,
        Unit.SECOND,
        "The part of guest.init from systemd's start to multi-user.target.",
        "The guest's systemd, by its clock",
    ),
)
SPLITS: dict[str, Metric] = {metric.name: metric for metric in _SPLITS}


class Boot(Experiment):
    """Starts an instance, looks at it once, stops it.

    With a workload that is the image's own service, it starts that first: footprint and CPU time include it.
    """

    name = Builtin.BOOT
    traits = TRAITS[name]
    summary = "start and stop of an instance by phase, and what it holds when idle"
    needs_workload = False
    takes_workload = True
    metrics = (
        *(CREATE, INIT, READY, TOTAL, *STARTS, FIRST_COMMAND, STOP, *STOPS, *FOOTPRINT, CPU, *SPLITS.values()),
        *ENGINE,
    )

    @classmethod
    def check(cls, options: NoOptions, commands: Commands | None) -> None:
        """Of all workloads only the image's own service is part of a start."""
        del options
        if commands is not None and commands.image_service is None:
            raise ValueError("workload: boot starts no other workload than the image's own service (service = true)")

    def prime(self, run: InstanceRun) -> None:
        if run.workload is not None:
            prime_work(run, run.workload)
        else:
            super().prime(run)

    def run(self, run: InstanceRun) -> None:
        with run.start() as instance:
            timeline = instance.timeline
            work = _start_service(run, instance)
            usage, footprint = instance.usage(), instance.footprint()
            record_started(run, instance)
            if not run.image.lacks(TRUE):
                completed, raw = run.execute(instance, Command(("/bin/true",)), "first")
                run.record(FIRST_COMMAND, completed.duration_s, raw=raw)
            if work is not None:
                work.end()
        run.record(CREATE, timeline.between(Phase.REQUESTED, Phase.CREATED))
        run.record(INIT, timeline.between(Phase.CREATED, Phase.FIRST_INSTRUCTION))
        run.record(READY, timeline.between(Phase.FIRST_INSTRUCTION, Phase.READY))
        run.record(TOTAL, timeline.between(Phase.REQUESTED, Phase.READY))
        run.record(VCPU, timeline.between(Phase.CREATED, Phase.VCPU_RUNNING))
        run.record(FIRMWARE, timeline.between(Phase.VCPU_RUNNING, Phase.KERNEL_ENTERED))
        run.record(LOADER, timeline.between(Phase.LOADER, Phase.KERNEL_ENTERED))
        run.record(KERNEL, timeline.between(Phase.KERNEL_ENTERED, Phase.FIRST_INSTRUCTION))
        run.record(AGENT, timeline.between(Phase.FIRST_INSTRUCTION, Phase.AGENT_ANSWERED))
        run.record(STOP, timeline.between(Phase.STOP_REQUESTED, Phase.STOPPED))
        run.record(STOP_GUEST, timeline.between(Phase.STOP_REQUESTED, Phase.GUEST_DOWN))
        run.record(STOP_PROCESS, timeline.between(Phase.STOP_REQUESTED, Phase.PROCESS_GONE))
        run.record(RELEASE, timeline.between(Phase.PROCESS_GONE, Phase.STOPPED))
        _record_footprint(run, footprint)
        run.record(CPU, usage.cpu_s)
        for name, seconds in timeline.splits.items():
            if name in SPLITS:
                run.record(SPLITS[name], seconds)


def _start_service(run: InstanceRun, instance: Instance) -> Work | None:
    """The image's service, answering; nothing without a workload."""
    if run.workload is None:
        return None
    work = Work(run, run.workload.commands(run.params, run.envelope), instance)
    if work.image_service is not None:
        instance.timeline.started[StartedBy.SERVICE] = work.image_service.answered_s
    return work


def _record_footprint(run: InstanceRun, footprint: Footprint) -> None:
    """What it holds, a guest's by its parts."""
    pss, ram, translated = footprint.pss_bytes, footprint.guest_ram_bytes, footprint.tcg_cache_bytes
    run.record(PSS, pss)
    run.record(PRIVATE, footprint.private_bytes)
    run.record(GUEST_RAM, ram)
    run.record(TCG_CACHE, translated)
    if pss is not None and ram is not None and (rest := pss - ram - (translated or 0)) > 0:
        run.record(HYPERVISOR, rest)
    run.record(CHARGE, footprint.cgroup_bytes)
    run.record(DISK_OWNED, footprint.disk_owned_bytes)
    run.record(DISK_SHARED, footprint.disk_shared_bytes)
