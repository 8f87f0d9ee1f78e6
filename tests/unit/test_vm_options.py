"""What a suite may ask of guests: what cannot be is refused, with its key or the host's reason."""

from pathlib import Path

import pytest

from tare.backends.vm import disks
from tare.backends.vm.connection import explain, parse_security_models
from tare.backends.vm.disks import DiskMode, choose_scratch_mode, have_direct_io
from tare.backends.vm.domain_xml import Accelerator
from tare.backends.vm.guest import _remedy
from tare.backends.vm.options import parse_cpu_models, probe_huge_pages, probe_io_uring, require_cpu_model
from tare.bench.errors import SuiteError, UnavailableError
from tare.bench.linux.files import HostRoots
from tare.bench.registry import find_backends
from tare.bench.suite import bind_suite, read_suite
from tests.unit.fakes import WORKLOADS

CAPABILITIES = (Path(__file__).parents[1] / "data/libvirt-9.0.0/domain-capabilities-tcg.xml").read_text()

SUITE = """
[suite]
name = "options"
[[backend]]
type = "vm"
options = {{ {options} }}
[[experiment]]
kind = "boot"
"""


def backends_of(tmp_path, options):
    file = tmp_path / "suite.toml"
    file.write_text(SUITE.format(options=options))
    return bind_suite(read_suite(file, find_backends(), WORKLOADS)).backends


@pytest.mark.parametrize(
    ("options", "place", "problem"),
    [
        ('io = "native", cache = "writeback"', "options", 'io = "native" needs cache = "none" or "directsync"'),
        ('start = "restore", disk_format = "qcow2"', "options", 'start = "restore" needs disk_format = "raw"'),
        ('start = "restore", scratch = "virtiofs"', "options", 'start = "restore" needs scratch = "disk"'),
        ('start = "restore", connection = "qemu:///system"', "options", 'needs connection = "qemu:///embed"'),
        ('start = "restore", network = "tap"', "options", 'start = "restore" needs network = "none"'),
        ('start = "restore", profile = "full"', "options", 'start = "restore" needs profile = "minimal"'),
        ('io = ["threads", "native"], cache = "unsafe"', "options", 'io = "native" needs cache'),
        ('accel = "tcg", machine = "microvm"', "options", 'machine = "microvm" needs KVM'),
        ('machine = ["q35", "microvm"], profile = "firmware"', "options", 'needs machine = "q35"'),
        ('machine = "microvm", disk_bus = "virtio-scsi"', "options", "needs iothread = false on a microvm"),
        ('machine = "microvm", memory_backing = "memfd", scratch = "virtiofs"', "options", 'needs machine = "q35"'),
        ('machine = "pc"', "options.machine", "must be one of"),
        ('accel = "tcg", cpu_model = "host-passthrough"', "options", 'cpu_model = "host-passthrough" needs KVM'),
        ('connection = "xen:///system"', "options", "is no QEMU driver of libvirt's: those are qemu:///embed"),
        ('connection = "system"', "options", "is no QEMU driver"),
        ('connection = "qemu+ssh://there/system"', "options", "is a driver on another host"),
        ('connection = "qemu://there/system"', "options", "is a driver on another host"),
        ('connection = "qemu:///session"', "options", "libvirt has none for root, as which guests run: qemu:///system"),
        ('connection = "qemu:///"', "options", "names no driver that there is: qemu:///embed, qemu:///system"),
        ('connection = "qemu:///embed?root=/x"', "options", 'the embedded driver is "qemu:///embed"'),
        ('scratch = "virtiofs"', "options", 'scratch = "virtiofs" needs memory that its server can map'),
        (
            'scratch = "virtiofs", memory_backing = "memfd", cache = "none"',
            "options",
            'cache = "none" is for a disk, and with scratch = "virtiofs" there is none',
        ),
        ("balloon = true", "options.balloon", "Expected `str`"),
        (
            'connection = "qemu:///system", network = "tap"',
            "options",
            'network = "tap" needs connection = "qemu:///embed"',
        ),
        ('cpu_model = "a b"', "options.cpu_model", "regex"),
        ('memory_backing = "huge"', "options.memory_backing", "must be one of"),
        ('profile = "whole"', "options.profile", "must be one of"),
        ("cache = []", "options.cache", "a list without a value"),
    ],
)
def test_what_cannot_be_is_refused_when_the_suite_is_read(tmp_path, options, place, problem):
    with pytest.raises(SuiteError) as caught:
        backends_of(tmp_path, options)
    assert caught.value.place.endswith(f": backend[0].{place}")
    assert problem in caught.value.message


