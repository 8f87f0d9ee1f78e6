"""Real guests: what goes wrong with them is one clear error with evidence, and leaves nothing behind."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from tare.backends.cgroups.layout import find_layout
from tare.backends.vm import boot
from tare.backends.vm import proof as accel
from tare.backends.vm.backend import VirtualMachine
from tare.backends.vm.domain_xml import TB_CACHE_MIB
from tare.backends.vm.options import VmOptions
from tare.bench.errors import BackendError, OutputTooLargeError, UnavailableError
from tare.bench.interfaces import BackendContext
from tare.bench.ledger import Ledger, clean
from tare.bench.model import KEPT_BYTES, SCRATCH, Command, Envelope, InstanceSpec, Phase
from tare.bench.process import run
from tests.accelerator import ACCEL

pytestmark = [pytest.mark.root, pytest.mark.tools, pytest.mark.image, pytest.mark.guest]

CPUS = tuple(sorted(os.sched_getaffinity(0)))[-2:]
ENVELOPE = Envelope(CPUS[-1:], 192 * 2**20, 64 * 2**20, 64)


def make_backend(ledger, work, cache, **options):
    chosen = msgspec.convert({"accel": ACCEL, **options}, VmOptions)
    backend = VirtualMachine(BackendContext(ledger, work, cache, chosen, ()))
    found = backend.probe()
    if not found.available:
        pytest.skip(f"vm is not available here: {found.reason}")
    return backend


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    with Ledger(tmp_path_factory.mktemp("ledger")) as ledger:
        yield ledger


@pytest.fixture(scope="module")
def backend(ledger, cache, image, tmp_path_factory):
    backend = make_backend(ledger, tmp_path_factory.mktemp("work"), cache)
    backend.prepare(image, ENVELOPE)
    yield backend
    backend.close()
    assert ledger.entries() == ()


class Guests:
    """Starts guests, each with a name of its own, and sees to it that each leaves nothing."""

    def __init__(self, backend, image):
        self.backend = backend
        self.image = image
        self.count = 0

    def start(self, *, image=None, **envelope):
        self.count += 1
        name = f"vmtest-{os.getpid()}-{self.count}"
        wanted = msgspec.structs.replace(ENVELOPE, **envelope)
        return self.backend.start(InstanceSpec(name, image or self.image, wanted))


@pytest.fixture
def guests(backend, image, ledger):
    before = ledger.entries()
    guests = Guests(backend, image)
    yield guests
    assert ledger.entries() == before
    assert_nothing_left(f"vmtest-{os.getpid()}-")


@pytest.fixture(scope="module")
def live(backend, image):
    """One guest for all that does not harm it, on two CPUs where there are two."""
    name = f"vmlive-{os.getpid()}"
    with backend.start(InstanceSpec(name, image, msgspec.structs.replace(ENVELOPE, cpus=CPUS))) as instance:
        yield instance


def assert_nothing_left(name):
    layout = find_layout()
    roots = {folder for folder in (layout.unified, *layout.controllers.values()) if folder is not None}
    assert [folder for root in roots for folder in root.glob(f"tare-{name}*")] == []
    assert [pid for pid, line in command_lines() if name in line and "qemu-system" in line] == []


def command_lines():
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                yield (
                    int(process.name),
                    (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"),
                )
            except OSError:
                continue


def shell(script, **more):
    return Command(("sh", "-c", script), **more)


def test_acceleration_is_what_was_proved(ledger, cache, backend, image, tmp_path):
    outcome = accel.known_outcome(cache / "vm")
    strict = make_backend(ledger, tmp_path, cache, accel="kvm")
    if outcome.startswith("accel kvm"):
        description = strict.prepare(image, ENVELOPE)
        strict.close()
        assert description.label == "vm (kvm)"
        return
    # Here /dev/kvm may well exist and open: it is the guest that did not boot that counts.
    assert outcome.startswith("accel tcg (")
    with pytest.raises(UnavailableError, match="no guest boots under KVM here: "):
        strict.prepare(image, ENVELOPE)
    lenient = make_backend(ledger, tmp_path, cache)
    description = lenient.prepare(image, ENVELOPE)
    lenient.close()
    assert description.label == "vm (tcg)"
    assert description.texts["accel"] == "tcg"
    assert f"({description.texts['accel_reason']})" in outcome
    assert "accel-tcg" in [confound.code for confound in description.confounds]


def test_the_timeline_is_whole_and_agrees_with_the_guest(live):
    marks, splits = live.timeline.marks, live.timeline.splits
    order = (
        *(Phase.REQUESTED, Phase.CREATED, Phase.VCPU_RUNNING, Phase.KERNEL_ENTERED, Phase.FIRST_INSTRUCTION),
        *(Phase.AGENT_ANSWERED, Phase.READY),
    )
    assert [marks[phase] for phase in order] == sorted({marks[phase] for phase in order})
    assert Phase.LOADER not in marks
    # The guest's clock starts with its kernel, after QEMU and the firmware.
    assert 0 < splits["guest.kernel"] < live.timeline.between(Phase.CREATED, Phase.FIRST_INSTRUCTION) + 0.05
    assert 0 < splits["guest.init"] < live.timeline.between(Phase.FIRST_INSTRUCTION, Phase.READY) + 0.05


def test_a_hundred_megabytes_there_and_back(live):
    """More than the guest agent can carry, and than fits into the guest twice: each way waits for the other."""
    content = os.urandom(2**20) * 100
    done = live.execute(Command(("cat",), stdin=content, timeout_s=120))
    assert (done.returncode, done.stdout) == (0, content[-KEPT_BYTES:])
    assert done.whole["stdout"].read() == content


def test_guest_and_host_agree_on_a_duration(live):
    done = live.execute(Command(("sleep", "1")))
    assert done.guest_duration_s == pytest.approx(done.duration_s, abs=0.1)


def test_processes_are_bounded(live):
    done = live.execute(shell("for i in $(seq 100); do sleep 1 & done; wait", timeout_s=120))
    assert done.returncode != 0
    assert b"fork" in done.stderr
    live.execute(Command(("sleep", "1.2")))


def test_orphans_are_reaped(live):
    live.execute(shell("for i in 1 2 3; do (sh -c 'sleep 0.2 & exit 0'); done; sleep 0.6"))
    states = live.execute(shell("cat /proc/[0-9]*/stat | grep -c ') Z '")).stdout
    assert states == b"0\n"


def test_vcpus_have_a_cpu_each_and_nothing_leaves_the_envelope(live):
    names = {}
    for task in Path(f"/proc/{live.pid}/task").iterdir():
        affinity = os.sched_getaffinity(int(task.name))
        assert affinity <= set(CPUS)
        names[(task / "comm").read_text().strip()] = affinity
    vcpus = [affinity for name, affinity in sorted(names.items()) if name.startswith("CPU ")]
    assert not vcpus or vcpus == [{cpu} for cpu in CPUS]  # named only where libvirt asks QEMU to name threads


def test_qemu_was_born_in_its_cgroup(live):
    used = live.usage()
    spent = sum(map(int, Path(f"/proc/{live.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    seconds = spent / os.sysconf("SC_CLK_TCK")
    # All that the process ever used, its first steps included; its own counters tick in hundredths.
    assert used.cpu_s >= seconds - 0.1
    assert live.pid in live._running.cgroup.members()


def test_everything_qemu_runs_is_in_the_guests_cgroup(live):
    folders = {str(folder.name) for folder in live._running.cgroup.folders}
    live.execute(shell(f"dd if=/dev/zero of={SCRATCH}/some bs=1M count=4 oflag=direct; rm {SCRATCH}/some"))
    for task in Path(f"/proc/{live.pid}/task").iterdir():
        joined = {line.rpartition("/")[2] for line in (task / "cgroup").read_text().splitlines()}
        assert folders <= joined, (task / "comm").read_text()
    named = [pid for pid, line in command_lines() if f"vmlive-{os.getpid()}" in line and pid != os.getpid()]
    assert set(named) == set(live._running.cgroup.members())


def test_cpu_time_of_the_vcpus_is_told_from_the_rest(live):
    before, steal_before = live.usage(), live.guest_steal_s()
    live.execute(Command(("python3", "-c", "import time\nwhile time.process_time() < 0.5: pass")))
    after, steal_after = live.usage(), live.guest_steal_s()
    used = after.cpu_s - before.cpu_s
    assert 0.4 < after.cpu_vcpu_s - before.cpu_vcpu_s < used
    assert after.cpu_vcpu_s < after.cpu_s
    assert 0 <= steal_before <= steal_after


def test_memory_is_told_by_its_parts(live):
    before = live.footprint()
    live.execute(shell("head -c 48000000 /dev/zero | tr '\\0' x > /dev/shm/held"))
    held = live.footprint()
    live.execute(shell("rm /dev/shm/held"))
    assert before.guest_ram_bytes < held.guest_ram_bytes <= ENVELOPE.memory_bytes
    rest = held.pss_bytes - held.guest_ram_bytes - (held.tcg_cache_bytes or 0)
    assert 5 * 2**20 < rest < 120 * 2**20
    if accel.Accelerator(live._setup.acceleration.accelerator) is accel.Accelerator.TCG:
        assert 20 * 2**20 < held.tcg_cache_bytes <= TB_CACHE_MIB * 2**20
    assert 0 < held.disk_owned_bytes < ENVELOPE.scratch_bytes < held.disk_shared_bytes


def test_too_little_memory(guests):
    with pytest.raises(BackendError, match="did not start") as caught, guests.start(memory_bytes=48 * 2**20):
        pass
    assert "more memory" in caught.value.remedy


def test_a_damaged_disk(guests, image, tmp_path):
    damaged = tmp_path / "disk"
    damaged.write_bytes(os.urandom(1 << 20))
    broken = msgspec.structs.replace(image, disk=damaged)
    with pytest.raises(BackendError, match="mounting /lower: Invalid argument") as caught, guests.start(image=broken):
        pass
    assert "superblock" in caught.value.evidence
    assert "build it again" in caught.value.remedy


def test_a_damaged_initramfs(guests, image, tmp_path):
    damaged = tmp_path / "initramfs"
    damaged.write_bytes(os.urandom(1 << 16))
    broken = msgspec.structs.replace(image, initramfs=damaged)
    with pytest.raises(BackendError, match="the guest's kernel panicked") as caught, guests.start(image=broken):
        pass
    assert "Kernel panic - not syncing" in caught.value.evidence


def test_a_file_that_is_no_kernel(guests, image, tmp_path):
    damaged = tmp_path / "vmlinuz"
    damaged.write_bytes(os.urandom(1 << 20))
    broken = msgspec.structs.replace(image, kernel=damaged)
    with pytest.raises(BackendError, match="libvirt could not start the guest") as caught, guests.start(image=broken):
        pass
    assert "kernel" in caught.value.evidence


def test_a_guest_that_is_not_ready_in_time(guests, monkeypatch):
    def impatient(*arguments):
        """libvirt has started it; what is late is its kernel."""
        monkeypatch.setattr("tare.backends.vm.boot.BOOT_DEADLINE_S", 0.05)
        boot.await_boot(*arguments)

    monkeypatch.setattr("tare.backends.vm.guest.await_boot", impatient)
    with (
        pytest.raises(BackendError, match=r"did not start: its kernel did not reach user space within 0\.05 s"),
        guests.start(),
    ):
        pass


def test_a_panic_in_the_middle(guests):
    with guests.start() as instance:
        with pytest.raises(BackendError, match="kernel panicked") as caught:
            instance.execute(shell("echo c > /proc/sysrq-trigger; sleep 60"))
        assert "sysrq" in caught.value.evidence
        with pytest.raises(BackendError, match="the guest is gone"):
            instance.execute(Command(("true",)))


def test_a_guest_agent_that_is_killed(guests):
    with guests.start() as instance:
        # The guest gives up at once: whether the killer is seen to end before that is chance.
        with contextlib.suppress(BackendError):
            instance.execute(shell("kill -9 $(grep -l qemu-ga /proc/[0-9]*/comm | cut -d/ -f3)"))
        instance._running.watch.wait(lambda: False, time.monotonic() + 60)
        with pytest.raises(BackendError, match="the guest agent was ended by signal 9"):
            instance.execute(Command(("true",)))


def test_qemu_killed_in_the_middle(guests):
    with guests.start() as instance:
        killer = threading.Timer(0.5, os.kill, (instance.pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(BackendError, match="QEMU ended"):
            instance.execute(Command(("sleep", "60")))
        killer.join()


def test_a_guest_that_hangs_is_destroyed(guests, monkeypatch):
    monkeypatch.setattr("tare.backends.vm.instance.AGENT_DEADLINE_S", 1)
    with guests.start() as instance:
        pid = instance.pid
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(BackendError, match=r"destroyed|QEMU ended"):
            instance.execute(Command(("true",)))
        assert not Path(f"/proc/{pid}").exists()


def test_a_full_disk_under_the_guest_is_an_error_inside(ledger, cache, image, tmp_path):
    run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(tmp_path)], timeout_s=10)
    try:
        backend = make_backend(ledger, tmp_path, cache)
        description = backend.prepare(image, ENVELOPE)
        with backend.start(InstanceSpec(f"vmtest-{os.getpid()}-full", image, ENVELOPE)) as instance:
            done = instance.execute(shell(f"dd if=/dev/zero of={SCRATCH}/big bs=1M count=48 && sync -f {SCRATCH}"))
            assert done.returncode != 0
            assert instance.execute(Command(("true",))).returncode == 0
        backend.close()
    finally:
        run(["umount", str(tmp_path)], timeout_s=10)
    assert "scratch_disk" in description.texts


def test_guests_that_start_together_all_answer(guests):
    asked = [guests.start(cpus=CPUS) for _ in range(4)]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(asked)) as pool:
        started = list(pool.map(lambda one: one.__enter__(), asked))
        for one in asked:
            stack.push(one)
        for number, instance in enumerate(started):
            assert instance.execute(Command(("echo", str(number)))).stdout == f"{number}\n".encode()
        for instance in started:
            instance.end()
    assert [pid for pid in (instance.pid for instance in started) if Path(f"/proc/{pid}").exists()] == []


def test_restored_guests_go_on_with_a_time_and_random_numbers_of_their_own(ledger, cache, image, tmp_path):
    backend = make_backend(ledger, tmp_path, cache, start="restore")
    description = backend.prepare(image, ENVELOPE)
    assert "restored-memory" in {confound.code for confound in description.confounds}
    drawn = set()
    for number in range(2):
        with backend.start(InstanceSpec(f"vmtest-{os.getpid()}-r{number}", image, ENVELOPE)) as instance:
            script = f"cd {SCRATCH} && [ ! -e mine ] && echo x > mine && sync mine && head -c 16 /dev/urandom"
            drawn.add(instance.execute(shell(script)).stdout)
            before = time.time()
            told = float(instance.execute(Command(("date", "+%s.%N"))).stdout)
            # The host's time is that of when it asked the agent to set the guest's.
            assert before - instance.timeline.between(Phase.FIRST_INSTRUCTION, Phase.READY) - 0.1 < told < time.time()
        marks = list(instance.timeline.marks.items())
        order = [phase for phase in Phase if phase not in {Phase.LOADER, Phase.KERNEL_ENTERED, Phase.GUEST_DOWN}]
        assert [phase for phase, _ in sorted(marks, key=lambda mark: mark[1])] == order
        assert instance.timeline.splits == {}, "it did not boot"
    assert [len(one) for one in drawn] == [16, 16]
    larger = msgspec.structs.replace(ENVELOPE, memory_bytes=256 * 2**20)
    with pytest.raises(BackendError, match="memory_bytes = 201326592, and 268435456 was asked for"):
        backend.start(InstanceSpec(f"vmtest-{os.getpid()}-other", image, larger)).__enter__()
    os.truncate(backend._setup.saved.file, 2**20)
    with pytest.raises(BackendError, match=r"libvirt could not start the guest|did not start"):
        backend.start(InstanceSpec(f"vmtest-{os.getpid()}-short", image, ENVELOPE)).__enter__()
    backend.close()
    assert_nothing_left(f"vmtest-{os.getpid()}-")


def test_a_guest_that_is_asked_powers_off_by_itself(ledger, cache, image, tmp_path, monkeypatch):
    backend = make_backend(ledger, tmp_path, cache, stop="shutdown")
    backend.prepare(image, ENVELOPE)
    with backend.start(InstanceSpec(f"vmtest-{os.getpid()}-down", image, ENVELOPE)) as instance:
        instance.execute(shell(f"setsid sleep 600 >{SCRATCH}/held 2>&1 & exit 0"))
        pid = instance.pid
    marks = instance.timeline.marks
    phases = [Phase.READY, Phase.STOP_REQUESTED, Phase.GUEST_DOWN, Phase.PROCESS_GONE, Phase.STOPPED]
    assert [marks[phase] for phase in phases] == sorted(marks[phase] for phase in phases)
    assert not Path(f"/proc/{pid}").exists()
    monkeypatch.setattr("tare.backends.vm.boot._POWER_OFF_DEADLINE_S", 1)
    with (
        pytest.raises(BackendError, match="did not power off when it was asked to"),
        backend.start(InstanceSpec(f"vmtest-{os.getpid()}-stuck", image, ENVELOPE)) as instance,
    ):
        os.kill(instance.pid, signal.SIGSTOP)
    backend.close()
    assert_nothing_left(f"vmtest-{os.getpid()}-")


CHILD = """
import sys, time
from pathlib import Path
import msgspec
from tare.backends.vm.backend import VirtualMachine
from tare.backends.vm.options import VmOptions
from tare.bench.interfaces import BackendContext
from tare.bench.ledger import Ledger
from tare.bench.model import Command, Envelope, Image, InstanceSpec
folder, cache, image, envelope, name = sys.argv[1:]
image = msgspec.json.decode(image, type=Image, dec_hook=lambda _, text: Path(text))
envelope = msgspec.json.decode(envelope, type=Envelope)
with Ledger(Path(folder) / "ledger") as ledger:
    backend = VirtualMachine(BackendContext(ledger, Path(folder) / "work", Path(cache), VmOptions(), ()))
    backend.prepare(image, envelope)
    print("prepared", flush=True)
    with backend.start(InstanceSpec(name, image, envelope)) as instance:
        print("ready", instance.execute(Command(("echo", "hello"))).stdout.decode().strip(), flush=True)
        sys.stdin.read()
    backend.close()
