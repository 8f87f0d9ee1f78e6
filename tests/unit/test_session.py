"""What a run makes of what its backends say about themselves."""

import contextlib
from pathlib import Path

import msgspec
import pytest

from tare.bench.errors import RunDirectoryError, SuiteError, UnavailableError
from tare.bench.model import BackendDescription, Confound, Fingerprint, IsolationKind
from tare.bench.session import Prepared, _baseline, _prepare, _refuse_other_conditions
from tare.bench.suite import load_suite
from tests.unit.fakes import BACKENDS, WORKLOADS, FakeBackend
from tests.unit.test_store import MANIFEST

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


@pytest.mark.parametrize(
    ("named", "ready", "expected"),
    [
        ("fake:speed=2", ["fake:speed=1", "fake:speed=2"], "fake:speed=2"),
        ("", ["fake:speed=1", "fake:speed=2"], "fake:speed=1"),
        ("", ["fake:speed=2"], "fake:speed=2"),
    ],
)
def test_the_baseline_is_the_named_one_or_the_first_that_works(tmp_path, named, ready, expected):
    file = tmp_path / "suite.toml"
    file.write_text(f'{SUITE}\n[report]\nbaseline = "{named}"\n')
    suite = load_suite(file, BACKENDS, WORKLOADS)
    container = BackendDescription("fake", IsolationKind.CONTAINER)
    assert _baseline(suite, Prepared(dict.fromkeys(ready), dict.fromkeys(ready, container), {})) == expected


def test_a_baseline_that_the_suite_does_not_have_is_refused_with_those_it_has(tmp_path):
    file = tmp_path / "suite.toml"
    file.write_text(f'{SUITE}\n[report]\nbaseline = "docker"\n')
    with pytest.raises(SuiteError, match=r"report.baseline: no backend is called 'docker'; there are: fake:speed=1, "):
        load_suite(file, BACKENDS, WORKLOADS)


def test_a_run_goes_on_without_the_baseline_that_backend_left_out(tmp_path):
    file = tmp_path / "suite.toml"
    file.write_text(f'{SUITE}\n[report]\nbaseline = "fake:speed=2"\n')
    suite = load_suite(file, BACKENDS, WORKLOADS, only=["fake:speed=1"])
    assert suite.source["report"]["baseline"] == ""


def test_a_run_goes_on_only_on_its_own_host():
    at_home = Fingerprint("aa", {"machine": "1", "cpu model": "x"})
    image = {"digest": "sha256:0"}
    earlier = msgspec.structs.replace(MANIFEST, fingerprint=at_home, image=image)
    _refuse_other_conditions(Path("run"), earlier, earlier)
    _refuse_other_conditions(Path("run"), msgspec.structs.replace(earlier, fingerprint=Fingerprint()), earlier)
    elsewhere = msgspec.structs.replace(earlier, fingerprint=Fingerprint("bb", {"machine": "2", "cpu model": "x"}))
    with pytest.raises(RunDirectoryError, match=r"host: aa then, bb now \(machine\)"):
        _refuse_other_conditions(Path("run"), earlier, elsewhere)
