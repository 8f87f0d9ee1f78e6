"""A container that boots the whole distribution: systemd is its first process, in the container's own cgroup."""

from pathlib import Path

import pytest

from tare.backends.native.options import NativeOptions, Profile
from tare.bench.errors import BackendError
from tare.bench.ledger import Ledger
from tare.bench.model import Command, Phase
from tests.privileged.host_kernel import ENVELOPE, spec, start_backend

pytestmark = [pytest.mark.root, pytest.mark.image]

FULL = NativeOptions(profile=Profile.FULL)


def said(instance, *argv):
    return instance.execute(Command(argv)).stdout.decode().split()


def test_systemd_boots_serves_and_leaves_nothing(catalogue_image, tmp_path):
    with (
        Ledger(tmp_path / "ledger") as ledger,
        start_backend("native", catalogue_image, tmp_path / "work", ledger, FULL) as backend,
    ):
        assert backend.prepare(catalogue_image, ENVELOPE).texts["profile"].startswith("full: ")
        with backend.start(spec("system", catalogue_image)) as instance:
            assert said(instance, "cat", "/proc/1/comm") == ["systemd"]
            assert said(instance, "systemctl", "is-active", "multi-user.target", "dbus.service") == ["active", "active"]
            assert said(instance, "systemctl", "--failed", "--no-legend", "--plain") == []
            shown = ("systemctl", "show", "--property", "LoadState", "--value", "nginx.service", "timers.target")
            assert said(instance, *shown) == ["masked", "masked"]
            # A command that does not end is killed, with what it started, and the services stay.
            ended = instance.execute(Command(("sh", "-c", "setsid sleep 1000 & sleep 1000"), timeout_s=0.5))
            assert ended.timed_out
            assert "sleep" not in said(instance, "ps", "-eo", "comm")
            assert said(instance, "systemctl", "is-active", "dbus.service") == ["active"]
            assert instance.footprint().processes > 3
            marks = instance.timeline.marks
            folders = [folder for folder in instance.cgroup.folders if folder.exists()]
        assert marks[Phase.FIRST_INSTRUCTION] < marks[Phase.READY]
        assert folders
        assert not any(folder.exists() for folder in folders)
        assert Path(f"/proc/{instance.pid}").exists() is False


def test_an_image_without_systemd_says_so(image, tmp_path):
    with Ledger(tmp_path / "ledger") as ledger:
        with (
            pytest.raises(
                BackendError,
                match="become the distribution's init, /sbin/init, and wait for it: No such file or directory",
            ),
            start_backend("native", image, tmp_path / "work", ledger, FULL),
        ):
            raise AssertionError("an image without systemd was booted")
        assert ledger.entries() == ()
