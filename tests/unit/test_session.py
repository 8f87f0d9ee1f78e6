"""What a run makes of what its backends say about themselves."""

import contextlib

import pytest

from tare.bench.errors import UnavailableError
from tare.bench.model import BackendDescription, Confound, IsolationKind
from tare.bench.session import _prepare
from tare.bench.suite import load_suite
from tests.unit.fakes import BACKENDS, WORKLOADS, FakeBackend

SUITE = """
[suite]
name = "twice"
[[backend]]
type = "fake"
options = { speed = [1, 2] }
[[experiment]]
kind = "boot"
"""


class Silent:
    def step(self, text):
        pass


def test_a_caveat_is_the_backend_s_of_the_suite_where_a_type_is_there_twice(tmp_path, monkeypatch):
    own = BackendDescription(
        "fake", IsolationKind.SANDBOX, confounds=(Confound("other-kernel", "an older one", "fake"),)
    )
    monkeypatch.setattr(FakeBackend, "prepare", lambda *_: own)
    file = tmp_path / "suite.toml"
    file.write_text(SUITE)
    suite = load_suite(file, BACKENDS, WORKLOADS)
    candidates = [(choice, FakeBackend()) for choice in suite.backends]
    with contextlib.ExitStack() as stack:
        prepared = _prepare(suite, candidates, {}, None, Silent(), stack)
    told = {name: [found.backend for found in one.confounds] for name, one in prepared.descriptions.items()}
    assert told == {"fake:speed=1": ["fake:speed=1"], "fake:speed=2": ["fake:speed=2"]}


@pytest.mark.parametrize(
    ("described", "said"),
    [
        (lambda: BackendDescription("fake"), "Missing required argument 'kind'"),
        (lambda: BackendDescription("fake", "unikernel"), "'unikernel', which does not exist"),
        (lambda: BackendDescription("fake", "container") and None, "returned None, not a BackendDescription"),
    ],
)
def test_a_backend_that_does_not_say_what_it_is_is_unavailable_with_the_reason(described, said, tmp_path, monkeypatch):
    monkeypatch.setattr(FakeBackend, "prepare", lambda *_: described())
    file = tmp_path / "suite.toml"
    file.write_text(SUITE)
    suite = load_suite(file, BACKENDS, WORKLOADS)
    candidates = [(choice, FakeBackend()) for choice in suite.backends]
    with contextlib.ExitStack() as stack, pytest.raises(UnavailableError) as raised:
        _prepare(suite, candidates, {}, None, Silent(), stack)
    assert said in str(raised.value)
