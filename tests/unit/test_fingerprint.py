"""The name of a host: the same whatever runs on it, another on another host."""

import pytest

from tare.bench.host import host_fingerprint
from tare.bench.linux.files import HostRoots

CPUINFO = "processor\t: 0\nmodel name\t: A CPU @ 3.00GHz\ncpu MHz\t\t: {mhz}\n"


@pytest.fixture
def roots(tmp_path):
    for name in ("proc", "etc", "sys/class/dmi/id", "sys/devices/system/memory"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text(CPUINFO.format(mhz="2100.1"))
    (tmp_path / "proc/meminfo").write_text("MemTotal:       16303428 kB\nMemFree: 1 kB\n")
    (tmp_path / "etc/machine-id").write_text("3d1219c7\n")
    return HostRoots(proc=tmp_path / "proc", sys=tmp_path / "sys", etc=tmp_path / "etc")


def test_clocks_and_a_kernel_that_keeps_more_memory_do_not_change_it(roots):
    before = host_fingerprint(roots)
    (roots.proc / "cpuinfo").write_text(CPUINFO.format(mhz="3900.0"))
    (roots.proc / "meminfo").write_text("MemTotal:       16299000 kB\nMemFree: 9 kB\n")
    assert host_fingerprint(roots) == before
    assert before.made_from["memory"] == "16 GiB"
    assert before.made_from["cpu model"] == "A CPU @ 3.00GHz"
    assert "3d1219c7" not in str(before)


@pytest.mark.parametrize(
    ("file", "content", "part"),
    [
        ("etc/machine-id", "other", "machine"),
        ("proc/cpuinfo", "model name : B", "cpu model"),
        ("proc/meminfo", "MemTotal: 33303428 kB", "memory"),
    ],
)
def test_another_host_has_another(roots, file, content, part):
    before = host_fingerprint(roots)
    (roots.proc.parent / file).write_text(content)
    after = host_fingerprint(roots)
    assert after.digest != before.digest
    assert [name for name, value in after.made_from.items() if value != before.made_from[name]] == [part]


def test_the_firmware_s_identifier_stands_in_and_memory_is_counted_in_blocks_where_there_are_any(roots):
    (roots.etc / "machine-id").unlink()
    without = host_fingerprint(roots)
    (roots.sys / "class/dmi/id/product_uuid").write_text("AB-CD\n")
    memory = roots.sys / "devices/system/memory"
    (memory / "block_size_bytes").write_text("8000000\n")
    for block in (0, 1, 40):
        (memory / f"memory{block}").mkdir()
    found = host_fingerprint(roots)
    assert without.made_from["machine"] == "" != found.made_from["machine"]
    assert found.made_from["memory"] == f"{3 * 0x8000000} B"
