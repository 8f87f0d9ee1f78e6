"""Images and commands of somebody who means harm: a corpus of any size from a seed. Pure but for the base's files.

An image is a tar of a small root file system with up to three evils in it, possibly damaged as bytes at the end. A
command runs in a good image, with python3 and coreutils, as root of a container.
"""

import bz2
import gzip
import io
import itertools
import json
import lzma
import random
import re
import subprocess
import tarfile
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

Chance = random.Random
Member = tuple[tarfile.TarInfo, bytes]
Members = list[Member]


class HostileImage(NamedTuple):
    """``evils`` are the names of what was done to it."""

    evils: tuple[str, ...]
    archive: bytes


class HostileCommand(NamedTuple):
    """``argv`` for a container. ``timeout_s`` is what it is given."""

    evil: str
    argv: tuple[str, ...]
    timeout_s: int


@cache
def base() -> tuple[tuple[str, bytes, int], ...]:
    """The host's shell and /bin/true with their libraries: name, content, mode."""
    found: dict[str, tuple[str, bytes, int]] = {}
    for program in ("/bin/sh", "/bin/true"):
        real = Path(program).resolve()
        listed = subprocess.run(["ldd", str(real)], capture_output=True, text=True, check=True).stdout
        for name in (program, *re.findall(r"(/\S+)", listed)):
            found[name] = (name[1:], Path(name).resolve().read_bytes(), 0o755)
    return tuple(found.values())


