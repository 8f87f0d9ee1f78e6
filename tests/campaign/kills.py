"""Random kills and signals over the commands: nothing is lost, doubled or left, and exit codes are as documented."""

import io
import json
import random
import signal
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from tare.bench.errors import TareError
from tare.bench.store import attempt_of, find_progress, load_histograms, load_run
from tests.campaign.after_power_cuts import shape_of
from tests.campaign.machine import HUNG, Place, signal_after, wait

SUITE = """
[suite]
name = "campaign"
[envelope]
memory = "128MiB"
scratch = "16MiB"
[sampling]
seed = 18
blocks = 2
iterations = 2
warmup = 0
{backends}
[[workload]]
name = "tick"
command = ["sh", "-c", "sleep 0.15; echo rate: 5"]
timeout = "20s"
[[workload.metric]]
name = "rate"
unit = "1/s"
direction = "higher"
description = "A rate."
regex = '^rate: (.+)$'
[[experiment]]
kind = "boot"
[[experiment]]
kind = "steady"
workload = "tick"
"""
BACKENDS = '[[backend]]\ntype = "bare-metal"\n[[backend]]\ntype = "native"\n'
GUESTS = '[[backend]]\ntype = "vm"\n'
SIGNALS = (*(signal.SIGKILL,) * 3, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ENDED_WELL = frozenset({0, 5})
INTERRUPTED = 130


class Figures(msgspec.Struct):
    """What a campaign found. ``tried`` are the commands that were hit while they ran, by name."""

    tried: Counter[str] = msgspec.field(default_factory=Counter)
    ended_before: int = 0
    lost: int = 0
    doubled: int = 0
    left: int = 0
    wrong_codes: int = 0
    hung: int = 0
    problems: list[str] = []

    @property
    def failures(self) -> int:
        return self.lost + self.doubled + self.left + self.wrong_codes + self.hung

    def note(self, what: str, problem: str) -> None:
        setattr(self, what, getattr(self, what) + 1)
        self.problems.append(f"{what}: {problem}")


class Kills:
    """Kills and signals, one command after another, in ``place``."""

    def __init__(self, place: Place, seed: int, *, guests: bool = False) -> None:
        self.place = place
        self.chance = random.Random(seed)
        self.figures = Figures()
        self.suite = place.folder / "suite.toml"
        self.suite.write_text(SUITE.format(backends=GUESTS if guests else BACKENDS))
        self.archive = place.folder / "tree.tar"
        _write_archive(self.archive)
        self.whole = [place.folder / "whole-1", place.folder / "whole-2"]
        self._numbers = iter(range(10**9))
        self._durations: dict[str, float] = {}
        self._scenes: Mapping[str, Callable[[], None]] = {
            "run": self._run,
            "resume": self._resume,
            "density": self._density,
            "exec": self._exec,
            "import": self._import,
            "report": self._report,
            "compare": self._compare,
            "clean": self._clean,
        }
        self._weights = (6, 3, 2, 2, 2, 2, 2, 3)
        if guests:
            self._scenes, self._weights = {"run": self._run, "resume": self._resume}, (3, 1)

    def prepare(self) -> None:
        """Two whole runs, and how long a run takes."""
        for path in self.whole:
            began = time.monotonic()
            code = self.place.run("run", str(self.suite), "--output", str(path), "--no-report")
            assert code == 0, self.place.said()
            self._durations["run"] = time.monotonic() - began

    def one(self) -> None:
        """One command of a random kind, hit at a random moment by a random signal; then everything is looked at."""
        (kind,) = self.chance.choices([*self._scenes], self._weights)
        try:
            self._scenes[kind]()
        except (TareError, AssertionError, OSError, ValueError) as error:
            self.figures.note("lost", f"{kind}: {type(error).__name__}: {error}")
        self._leave_nothing(kind)

    def _hit(self, kind: str, *arguments: str, env: dict[str, str] | None = None) -> int:
        """Start a command and hit it; its exit status, which is looked at."""
        number = self.chance.choice(SIGNALS)
        delay_s = self.chance.random() * self._durations.get(kind, 0.6) * 1.1
        before = set(self.place.left())
        began = time.monotonic()
        pid = self.place.start(*arguments, env=env)
        hit = signal_after(pid, delay_s, number)
        if hit and number is not signal.SIGKILL and self.chance.random() < 0.2:
            signal_after(pid, self.chance.random() * 0.1, number)  # somebody who presses ctrl-C again
        code = wait(pid)
        took = time.monotonic() - began
        if not hit:
            self._durations[kind] = took
            self.figures.ended_before += 1
        else:
            self.figures.tried[kind] += 1
        told = f"{kind} {number.name} after {delay_s:.2f} s ended with {code}"
        if code == HUNG:
            self.figures.note("hung", told)
        elif not self._is_documented(code, number, before, hit=hit):
            self.figures.note("wrong_codes", f"{told}: {self.place.said()[-2000:]}")
        return code

    def _is_documented(self, code: int, number: signal.Signals, before: set[str], *, hit: bool) -> bool:
        if code in ENDED_WELL:
            return True
        if hit and number is signal.SIGKILL:
            return code == -signal.SIGKILL
        # A signal that comes before tare is loaded ends the process by itself, and nothing has been made by then.
        return hit and (code == INTERRUPTED or (code == -number and before >= set(self.place.left())))

    def _leave_nothing(self, kind: str) -> None:
        code = self.place.run("clean")
        if code != 0:
            self.figures.note("wrong_codes", f"clean after {kind} ended with {code}: {self.place.said()[-1000:]}")
        for left in self.place.left():
            self.figures.note("left", f"after {kind}: {left}")

    def _folder(self, kind: str) -> Path:
        return self.place.folder / f"{kind}-{next(self._numbers)}"

    def _run(self) -> None:
        path = self._folder("run")
        self._hit("run", "run", str(self.suite), "--output", str(path), "--no-report")
        self._look_at(path, resume=self.chance.random() < 0.7)

    def _resume(self) -> None:
        """A run that is killed, and killed again while it goes on."""
        path = self._folder("run")
        self._hit("run", "run", str(self.suite), "--output", str(path), "--no-report")
        if (path / "manifest.json").exists() and load_run(path).manifest.status != "complete":
            before = _records(path)
            self._hit("resume", "run", "--resume", str(path), "--no-report")
            self._compare_kept(path, before)
        self._look_at(path, resume=True)

    def _look_at(self, path: Path, *, resume: bool) -> None:
        if not (path / "manifest.json").exists():
            return
        before = _records(path)
        if resume and load_run(path).manifest.status != "complete":
            code = self.place.run("run", "--resume", str(path), "--no-report")
            if code not in ENDED_WELL:
                self.figures.note("wrong_codes", f"resume ended with {code}: {self.place.said()[-2000:]}")
                return
        self._compare_kept(path, before)
        if load_run(path).manifest.status == "complete":
            missing = _measured(self.whole[0]) - _measured(path)
            if missing:
                self.figures.note("lost", f"{path.name}: {sorted(missing)} were never measured")

    def _compare_kept(self, path: Path, before: dict[str, list[object]]) -> None:
        after = _records(path)
        for planned, records in before.items():
            if after.get(planned) != records:
                self.figures.note("lost", f"{path.name}: {planned} had {len(records)} records, and they are others now")
        run = load_run(path)
        counted = Counter((attempt_of(one.instance)[0], one.metric, one.iteration) for one in run.samples)
        attempts = Counter(attempt_of(name)[0] for name in {one.instance for one in run.samples})
        for key, count in [*counted.items(), *attempts.items()]:
            if count > 1:
                self.figures.note("doubled", f"{path.name}: {key} is there {count} times")

    def _density(self) -> None:
        path = self._folder("density")
        size = ["--count", "12", "--memory", "64MiB", "--output", str(path), "--no-report"]
        self._hit("density", "density", "native", *size)
        if (path / "manifest.json").exists() and load_run(path).manifest.status != "complete":
            code = self.place.run("run", "--resume", str(path), "--no-report")
            if code not in ENDED_WELL:
                self.figures.note("wrong_codes", f"resumed density ended with {code}: {self.place.said()[-2000:]}")

    def _exec(self) -> None:
        self._hit("exec", "exec", self.chance.choice(("native", "bare-metal")), "--", "sleep", "0.2")

    def _import(self) -> None:
        """Either the whole image is there afterwards or none, and importing again works."""
        cache = {"TARE_CACHE_DIR": str(self.place.folder / "cache")}
        self._hit("import", "image", "import", str(self.archive), "--name", "tree", env=cache)
        self.place.run("clean", env=cache)
        images = self.place.folder / "cache" / "images"
        for image in [*images.iterdir()] if images.is_dir() else ():
            if self.place.run("image", "verify", image.name, env=cache) != 0:
                self.figures.note("lost", f"half an image: {self.place.said()[-1000:]}")
        if self.place.run("image", "import", str(self.archive), "--name", "tree", env=cache) != 0:
            self.figures.note("lost", f"importing again: {self.place.said()[-1000:]}")
        self.place.run("image", "remove", "tree", env=cache)
        building = self.place.folder / "cache" / "building"
        for left in building.iterdir() if building.is_dir() else ():
            self.figures.note("left", f"after import: {left}")

    def _report(self) -> None:
        form, suffix = self.chance.choice((("html", "html"), ("json", "json"), ("markdown", "md"), ("junit", "xml")))
        file = self.place.folder / f"report.{suffix}"
        earlier = file.read_bytes() if file.exists() else None
        self._hit("report", "report", str(self.whole[0]), "--format", form, "--output", str(file))
        self._look_at_file(file, earlier)

    def _compare(self) -> None:
        file = self.place.folder / "compared.json"
        earlier = file.read_bytes() if file.exists() else None
        runs = [str(path) for path in self.whole]
        self._hit("compare", "compare", *runs, "--format", "json", "--output", str(file))
        self._look_at_file(file, earlier)

    def _look_at_file(self, file: Path, earlier: bytes | None) -> None:
        """A file is the earlier one or whole, and nothing half-written is next to it."""
        content = file.read_bytes() if file.exists() else None
        if content is not None and content != earlier and not _is_whole(file.suffix, content):
            self.figures.note("lost", f"{file.name} is half written: {len(content)} bytes")
        self.place.run("clean")
        for left in file.parent.glob(".tare-*"):
            self.figures.note("left", str(left))

    def _clean(self) -> None:
        """What a killed run left is removed by a second ``clean`` if the first is hit."""
        pid = self.place.start("run", str(self.suite), "--output", str(self._folder("run")), "--no-report")
        signal_after(pid, self.chance.random() * self._durations["run"], signal.SIGKILL)
        wait(pid)
        self._hit("clean", "clean")


def _measured(path: Path) -> set[str]:
    """The planned instances of which there are samples, whatever tare takes for done."""
    return {planned for planned, *_ in shape_of(load_run(path))}


def _records(path: Path) -> dict[str, list[object]]:
    """The samples and distributions of the planned instances that are done."""
    run = load_run(path)
    done = find_progress(run).done
    found: dict[str, list[object]] = {}
    for record in (*run.samples, *load_histograms(run)):
        planned, _ = attempt_of(record.instance)
        if planned in done:
            found.setdefault(planned, []).append(record)
    return found


def _is_whole(suffix: str, content: bytes) -> bool:
    match suffix:
        case ".json":
            try:
                return bool(json.loads(content))
            except ValueError:
                return False
        case ".html":
            return content.rstrip().endswith(b"</html>")
        case ".xml":
            return content.rstrip().endswith(b"</testsuites>")
    return content.endswith(b"\n")


def _write_archive(path: Path) -> None:
    """A tree of 800 small files in 40 folders, with links, and a shell's name in it."""
    with tarfile.open(path, "w") as tar:
        for number in range(40):
            folder = tarfile.TarInfo(f"usr/d{number}")
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
            for file in range(20):
                content = f"{number} {file}\n".encode() * 50
                info = tarfile.TarInfo(f"usr/d{number}/f{file}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
