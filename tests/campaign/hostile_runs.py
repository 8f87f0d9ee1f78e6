"""Hostile images imported and started, hostile commands run: nothing outside changes, hangs or is a bug in tare."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tare.bench.locations import cache_directory
from tests.campaign.hostile import HostileCommand, HostileImage, commands, images
from tests.campaign.kills import Figures
from tests.campaign.machine import HUNG, Place, read_host
from tests.campaign.sealed import changed, layer

BUG = 70
IMPORTED = frozenset({0, 3, 6})
MARGIN_S = 5.0
"""How much later than its timeout a command may be over, next to what an instance takes to start and stop here."""
_STRAYS = tuple(Path(folder, "evil") for folder in ("/tmp", "/var/tmp", "/root", "/", "/etc", "/dev"))


class _Hostile:
    def __init__(self, place: Place) -> None:
        self.place = place
        self.figures = Figures()
        self._host = read_host()
        self._changed: set[str] = set()

    def look(self, what: str) -> None:
        """Whether the host is as it was and nothing is left."""
        strays = [str(path) for path in _STRAYS if path.is_symlink() or path.exists()]
        for problem in (*read_host().changes(self._host), *strays, *self._newly_changed()):
            self.figures.note("left", f"{what}: {problem}")
        self._host = read_host()
        if left := self.place.left():
            self.figures.note("left", f"{what}: {left}")
            self.place.run("clean")

    def _newly_changed(self) -> list[str]:
        """The files of the host's that were changed since the last look, if this is a view that may be spoilt."""
        upper = layer()
        if upper is None:
            return []
        own = [self.place.folder, cache_directory(), Path("/dev"), Path("/tmp"), Path("/run")]
        now = set(changed(upper, own))
        new, self._changed = sorted(now - self._changed), now
        return [f"{path} was changed" for path in new]

    def judge(self, what: str, code: int, took_s: float, allowed_s: float) -> None:
        """Whether it ended as it may, and in time."""
        said = self.place.said()
        if code == HUNG or took_s > allowed_s:
            self.figures.note("hung", f"{what}: {took_s:.1f} s of {allowed_s:.1f} s")
        elif code == BUG or "bug in tare" in said:
            self.figures.note("wrong_codes", f"{what} ended with {code}: {said[-2000:]}")


class HostileImages(_Hostile):
    """Each image is imported into a cache of the campaign's own, started if that worked, and removed."""

    def __init__(self, place: Place, seed: int) -> None:
        super().__init__(place)
        self._images: Iterator[HostileImage] = images(seed)
        self._archive = place.folder / "image.tar"
        self._env = {"TARE_CACHE_DIR": str(place.folder / "cache")}
        (place.folder / "cache").mkdir(mode=0o700)
        for program in cache_directory().glob("native-zygote-*"):
            shutil.copy(program, place.folder / "cache")

    def prepare(self) -> None:
        """Nothing but the corpus is needed."""

    def one(self) -> None:
        """The next image."""
        image = next(self._images)
        what = " + ".join(image.evils)
        self.figures.tried["image"] += 1
        self._archive.write_bytes(image.archive)
        code = self._run(what, "image", "import", str(self._archive), "--name", "evil")
        if code not in IMPORTED:
            self.figures.note("wrong_codes", f"{what}: the import ended with {code}: {self.place.said()[-2000:]}")
        if code == 0:
            self.figures.tried["start"] += 1
            self._run(what, "exec", "native", "--memory", "64MiB", "--timeout", "3s", "--", "/bin/true")
            self._run(what, "image", "remove", "evil")
        self.look(what)

    def _run(self, what: str, *arguments: str) -> int:
        began = time.monotonic()
        code = self.place.run(*arguments, env=self._env)
        self.judge(f"{what}: {arguments[0]} {arguments[1]}", code, time.monotonic() - began, 30.0)
        return code


class HostileCommands(_Hostile):
    """Each command runs in a container of its own from the newest image of the cache."""

    def __init__(self, place: Place, seed: int) -> None:
        super().__init__(place)
        self._commands: Iterator[HostileCommand] = commands(seed)
        self._overhead_s = 0.0

    def prepare(self) -> None:
        """How long a container takes here that does nothing."""
        began = time.monotonic()
        code = self.place.run("exec", "native", "--", "true")
        assert code == 0, self.place.said()
        self._overhead_s = time.monotonic() - began

    def one(self) -> None:
        """The next command."""
        command = next(self._commands)
        self.figures.tried["command"] += 1
        limits = ("--memory", "128MiB", "--timeout", f"{command.timeout_s}s")
        began = time.monotonic()
        code = self.place.run("exec", "native", *limits, "--", *command.argv)
        allowed_s = command.timeout_s + MARGIN_S + self._overhead_s
        self.judge(command.evil, code, time.monotonic() - began, allowed_s)
        self.look(command.evil)