def test_a_whole_distribution_needs_its_packages_and_memory(tmp_path, monkeypatch):
    (choice,) = backends_of(tmp_path, 'profile = "full"')
    assert "systemd-sysv" in choice.type.packages(choice.options)
    monkeypatch.setattr("tare.backends.vm.backend.SYSTEM_MEMORY_BYTES", 1 << 50)
    with pytest.raises(SuiteError, match=r'backend\[0\].options: profile = "full" needs memory = '):
        backends_of(tmp_path, 'profile = "full"')
    assert backends_of(tmp_path, 'profile = "minimal"')


def test_apart_needs_another_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3})
    with pytest.raises(SuiteError, match=r'backend\[0\].options: pinning = "apart" needs a host CPU'):
        backends_of(tmp_path, 'pinning = "apart"')
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3})
    assert backends_of(tmp_path, 'pinning = "apart"')[0].options.pinning == "apart"


def test_a_microvm_is_a_backend_beside_the_other(tmp_path):
    found = backends_of(
        tmp_path, 'machine = ["q35", "microvm"], balloon = "on", disk_bus = "virtio-scsi", iothread = false'
    )
    assert [choice.name for choice in found] == ["vm:machine=q35", "vm:machine=microvm"]
    modules = [choice.options.modules for choice in found]
    assert modules == [("virtio_scsi", "sd_mod", "virtio_balloon"), ("virtio_mmio", *modules[0])]


def test_each_value_of_a_list_is_a_backend(tmp_path):
    found = backends_of(tmp_path, 'accel = "tcg", disk_format = ["raw", "qcow2"], iothread = [true, false]')
    assert [choice.name for choice in found] == [
        "vm:disk_format=raw,iothread=true",
        "vm:disk_format=raw,iothread=false",
        "vm:disk_format=qcow2,iothread=true",
        "vm:disk_format=qcow2,iothread=false",
    ]
    assert [choice.options.iothread for choice in found] == [True, False, True, False]


@pytest.mark.parametrize(
    ("cache", "io", "direct", "mode"),
    [
        ("auto", "auto", True, ("none", "native")),
        ("auto", "auto", False, ("writeback", "threads")),
        ("directsync", "auto", True, ("directsync", "native")),
        ("auto", "io_uring", False, ("writeback", "io_uring")),
        ("writethrough", "auto", True, ("writethrough", "threads")),
    ],
)
def test_how_the_scratch_disk_is_opened(tmp_path, monkeypatch, cache, io, direct, mode):
    monkeypatch.setattr(disks, "have_direct_io", lambda _: direct)
    assert choose_scratch_mode(tmp_path, cache, io) == DiskMode(*mode)


@pytest.mark.parametrize(
    ("cache", "io", "key"), [("none", "auto", "cache"), ("directsync", "native", "cache"), ("auto", "native", "io")]
)
def test_direct_io_that_the_storage_lacks_is_refused(monkeypatch, cache, io, key):
    monkeypatch.setattr(disks, "have_direct_io", lambda _: False)
    with pytest.raises(
        UnavailableError, match=f"options.{key}: .* needs direct I/O, .* /there does not have"
    ) as caught:
        choose_scratch_mode(Path("/there"), cache, io)
    assert "envelope.storage" in caught.value.remedy


def test_direct_io_is_tried_and_leaves_no_file(tmp_path):
    assert have_direct_io(tmp_path) in {True, False}
    assert list(tmp_path.iterdir()) == []


