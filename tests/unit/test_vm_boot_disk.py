"""The disk that a guest's firmware boots from, as other tools read it."""

import subprocess

import pytest

from tare.backends.vm.disks import find_or_make_boot_disk, probe_boot_disk
from tare.bench.errors import BackendError


@pytest.fixture
def parts(tmp_path):
    found = probe_boot_disk()
    if not found.available:
        pytest.skip(found.reason)
    kernel, initramfs = tmp_path / "kernel", tmp_path / "initramfs"
    kernel.write_bytes(b"k" * 14_000_000)
    initramfs.write_bytes(b"i" * 1_000_000)
    return kernel, initramfs


@pytest.mark.tools
def test_it_boots_and_holds_what_is_booted(parts, tmp_path):
    cache = tmp_path / "cache"
    disk = find_or_make_boot_disk(*parts, ("console=ttyS0", "quiet"), cache)
    sector = disk.read_bytes()[:512]
    assert sector[510:] == b"\x55\xaa"
    assert b"SYSLINUX" in sector
    for part, name in zip(parts, ("vmlinuz", "initramfs"), strict=True):
        held = subprocess.run(["mcopy", "-i", disk, f"::/{name}", "-"], capture_output=True, check=True).stdout
        assert held == part.read_bytes()
    told = subprocess.run(["mcopy", "-i", disk, "::/syslinux.cfg", "-"], capture_output=True, check=True).stdout
    assert told.startswith(b"SERIAL")
    assert b"APPEND console=ttyS0 quiet\n" in told
    # The same is not made again; with another command line it is another disk.
    made = disk.stat().st_ctime_ns
    assert find_or_make_boot_disk(*parts, ("console=ttyS0", "quiet"), cache).stat().st_ctime_ns == made
    assert find_or_make_boot_disk(*parts, ("console=ttyS0",), cache) != disk
    assert len(list(cache.iterdir())) == 2


@pytest.mark.tools
def test_what_cannot_be_made_leaves_nothing(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("tare.backends.vm.disks._SPARE_MIB", -2)
    with pytest.raises(BackendError, match="could not make the disk that the firmware boots from"):
        find_or_make_boot_disk(*parts, (), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