def entry(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", **fields: object) -> Member:
    """A member of a tar, with any field as odd as wanted."""
    made = tarfile.TarInfo(name)
    made.type, made.size, made.mode = kind, len(content), 0o755
    for field, value in fields.items():
        setattr(made, field, value)
    return made, content


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> Member:
    """A symbolic or hard link."""
    return entry(name, kind, linkname=target)


_HOST_PLACES = ("/etc/shadow", "/etc/passwd", "/root", "/dev", "/proc", "/sys", "/tmp", "/var/tmp", "/", "/dev/null")
_UP = "../" * 12


def _mount_point_is_a_link(chance: Chance) -> Members:
    return [link(chance.choice(("proc", "sys", "dev", "scratch", "tmp", "etc")), chance.choice(_HOST_PLACES))]


def _mount_point_is_a_file(chance: Chance) -> Members:
    return [entry(chance.choice(("proc", "sys", "dev", "scratch", "tmp")), content=b"x")]


def _link_to_the_host(chance: Chance) -> Members:
    names = ("etc/passwd", "etc/group", "etc/hostname", "etc/resolv.conf", "var/lib/dpkg/status", "etc/mtab", "run")
    target = chance.choice(_HOST_PLACES)
    return [link(chance.choice(names), chance.choice((target, _UP + target)))]


def _climbs_out(chance: Chance) -> Members:
    names = (_UP + "tmp/evil", "/tmp/evil", "a/../../../../tmp/evil", "./../tmp/evil", "//tmp//evil")
    return [entry(chance.choice(names), content=b"evil")]


def _writes_through_a_link(chance: Chance) -> Members:
    target = chance.choice(("/tmp", "/var/tmp", "/root", _UP + "tmp"))
    return [link("way", target), entry("way/evil", content=b"evil"), entry("way/deeper/evil", content=b"evil")]


def _hard_link_out(chance: Chance) -> Members:
    targets = ("/etc/shadow", _UP + "etc/passwd", "not-there", "way", "/dev/null")
    return [link("way", "/etc"), link("hard", chance.choice(targets), tarfile.LNKTYPE)]


def _device_nodes(chance: Chance) -> Members:
    major, minor = chance.choice(((1, 1), (1, 3), (8, 0), (254, 0), (10, 232), (5, 1), (4095, 1 << 19)))
    kind = chance.choice((tarfile.CHRTYPE, tarfile.BLKTYPE))
    return [entry(chance.choice(("dev/null", "node", "etc/node")), kind, devmajor=major, devminor=minor, mode=0o666)]


def _special_files(chance: Chance) -> Members:
    kind = chance.choice((tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"Z"))
    return [entry(chance.choice(("bin/sh", "etc/passwd", "bin/true", "proc", "etc/hostname")), kind)]


def _setuid_and_attributes(chance: Chance) -> Members:
    names = ("security.capability", "trusted.overlay.opaque", "trusted.overlay.redirect", "user.overlay.whiteout")
    name = chance.choice((*names, "system.posix_acl_access", "security.selinux", "evil"))
    value = chance.choice(("y", "/etc", "\x01\x00\x00\x02" + "\xff" * 16, ""))
    return [entry("bin/su", content=b"#!/bin/sh\n", mode=0o6755, pax_headers={f"SCHILY.xattr.{name}": value})]


def _odd_fields(chance: Chance) -> Members:
    odd = (
        {"mtime": "1e300"}, {"mtime": "nan"}, {"mtime": "-1"}, {"uid": "-5"}, {"uid": str(2**40)}, {"gid": "x"},
        {"path": "nul\0name"}, {"path": "x" * 5000}, {"path": "\x1b]0;evil\x07\x1b[2J"}, {"path": "line\nfeed"},
        {"size": "-1"}, {"size": str(2**62)}, {"linkpath": "y" * 5000}, {"charset": "none"}, {"uname": "\x1b[31m"},
    )  # fmt: skip
    return [entry("odd", pax_headers=dict(chance.choice(odd)))]


def _whiteouts(chance: Chance) -> Members:
    names = (".wh.", ".wh..", ".wh..wh..opq", ".wh.bin", ".wh.etc", "bin/.wh.sh", ".wh.../..", "etc/.wh..wh.plnk")
    return [entry(chance.choice(names))]


def _interpreter_is_the_first_process(chance: Chance) -> Members:
    line = chance.choice(("/proc/self/exe", "/proc/1/exe", "/proc/self/fd/0", "/bin/sh " + "x" * 300, "/bin/true"))
    return [entry(chance.choice(("bin/sh", "bin/true")), content=f"#!{line}\n".encode())]


def _programs_are_none(chance: Chance) -> Members:
    content = chance.choice((b"", b"\x7fELF", b"\x7fELF" + b"\xff" * 60, b"MZ", b"\0" * 4096))
    return [entry(chance.choice(("bin/sh", "bin/true", "lib64/ld-linux-x86-64.so.2")), content=content)]


def _deep_or_many(chance: Chance) -> Members:
    if chance.random() < 0.5:
        return [entry("/".join(["d"] * chance.choice((90, 150, 1500))), tarfile.DIRTYPE)]
    return [entry(f"many/{number}", content=b"") for number in range(chance.choice((500, 3000)))]


def _no_rights(chance: Chance) -> Members:
    return [entry(chance.choice(("bin", "etc", "lib")), tarfile.DIRTYPE, mode=chance.choice((0, 0o1000, 0o7777)))]


def _accounts(chance: Chance) -> Members:
    line = chance.choice((b"root::0:0::/:/bin/sh\n", b"\xff" * 100, b"root:x:4294967295:-1::\n", b"a:" * 50_000))
    return [entry(chance.choice(("etc/passwd", "etc/group", "etc/os-release")), content=line)]


EVILS: tuple[Callable[[Chance], Members], ...] = (
    _mount_point_is_a_link, _mount_point_is_a_file, _link_to_the_host, _climbs_out, _writes_through_a_link,
    _hard_link_out, _device_nodes, _special_files, _setuid_and_attributes, _odd_fields, _whiteouts,
    _interpreter_is_the_first_process, _programs_are_none, _deep_or_many, _no_rights, _accounts,
)  # fmt: skip


def _tar(members: Members) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content, mode in base():
            tar.addfile(*_addable(*entry(name, content=content, mode=mode)))
        for made, content in members:
            tar.addfile(*_addable(made, content))
    return out.getvalue()


def _addable(made: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, io.BytesIO | None]:
    return made, io.BytesIO(content) if content else None


def _damaged(tar: bytes, chance: Chance) -> bytes:
    at = chance.randrange(len(tar))
    how = chance.choice(("cut", "flip", "junk", "twice"))
    if how == "cut":
        return tar[:at]
    if how == "flip":
        return tar[:at] + bytes([tar[at] ^ 1 << chance.randrange(8)]) + tar[at + 1 :]
    return tar[:at] + chance.randbytes(512) + tar[at:] if how == "junk" else tar + tar


def _packed(tar: bytes, chance: Chance) -> bytes:
    how = chance.choice(("gzip", "bz2", "xz"))
    if how == "gzip":
        return gzip.compress(tar, 1, mtime=0)
    return bz2.compress(tar, 1) if how == "bz2" else lzma.compress(tar, preset=0)


def _bomb(_tar: bytes, chance: Chance) -> bytes:
    sparse = io.BytesIO()
    with tarfile.open(fileobj=sparse, mode="w", format=tarfile.PAX_FORMAT) as tar:
        size = str(1 << chance.randrange(38, 45))
        headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": size}
        tar.addfile(*_addable(*entry("bomb", content=b"0\n".ljust(512, b"\0"), pax_headers=headers)))
    return gzip.compress(b"\0" * (100 << 20), 1, mtime=0) if chance.random() < 0.5 else sparse.getvalue()


def _layout(tar: bytes, chance: Chance) -> bytes:
    """An OCI or docker archive whose JSON has the wrong shape somewhere."""
    wrong: tuple[object, ...] = (None, [], {}, "x", 5, [[]], {"digest": "sha256:../../etc"}, "sha256:" + "0" * 64, True)
    index = {"schemaVersion": 2, "manifests": chance.choice((*wrong, [{"digest": chance.choice(wrong), "size": -1}]))}
    layers = chance.choice((*wrong, ["../l.tar"]))
    docker = chance.choice((*wrong, [{"Config": chance.choice(wrong), "Layers": layers}]))
    deep = ("[" * 20_000).encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(*_addable(*entry("oci-layout", content=b'{"imageLayoutVersion": "1.0.0"}')))
        name, text = chance.choice((("index.json", index), ("manifest.json", docker)))
        content = deep if chance.random() < 0.15 else json.dumps(text).encode()
        archive.addfile(*_addable(*entry(name, content=content)))
        archive.addfile(*_addable(*entry("l.tar", content=tar[:4096])))
    return out.getvalue()


def images(seed: int) -> Iterator[HostileImage]:
    """Images without end; the same for the same seed."""
    for number in itertools.count():
        chance = random.Random(f"image {seed} {number}")
        first = EVILS[number % len(EVILS)]
        chosen = [first, *chance.sample(EVILS, chance.choice((0, 0, 1, 2)))]
        tar = _tar([member for evil in chosen for member in evil(chance)])
        evils = tuple(evil.__name__.strip("_") for evil in chosen)
        last = chance.choices((None, _damaged, _packed, _bomb, _layout), (6, 2, 2, 1, 2))[0]
        if last is None:
            yield HostileImage(evils, tar)
        else:
            yield HostileImage((*evils, last.__name__.strip("_")), last(tar, chance))


def commands(seed: int) -> Iterator[HostileCommand]:
    """Commands without end: each kind once in a random order, then again with other numbers."""
    scripts = tomllib.loads(Path(__file__).with_name("hostile.toml").read_text("utf-8"))
    kinds = [(program, name) for program, named in scripts.items() for name in named]
    for number in itertools.count():
        chance = random.Random(f"command {seed} {number}")
        for program, name in chance.sample(kinds, len(kinds)):
            text = scripts[program][name]
            if program == "python3":
                text = text.format(seed=chance.randrange(10**6))
            yield HostileCommand(name, (program, "-c", text), chance.choice((1, 2, 3)))