def test_cpu_models_of_this_libvirt():
    models = parse_cpu_models(CAPABILITIES)
    assert (models["maximum"], models["host-passthrough"], models["Westmere"], models["EPYC"]) == (
        True,
        False,
        True,
        False,
    )
    assert "custom" not in models
    assert parse_cpu_models("<domainCapabilities/>") == {}


@pytest.mark.parametrize(
    ("model", "why", "choose"),
    [
        ("host-passthrough", "is not possible under tcg", "auto"),
        ("EPYC", "lacks features that this host cannot give", "auto"),
        ("Westmer", "is not known to libvirt", "auto, Westmere"),
    ],
)
def test_a_cpu_model_that_cannot_be_had_is_refused(model, why, choose):
    with pytest.raises(UnavailableError, match=f"options.cpu_model: {model} {why}") as caught:
        require_cpu_model(model, Accelerator.TCG, CAPABILITIES)
    assert choose in caught.value.remedy
    require_cpu_model("Westmere", Accelerator.TCG, CAPABILITIES)


@pytest.fixture
def proc(tmp_path):
    (tmp_path / "sys/kernel").mkdir(parents=True)
    return tmp_path


def meminfo(proc, total, free, reserved):
    text = "MemTotal:  100 kB\nHugePages_Total: {}\nHugePages_Free: {}\nHugePages_Rsvd: {}\nHugepagesize:  2048 kB\n"
    (proc / "meminfo").write_text(text.format(total, free, reserved))


def test_huge_pages_that_are_promised_are_not_free(proc):
    meminfo(proc, 200, 130, 3)
    assert probe_huge_pages(roots=HostRoots(proc)).available
    assert probe_huge_pages(127 * 2**21, HostRoots(proc)).available
    short = probe_huge_pages(127 * 2**21 + 1, HostRoots(proc))
    assert (short.available, short.reason) == (False, "127 huge pages of 2 MiB are free, and a guest needs 128")
    assert "vm.nr_hugepages" in short.remedy
    meminfo(proc, 3, 3, 3)
    assert not probe_huge_pages(roots=HostRoots(proc)).available
    (proc / "meminfo").write_text("MemTotal:  100 kB\n")
    assert probe_huge_pages(roots=HostRoots(proc)).reason == "this kernel has no huge pages"


def test_io_uring_may_be_switched_off(proc):
    assert probe_io_uring(HostRoots(proc)).available
    for value, available in (("0", True), ("1", True), ("2", False)):
        (proc / "sys/kernel/io_uring_disabled").write_text(f"{value}\n")
        assert probe_io_uring(HostRoots(proc)).available is available


@pytest.mark.parametrize(
    ("said", "why", "remedy"),
    [
        (
            "Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file or directory",
            "is not answered by a daemon",
            "systemctl start libvirtd",
        ),
        (
            "Failed to connect socket to '/var/run/libvirt/libvirt-sock': Permission denied",
            "may not be opened",
            "run tare as root",
        ),
        ("authentication unavailable: no polkit agent available", "may not be opened", "join the group"),
        ("no connection driver available for qemu:///system", "does not open", "virsh -c 'qemu:///system' version"),
    ],
)
def test_why_a_connection_does_not_open(said, why, remedy):
    (why_not, what_to_do) = explain("qemu:///system", said)
    assert why_not == f"{why}: {said}"
    assert remedy in what_to_do


def test_security_models_of_a_daemon():
    host = "<host><secmodel><model>none</model></secmodel><secmodel><model>dac</model></secmodel></host>"
    assert parse_security_models(f"<capabilities>{host}</capabilities>") == ("dac",)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("qemu-system-x86_64: unable to map backing store for guest RAM: Cannot allocate memory", "more huge pages"),
        ("Failed to connect socket to '/run/libvirt/virtlogd-sock': No such file or directory", "start virtlogd"),
        ("internal error: hugetlbfs filesystem is not mounted or disabled by administrator config", "-t hugetlbfs"),
    ],
)
def test_what_a_start_lacked_is_told(said, remedy):
    assert remedy in _remedy(f"libvirt could not start the guest: {said}", "")
