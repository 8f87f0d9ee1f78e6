"""The contract tests as anybody runs them: from an empty folder, on a backend of theirs; and what they find wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = """
import contextlib, time
from pathlib import Path
from tare.bench.model import Completed
from tare.bench.testing.fake import Fake, FakeInstance

class WrongCode(FakeInstance):
    def execute(self, command):
        done = super().execute(command)
        return Completed(done.argv, 0, None, done.stdout, done.stderr, done.started_s, done.ended_s, done.timed_out)

class Unchecked(Fake):
    @contextlib.contextmanager
    def start(self, spec):
        with super().start(spec) as instance:
            instance.__class__ = WrongCode
            yield instance

class Littering(Fake):
    @contextlib.contextmanager
    def start(self, spec):
        with super().start(spec) as instance:
            yield instance
        (self.context.work_directory / f"{spec.identifier}.left").touch()

class Forgetful(Fake):
    @classmethod
    def reclaim(cls, target):
        return False

class Unlabelled(Fake):
    def prepare(self, image, envelope):
        import msgspec
        return msgspec.structs.replace(super().prepare(image, envelope), label="")
"""


def run_kit(folder: Path, backend: str, *more: str) -> subprocess.CompletedProcess[str]:
    (folder / "faulty.py").write_text(FAULTS)
    environment = {**os.environ, "TARE_STATE_DIR": str(folder / "state"), "TARE_WORK_DIR": str(folder / "work")}
    environment["PYTHONPATH"] = str(folder)
    argv = ["--pyargs", "tare.bench.testing.contract", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *more]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *argv, *(["--tare-backend", backend] if backend else [])],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_fake_passes_from_anywhere_and_leaves_nothing(tmp_path: Path) -> None:
    done = run_kit(tmp_path, "tare.bench.testing.fake:Fake")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list((tmp_path / "work").iterdir())
    assert not list((tmp_path / "state/ledger").iterdir())


@pytest.mark.parametrize(
    ("fault", "test"),
    [
        ("Unchecked", "test_exit_code"),
        ("Littering", "test_instances_leave_nothing_and_tell_when_it_happened"),
        ("Forgetful", "test_what_a_killed_owner_leaves_is_reclaimed"),
        ("Unlabelled", "test_description"),
    ],
)
def test_what_is_wrong_is_found(tmp_path: Path, fault: str, test: str) -> None:
    done = run_kit(tmp_path, f"faulty:{fault}", "-k", test)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"FAILED ::{test}" in done.stdout or f"::{test}[" in done.stdout


def test_a_backend_has_to_be_named(tmp_path: Path) -> None:
    done = run_kit(tmp_path, "")
    assert done.returncode != 0
    assert "--tare-backend NAME" in done.stdout + done.stderr
