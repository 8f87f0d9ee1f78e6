"""The small parts around a guest: QEMU's wrapper, the scratch disk, the names that host and guest share."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tare.backends.distribution import MASKED_UNITS
from tare.backends.vm import boot, domain_xml, guest
from tare.backends.vm.disks import allocated_bytes, copy_sparse, make_scratch_template
from tare.backends.vm.emulator import (
    BORN_VARIABLE,
    JOIN_VARIABLE,
    choose_identity,
    confinement,
    find_emulator,
    parse_version,
)
from tare.backends.vm.options import Profile, VmOptions
from tare.bench.errors import BackendError
from tare.bench.image import guest as guest_side
from tare.bench.ledger import MARKER_VARIABLE, Ledger
from tare.bench.linux.files import HostRoots
from tare.bench.model import Envelope
from tare.bench.process import find_tool

DATA = Path(__file__).parents[1] / "data"


def test_host_and_guest_use_the_same_names():
    sources = "".join(source.read_text() for source in guest_side.SOURCES)
    named = [domain_xml.AGENT_PORT, domain_xml.COMMAND_PORT, domain_xml.IMAGE_SERIAL, domain_xml.SCRATCH_SERIAL]
    envelope = Envelope((1,), 2**28, 2**28, 99)
    for profile in Profile:
        arguments = (word.partition("=")[0] for word in boot.kernel_arguments(VmOptions(profile=profile), envelope))
        named += [name for name in arguments if name.startswith("tare.")]
    assert len(set(named)) > 6
    assert all(f'"{name}"' in sources for name in named)


def test_a_boot_loader_s_guest_is_told_by_the_machine_what_others_are_told_by_their_command_line():
    envelope = Envelope((1,), 2**28, 2**28, 99)
    full, firmware = (
        boot.kernel_arguments(VmOptions(profile=profile), envelope) for profile in (Profile.FULL, Profile.FIRMWARE)
    )
    assert sorted(full) == sorted({*firmware, *boot.LOADER_ARGUMENTS} - {"tare.parameters=smbios"})
    assert all(argument.startswith("tare.") for argument in firmware)
    assert "tare.profile=full" in firmware
    minimal = boot.kernel_arguments(VmOptions(), envelope)
    assert not [argument for argument in minimal if "profile" in argument or "systemd" in argument]


def test_a_microvm_is_told_where_its_devices_are():
    envelope = Envelope((1,), 2**28, 2**28, 99)
    plain = boot.kernel_arguments(VmOptions(balloon="on"), envelope)
    microvm = boot.kernel_arguments(VmOptions(balloon="on", machine=domain_xml.Machine.MICROVM), envelope)
    assert set(microvm) - set(plain) == {"pci=off", "tare.modules=virtio_mmio,virtio_balloon"}
    assert "virtio_mmio" in guest_side.OPTIONAL_MODULES


def test_guests_and_containers_mask_the_same_units():
    source = Path(guest_side.__file__).with_name("system.c").read_text()
    table = source[source.index("masked[] = {") :].partition("};")[0]
    assert set(re.findall(r'"([^"]+)"', table)) == set(MASKED_UNITS)


def test_qemu_is_limited_in_all_that_the_guest_does_not_limit_itself():
    envelope = Envelope((1,), 2**28, 2**28, 99, cpu_quota=0.5, cpu_weight=50, io_write_bytes_per_s=2**20)
    limits = guest.guest_limits(envelope, "254:0")
    rates = {"io_device": "254:0", "io_write_bytes_per_s": 2**20}
    assert limits == {"cpus": (1,), "cpu_quota": 0.5, "cpu_weight": 50, "swap_bytes": 0, **rates}


def test_modules_come_after_what_they_need():
    dep = "k/a.ko: k/b.ko k/c-d.ko\nk/b.ko: k/c-d.ko\nk/c-d.ko:\nk/other.ko:\n"
    assert guest_side.order_modules(dep, "", ("a",)) == ("k/c-d.ko", "k/b.ko", "k/a.ko")
    assert guest_side.order_modules(dep, "", ("c_d", "a")) == ("k/c-d.ko", "k/b.ko", "k/a.ko")


def test_built_in_modules_are_left_out_and_missing_ones_refused():
    assert guest_side.order_modules("", "kernel/fs/ext4/ext4.ko\n", ("ext4",)) == ()
    with pytest.raises(guest_side.UnsupportedKernelError, match="no module erofs"):
        guest_side.order_modules("", "", ("erofs",))
    with pytest.raises(guest_side.UnsupportedKernelError, match="compressed modules"):
        guest_side.order_modules("k/a.ko.xz:\n", "", ("a",))


def test_version_of_qemu():
    printed = (DATA / "qemu-7.2.22/version.txt").read_text()
    assert parse_version(printed) == "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)"
    assert parse_version("QEMU emulator version 9.1.0\n") == "9.1.0"


@pytest.fixture
def fake_qemu(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "qemu-system-x86_64"
    program.parent.mkdir()
    script = '#!/bin/sh\n[ "$1" != --version ] || { echo QEMU emulator version 1.2.3; exit; }\n'
    program.write_text(f'{script}echo "$$ ${MARKER_VARIABLE} $*"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


def test_the_wrapper_joins_reports_and_becomes_qemu(fake_qemu, tmp_path):
    emulator = find_emulator(tmp_path / "cache")
    assert (emulator.program, emulator.version) == (fake_qemu, "1.2.3")
    joined, born = [tmp_path / "with space", tmp_path / "b"], tmp_path / "born"
    environment = {JOIN_VARIABLE: "\n".join(map(str, joined)), BORN_VARIABLE: str(born), MARKER_VARIABLE: "mine"}
    done = subprocess.run([emulator.wrapper, "-a", "b c"], env=environment, capture_output=True, text=True, check=True)
    assert [file.read_text() for file in joined] == ["0\n", "0\n"]
    assert done.stdout == f"{born.read_text().strip()} mine -a b c\n"


def test_a_probing_qemu_carries_a_mark_too(fake_qemu, tmp_path):
    wrapper = find_emulator(tmp_path / "cache").wrapper
    argv = [wrapper, "-pidfile", "/run/x/lib/qemu/qmp-Ab12/qmp.pid"]
    done = subprocess.run(argv, env={}, capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "/run/x"


def test_a_cgroup_that_cannot_be_joined_stops_qemu(fake_qemu, tmp_path):
    wrapper = find_emulator(tmp_path / "cache").wrapper
    done = subprocess.run([wrapper], env={JOIN_VARIABLE: "/no/such/folder/file"}, capture_output=True, check=False)
    assert done.returncode != 0
    assert done.stdout == b""


def test_another_qemu_gets_another_wrapper_and_the_same_the_same(fake_qemu, tmp_path):
    first = find_emulator(tmp_path / "cache").wrapper
    written = first.stat().st_ctime_ns
    assert find_emulator(tmp_path / "cache").wrapper == first
    assert first.stat().st_ctime_ns == written
    with fake_qemu.open("a") as file:
        file.write("# newer\n")
    assert find_emulator(tmp_path / "cache").wrapper != first


def test_a_sparse_copy_is_the_same_and_as_small(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.truncate(64 << 20)
        for at in (0, 10 << 20, (64 << 20) - 4096):
            file.seek(at)
            file.write(os.urandom(4096))
    copy_sparse(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert allocated_bytes(target) <= allocated_bytes(source) + 65536


def test_a_copy_of_nothing_but_a_hole(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.truncate(1 << 20)
    copy_sparse(source, target)
    assert target.read_bytes() == bytes(1 << 20)


@pytest.mark.tools
def test_the_scratch_template_is_a_sound_and_small_ext4(tmp_path):
    if find_tool("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 (e2fsprogs) is not installed")
    template = tmp_path / "template"
    with Ledger(tmp_path / "ledger") as ledger:
        make_scratch_template(ledger, template, 256 << 20)
        assert ledger.entries() == ()
    assert template.stat().st_size == 256 << 20
    assert allocated_bytes(template) < 2 << 20
    subprocess.run([find_tool("e2fsck"), "-fn", template], check=True, capture_output=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ledger", "template"]


@pytest.mark.tools
def test_a_scratch_disk_that_is_too_small_is_refused(tmp_path):
    if find_tool("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 (e2fsprogs) is not installed")
    refused = pytest.raises(BackendError, match="could not make a scratch disk of 65536 bytes")
    with Ledger(tmp_path / "ledger") as ledger, refused:
        make_scratch_template(ledger, tmp_path / "template", 65536)


@pytest.mark.parametrize(
    ("uid_map", "first", "last"),
    [
        ("         0          0 4294967295\n", 2_000_000_000, 2_000_065_535),
        ("         0     100000      65536\n", 61184, 65519),
        ("         0          0          1\n         1     100000      65536\n", 61184, 65519),
        ("         0       1000          1\n", None, None),
        ("", None, None),
    ],
)
def test_qemu_gets_an_id_that_is_mapped_here_and_nobody_s(tmp_path, uid_map, first, last):
    (tmp_path / "self").mkdir()
    (tmp_path / "self/uid_map").write_text(uid_map)
    chosen = {choose_identity(HostRoots(tmp_path)) for _ in range(20)}
    if first is None:
        assert chosen == {None}
    else:
        assert len(chosen) > 10
        assert all(first <= one <= last for one in chosen)


@pytest.mark.parametrize(
    ("identity", "version", "given"),
    [
        (2_000_000_001, "7.2.22 (Debian 1:7.2+dfsg-7)", ("-runas", "2000000001:2000000001")),
        (5, "8.2.2", ("-runas", "5:5")),
        (5, "10.0.2", ("-run-with", "user=5:5")),
        (None, "7.2.22", ()),
    ],
)
def test_qemu_is_told_to_give_up_root_and_what_its_sandbox_denies(identity, version, given):
    option, sandbox, *rest = confinement(identity, version)
    assert option == "-sandbox"
    elevate = "deny" if identity is None else "allow"
    assert sandbox == f"on,obsolete=deny,elevateprivileges={elevate},spawn=deny,resourcecontrol=deny"
    assert tuple(rest) == given
