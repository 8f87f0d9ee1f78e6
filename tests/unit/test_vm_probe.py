"""What keeps guests from being started here is told by the probe, in one sentence with what to do about it."""

import os
from types import SimpleNamespace

import pytest

from tare.backends.cgroups.layout import Version
from tare.backends.vm import backend, connection
from tare.backends.vm.options import VmOptions
from tare.bench.errors import UnavailableError
from tare.bench.interfaces import BackendContext
from tare.bench.model import Envelope


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A backend on a machine that has everything, as far as the probe looks."""
    monkeypatch.setattr(backend, "load_packages", lambda: [SimpleNamespace(needed_by=("vm",), is_present=lambda: True)])
    monkeypatch.setattr(connection, "have_library", lambda: True)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(backend, "find_layout", lambda: SimpleNamespace(version=Version.V2))
    return backend.VirtualMachine(BackendContext(None, tmp_path, tmp_path, VmOptions(), ()))


def test_nothing_is_missing(machine):
    assert machine.probe().available


def absent(name):
    return SimpleNamespace(name=name, needed_by=("vm", "build"), is_present=lambda: False)


@pytest.mark.parametrize(
    ("what", "reason", "remedy"),
    [
        (
            (backend, "load_packages", lambda: [absent("qemu-system-x86"), absent("libvirt-daemon")]),
            "not installed: qemu-system-x86, libvirt-daemon",
            "qemu-system-x86 libvirt-daemon",
        ),
        ((connection, "have_library", lambda: False), "libvirt-python is not installed", "pip install 'tarebench[vm]'"),
        ((os, "geteuid", lambda: 1000), "needs root", "run tare as root"),
        (
            (backend, "find_layout", lambda: SimpleNamespace(version=Version.NONE)),
            "no cgroup hierarchy is mounted",
            "mount -t cgroup2",
        ),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(machine, monkeypatch, what, reason, remedy):
    monkeypatch.setattr(*what)
    found = machine.probe()
    assert not found.available
    assert reason in found.reason
    assert remedy in found.remedy
    with pytest.raises(UnavailableError, match=reason) as caught:
        machine.prepare(None, Envelope((0,), 2**28, 2**26, 64))
    assert caught.value.remedy == found.remedy
