"""A machine that may be spoilt: a copy-on-write view of this one, with device nodes, /tmp and /run of its own.

What hostile images and workloads get at, if something lets them out, is this view: a change of any file of the host's
is kept in a layer in memory, where it is found by listing it. Processes, networks and settings of the kernel are the
real ones. Images are read-only in it.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

_INSIDE = "TARE_CAMPAIGN_LAYER"
_NODES = (
    *("null c 1 3 666", "zero c 1 5 666", "full c 1 7 666", "random c 1 8 666", "urandom c 1 9 666", "tty c 5 0 666"),
    "kvm c 10 232 660",
)
_SCRIPT = """
set -e
base=$1 images=$2 where=$PWD; shift 2
root=$base/root
mount -t tmpfs -o size=1g,mode=755 tmpfs "$base/over"
mkdir "$base/over/upper" "$base/over/work"
mount -t overlay -o "lowerdir=/,upperdir=$base/over/upper,workdir=$base/over/work" overlay "$root"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir -p "$root$base"
mount -t tmpfs -o mode=755 tmpfs "$root$base"
mkdir "$root$base/real" "$root$base/over" "$root$base/old"
mount --bind "$base/real" "$root$base/real"
mount --bind "$base/over" "$root$base/over"
for folder in "$where" "$images"; do  # a checkout or a cache below /tmp is not in this /tmp
    if [ ! -d "$root$folder" ] || [ "$folder" = "$images" ]; then
        mkdir -p "$root$folder"
        mount --bind "$folder" "$root$folder"
        mount -o remount,ro,bind "$root$folder"
    fi
done
mount --rbind /proc "$root/proc"
mount --rbind /sys "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
while read -r name kind major minor mode; do
    mknod -m "$mode" "$root/dev/$name" "$kind" "$major" "$minor"
done <<END
%s
END
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/net"
mknod -m 666 "$root/dev/net/tun" c 10 200
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
cd "$root"
pivot_root . "$root$base/old"
umount -l "$base/old"
cd "$where"
exec "$@"
"""


def layer() -> Path | None:
    """Where changes of the host's files are kept, if this process is in such a view."""
    value = os.environ.get(_INSIDE)
    return Path(value) if value else None


def enter(base: Path, images: Path, argv: Sequence[str]) -> None:
    """Become ``argv`` in a view of its own; ``base`` is an empty folder on a disk. ``base/real`` is really there."""
    for name in ("over", "root", "real"):
        (base / name).mkdir()
    os.environ[_INSIDE] = str(base / "over/upper")
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    script = _SCRIPT % "\n".join(_NODES)
    sealed = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", script, "sh", str(base), str(images)]
    os.execvp(sealed[0], [*sealed, *argv])


def changed(upper: Path, allowed: Sequence[Path]) -> list[str]:
    """The files of the host's that were changed, made or removed, but below ``allowed``."""
    found = []
    for path in sorted(upper.rglob("*")):
        place = Path("/") / path.relative_to(upper)
        above = any(one.is_relative_to(place) for one in allowed)
        if not above and not any(place.is_relative_to(one) for one in allowed):
            found.append(str(place))
    return found


def real_folder() -> Path:
    """A folder of the view that is really on a disk."""
    upper = layer()
    assert upper is not None
    return upper.parents[1] / "real"


if __name__ == "__main__":
    from tare.bench.locations import cache_directory

    enter(Path(sys.argv[1]), cache_directory() / "images", [sys.executable, "-m", "tests.campaign", *sys.argv[2:]])
