"""mountinfo is read whole, whatever is in the names of mount points."""

from pathlib import Path

import pytest

from tare.bench.linux.mounts import find_mount, parse_mountinfo

MOUNTS = rb"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,errors=remount-ro
23 22 0:5 / /mnt/tab\011and\012line\134back rw - tmpfs none rw
24 22 8:1 /sub\040folder /mnt/my\040disk rw shared:7 master:2 - ext4 /dev/sda1 rw
25 22 8:2 / /mnt/my\040disk/inner rw - xfs /dev/sdb1 rw
26 22 0:9 / /srv/\303\251\377 rw - nfs4 host:/x\0401 rw
not a mount
27 22 0:10 /
"""


def test_the_octal_escapes_are_undone():
    mounts = parse_mountinfo(MOUNTS)
    assert [str(mount.point) for mount in mounts[:3]] == ["/", "/mnt/tab\tand\nline\\back", "/mnt/my disk"]
    assert bytes(mounts[4].point) == b"/srv/\xc3\xa9\xff"
    assert (mounts[2].root, mounts[2].source, mounts[2].device) == ("/sub folder", "/dev/sda1", "8:1")
    assert mounts[0].options == ("rw", "errors=remount-ro")
    assert mounts[4].source == "host:/x 1"
    assert len(mounts) == 5


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("/", "/dev/vda"),
        ("/mnt/my", "/dev/vda"),
        ("/mnt/my disk", "/dev/sda1"),
        ("/mnt/my disk too", "/dev/vda"),
        ("/mnt/my disk/inner/x", "/dev/sdb1"),
    ],
)
def test_a_path_lies_on_the_mount_nearest_above_it(path, source):
    assert find_mount(Path(path), parse_mountinfo(MOUNTS)).source == source


def test_of_two_mounts_on_one_point_the_last_hides_the_first():
    twice = MOUNTS + rb"28 24 8:3 / /mnt/my\040disk rw - ext4 /dev/sdc rw"
    assert find_mount(Path("/mnt/my disk/x"), parse_mountinfo(twice)).source == "/dev/sdc"
    assert find_mount(Path("/x"), []) is None
