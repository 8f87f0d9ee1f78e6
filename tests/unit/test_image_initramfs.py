import stat
import subprocess
from pathlib import Path

import pytest

from tare.bench.errors import ImageError
from tare.bench.image.guest import module_files
from tare.bench.initramfs import Member, order_modules, pack

DATA = Path(__file__).parents[1] / "data/linux-6.1"
DEPENDENCIES = (DATA / "modules.dep").read_text()
BUILTIN = (DATA / "modules.builtin").read_text()


def test_each_module_comes_after_all_that_it_needs() -> None:
    order = module_files(DEPENDENCIES, BUILTIN)["order"]
    assert isinstance(order, bytes)
    names = order.decode().split()
    needs = {
        line.partition(":")[0].rsplit("/", 1)[-1]: [path.rsplit("/", 1)[-1] for path in line.partition(":")[2].split()]
        for line in DEPENDENCIES.splitlines()
    }
    for position, name in enumerate(names):
        assert set(needs[name]) <= set(names[:position])
    assert {"virtio_blk.ko", "virtio_pci.ko", "erofs.ko", "overlay.ko"} <= set(names)


def test_what_is_in_the_kernel_needs_no_file_and_what_is_nowhere_is_refused() -> None:
    assert order_modules(DEPENDENCIES, BUILTIN, ("ext4",)) == ()
    with pytest.raises(ImageError, match="no module zfs"):
        order_modules(DEPENDENCIES, BUILTIN, ("zfs",))


MEMBERS = [
    Member("init", stat.S_IFREG | 0o755, b"program"),
    Member("modules", stat.S_IFDIR | 0o755),
    Member("modules/order", stat.S_IFREG | 0o644, b"a.ko\n"),
]


def parse(archive: bytes) -> list[tuple[str, int, bytes]]:
    """An independent reader of the format, after the kernel's description of it."""
    found, at = [], 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name_size, size = fields[11], fields[6]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        begin = (at + 110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found.append((name, fields[1], archive[begin : begin + size]))
        at = (begin + size + 3) // 4 * 4


def test_the_archive_holds_its_members_in_order() -> None:
    assert parse(pack(MEMBERS)) == [(member.path, member.mode, member.data) for member in MEMBERS]


@pytest.mark.tools
def test_cpio_reads_it(tmp_path: Path) -> None:
    listed = subprocess.run(["cpio", "-t"], input=pack(MEMBERS[:3]), capture_output=True, check=False)
    assert listed.returncode == 0
    assert listed.stdout.decode().split() == ["init", "modules", "modules/order"]


def test_the_same_members_give_the_same_bytes() -> None:
    assert pack(MEMBERS) == pack(list(MEMBERS))
    assert pack(MEMBERS) != pack(MEMBERS[:-1])