"""


@pytest.fixture
def child(cache, image, backend, tmp_path):
    """Starts another process that starts a guest; its stdin's end stops it."""
    name = f"vmchild-{os.getpid()}"
    given = [msgspec.json.encode(value, enc_hook=str).decode() for value in (image, ENVELOPE)]
    argv = [sys.executable, "-c", CHILD, str(tmp_path), str(cache), *given, name]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        if process.poll() is None:
            process.kill()
    clean(tmp_path / "ledger")
    assert_nothing_left(name)


def test_two_tares_at_once(child, live):
    assert child.stdout.readline() == "prepared\n"
    assert child.stdout.readline() == "ready hello\n"
    assert live.execute(Command(("echo", "here"))).stdout == b"here\n"
    child.stdin.close()
    assert child.wait(timeout=60) == 0
    assert live.execute(Command(("echo", "still"))).stdout == b"still\n"


@pytest.mark.parametrize("moment", ["while libvirt starts QEMU", "while it boots", "when it is ready"])
def test_a_killed_tare_leaves_nothing_after_cleaning(child, tmp_path, moment):
    name = f"vmchild-{os.getpid()}"
    assert child.stdout.readline() == "prepared\n"
    match moment:
        case "while libvirt starts QEMU":
            time.sleep(0.03)
        case "while it boots":
            time.sleep(1.0)
            assert [line for _, line in command_lines() if f"guest={name}" in line]
        case _:
            assert child.stdout.readline() == "ready hello\n"
    child.kill()
    child.wait()
    cleaned = clean(tmp_path / "ledger")
    assert cleaned.failed == ()
    assert_nothing_left(name)
    assert list((tmp_path / "work").iterdir()) == []
    assert list((tmp_path / "ledger").iterdir()) == []
    assert list(Path("/run").glob(f"tare-libvirt-{child.pid}-*")) == []


def test_a_command_that_prints_without_end_is_ended(guests, monkeypatch):
    monkeypatch.setattr("tare.bench.spool.MAX_OUTPUT_BYTES", 8 * 2**20)
    with pytest.raises(OutputTooLargeError, match="cat printed more than 8 MiB"), guests.start() as instance:
        instance.execute(Command(("cat", "/dev/zero")))


def test_qemu_has_given_up_root_in_every_thread(live):
    """Neither an id nor a capability of root's, nothing to get them back with, and an id of no other guest."""
    statuses = [path.read_text() for path in Path(f"/proc/{live.pid}/task").glob("*/status")]
    assert len(statuses) > 2
    ids = set()
    for status in statuses:
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        ids |= {*fields["Uid"].split(), *fields["Gid"].split(), *fields["Groups"].split()}
        assert [fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == ["0" * 16] * 4
        assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    (own,) = ids
    assert int(own) >= 61184
    assert own not in {line.split(":")[2] for line in Path("/etc/passwd").read_text().splitlines()}
