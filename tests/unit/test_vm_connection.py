"""What is asked of libvirt: a call that it does not answer fails alone, and holds up others only for as long."""

import contextlib
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from tare.backends.vm import connection
from tare.bench.errors import BackendError


class Driver:
    """Stands for a connection of libvirt's."""

    def getLibVersion(self):  # noqa: N802 - libvirt's name
        return 9_000_000

    def domainEventRegisterAny(self, *_):  # noqa: N802 - libvirt's name
        return 0


class Here(connection.Connection):
    emulator = log_file = None

    def starting(self):
        return contextlib.nullcontext()


@pytest.fixture
def here(monkeypatch):
    constants = dict.fromkeys(("VIR_DOMAIN_EVENT_ID_LIFECYCLE", "VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE"), 0)
    library = SimpleNamespace(**constants, libvirtError=type("libvirtError", (Exception,), {}))
    monkeypatch.setattr(connection, "library", lambda: library)
    monkeypatch.setattr(connection, "_GIVEN_UP_DEADLINE_S", 0.05)
    return Here(Driver(), Path("/nowhere"))


def test_an_answer_that_comes_late_lets_the_next_guests_start(here):
    answered, ended, given_up = threading.Event(), threading.Event(), []

    def slow():
        answered.wait(60)
        ended.set()

    with pytest.raises(BackendError, match=r"could not start the guest within 0\.05 s"):
        here.ask("start the guest", slow, 0.05, lambda: given_up.append(True))
    assert given_up == [True]
    with pytest.raises(BackendError, match="could not look: it did not answer before"):
        here.ask("look", lambda: 1)
    answered.set()
    assert ended.wait(60)
    assert here._unanswered.wait(60, interruptible=False)
    assert here.ask("look", lambda: 1) == 1


def test_a_call_that_ends_when_it_is_given_up_holds_nobody_up(here):
    answered = threading.Event()
    with pytest.raises(BackendError, match="within"):
        here.ask("start the guest", lambda: answered.wait(60), 0.01, answered.set)
    assert here.ask("look", lambda: 2) == 2
