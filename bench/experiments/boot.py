"""``boot``: how long an instance takes from the request until it can execute, and to stop, phase by phase.

Every mark is on the host's monotonic clock. What a guest tells about itself (firmware, kernel, init) is kept beside.
"""

from tare.bench.catalogue import TRAITS, BootMetric, Builtin, GuestSplit
from tare.bench.interfaces import Experiment, InstanceRun
from tare.bench.model import Command, Footprint, Metric, Phase, lower
from tare.bench.units import Unit

CREATE = lower(
    BootMetric.CREATE, Unit.SECOND, "Requested until what isolates exists: first process, or the hypervisor's."
)
INIT = lower(
    BootMetric.INIT, Unit.SECOND, "From then until the first user-space instruction inside: root, kernel, mounts."
)
READY = lower(
    BootMetric.READY, Unit.SECOND, "From then until the harness knows that the instance can execute a command."
)
TOTAL = lower(BootMetric.TOTAL, Unit.SECOND, "Requested until ready to execute.")
VCPU = lower(BootMetric.VCPU, Unit.SECOND, "The hypervisor's process existed until the guest's processor began to run.")
FIRMWARE = lower(
    BootMetric.FIRMWARE,
    Unit.SECOND,
    "The guest's processor ran until its kernel began, by its own clock: firmware, boot loader, decompression.",
)
LOADER = lower("boot.loader", Unit.SECOND, "The part of boot.firmware from the boot loader's first words on.")
KERNEL = lower(BootMetric.KERNEL, Unit.SECOND, "The guest's kernel began until its first user-space instruction.")
AGENT = lower("boot.agent", Unit.SECOND, "The first user-space instruction until what executes commands had answered.")
FIRST_COMMAND = lower(
    "boot.first_command", Unit.SECOND, "The first command in the fresh instance, /bin/true, there and back."
)
STOP = lower("boot.stop", Unit.SECOND, "Asked to stop until its last process and host resource were gone.")
STOP_GUEST = lower("boot.stop_guest", Unit.SECOND, "The part of boot.stop until the guest's own kernel had shut down.")
STOP_PROCESS = lower("boot.stop_process", Unit.SECOND, "The part of boot.stop until its last host process was gone.")
RELEASE = lower("boot.release", Unit.SECOND, "The rest of boot.stop: until cgroup, mounts and files were gone.")
PSS = lower(BootMetric.PSS, Unit.BYTE, "Proportional set size of all its host processes when it was ready and idle.")
CHARGE = lower("boot.charge", Unit.BYTE, "Memory its cgroup was charged with when it was ready and idle.")
PRIVATE = lower("boot.private", Unit.BYTE, "The part of its processes' memory that nobody shares, likewise.")
GUEST_RAM = lower("boot.guest_ram", Unit.BYTE, "The part of boot.pss that a guest has as its RAM: what it has touched.")
TCG_CACHE = lower("boot.tcg_cache", Unit.BYTE, "The part of boot.pss that is code translated for an emulated CPU.")
HYPERVISOR = lower("boot.hypervisor", Unit.BYTE, "The rest of boot.pss: the hypervisor's devices, heap and program.")
DISK_OWNED = lower("boot.disk_owned", Unit.BYTE, "Disk blocks that only it has: its overlay, or its scratch disk.")
DISK_SHARED = lower("boot.disk_shared", Unit.BYTE, "Disk blocks of the image, which it shares with others of it.")
CPU = lower(BootMetric.CPU, Unit.SECOND, "CPU seconds, user and system, the host spent until it was ready and idle.")
STARTS = (VCPU, FIRMWARE, LOADER, KERNEL, AGENT)
STOPS = (STOP_GUEST, STOP_PROCESS, RELEASE)
FOOTPRINT = (PSS, PRIVATE, GUEST_RAM, TCG_CACHE, HYPERVISOR, CHARGE, DISK_OWNED, DISK_SHARED)
SPLITS: dict[str, Metric] = {
    GuestSplit.KERNEL: lower(
        GuestSplit.KERNEL, Unit.SECOND, "Kernel until the first user-space instruction, by the guest's clock."
    ),
    GuestSplit.INIT: lower(
        GuestSplit.INIT, Unit.SECOND, "First user-space instruction until its services run, by the guest's clock."
    ),
    GuestSplit.INITRAMFS: lower(
        GuestSplit.INITRAMFS,
        Unit.SECOND,
        "The part of guest.init before systemd, where that is what boots.",
    ),
    GuestSplit.SYSTEM: lower(
        GuestSplit.SYSTEM, Unit.SECOND, "The part of guest.init from systemd's start to multi-user.target, likewise."
    ),
}


class Boot(Experiment):
    """Starts an instance, looks at it once, stops it."""

    name = Builtin.BOOT
    traits = TRAITS[name]
    summary = "start and stop of an instance by phase, and what it holds when idle"
    needs_workload = False
    metrics = (CREATE, INIT, READY, TOTAL, *STARTS, FIRST_COMMAND, STOP, *STOPS, *FOOTPRINT, CPU, *SPLITS.values())

    def run(self, run: InstanceRun) -> None:
        """One start and stop."""
        with run.start() as instance:
            timeline = instance.timeline
            usage, footprint = instance.usage(), instance.footprint()
            completed, raw = run.execute(instance, Command(("/bin/true",)), "first")
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
        run.record(FIRST_COMMAND, completed.duration_s, raw=raw)
        _record_footprint(run, footprint)
        if usage.cpu_s is not None:
            run.record(CPU, usage.cpu_s)
        for name, seconds in timeline.splits.items():
            if name in SPLITS:
                run.record(SPLITS[name], seconds)


def _record_footprint(run: InstanceRun, footprint: Footprint) -> None:
    """What it holds, a guest's by its parts."""
    pss, ram, translated = footprint.pss_bytes, footprint.guest_ram_bytes, footprint.tcg_cache_bytes
    run.record(PSS, pss)
    run.record(PRIVATE, footprint.private_bytes)
    run.record(GUEST_RAM, ram)
    run.record(TCG_CACHE, translated)
    if pss is not None and ram is not None:
        run.record(HYPERVISOR, pss - ram - (translated or 0))
    run.record(CHARGE, footprint.cgroup_bytes)
    run.record(DISK_OWNED, footprint.disk_owned_bytes)
    run.record(DISK_SHARED, footprint.disk_shared_bytes)
