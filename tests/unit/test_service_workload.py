"""``[[workload]] service = true``: what a suite may say, the commands of it, and what is read of its load."""

from pathlib import Path

import pytest

from tare.bench import inside
from tare.bench.errors import ParseError, SuiteError, WorkloadError
from tare.bench.model import Completed, Envelope
from tare.bench.registry import find_backends, find_workloads
from tare.bench.service import PORT, HealthCheck, ResolvedService
from tare.bench.suite import SuiteSpec, resolve_suite
from tare.bench.suite_file import read_toml
from tare.workloads.service import ServiceWorkload

TEN_LINES = """
image = "my-service.tar"
suite = { name = "my service" }
backend = [{ type = "native" }, { type = "vm" }]

[[workload]]
name = "web"
service = true
port = 8080

[[experiment]]
kind = "boot"
workload = "web"
"""
ENVELOPE = Envelope((0,), 2**28, 2**28, 100)


def read(folder: Path, text: str) -> SuiteSpec:
    path = folder / "suite.toml"
    path.write_text(text)
    return resolve_suite(read_toml(path), path, find_backends(), find_workloads())


def test_ten_lines_are_a_suite(tmp_path: Path) -> None:
    assert len(TEN_LINES.split("\n\n")) == 3
    assert len([line for line in TEN_LINES.splitlines() if line]) == 10
    suite = read(tmp_path, TEN_LINES)
    assert suite.file.image.use == str(tmp_path / "my-service.tar")
    assert suite.file.image.is_archive
    (scenario,) = suite.scenarios
    assert scenario.workload is not None
    request = scenario.workload().commands(scenario.params, ENVELOPE).image_service
    assert request is not None
    assert (request.name, request.port, request.path, request.entrypoint) == ("web", 8080, "/", None)


@pytest.mark.parametrize(("use", "is_archive"), [("mine", False), ("v1.2", False), ("x.oci", True), ("a/b", True)])
def test_what_names_a_file_is_an_archive(tmp_path: Path, use: str, is_archive: bool) -> None:
    suite = read(tmp_path, TEN_LINES.replace("my-service.tar", use))
    assert suite.file.image.use == (str(tmp_path / use) if is_archive else use)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("service = true", "service = false", "does not say what it runs"),
        ("port = 8080", "port = 0", "from 1 to 65535"),
        ("port = 8080", 'path = "x"', "path: begins with /"),
        ("port = 8080", 'path = "/a b"', "path: begins with /"),
        ("port = 8080", 'ready = "soon"', "must be one of"),
        ("port = 8080", 'within = "0s"', "within"),
        ("port = 8080", 'cwd = "srv"', "not an absolute path"),
        ("port = 8080", "entrypoint = []", "length >= 1"),
        ("port = 8080", 'env = { "A=B" = "c" }', "env: a name"),
        ("port = 8080", 'command = ["x"]', "service and command|command and service"),
    ],
)
def test_what_is_wrong_is_refused_with_its_key(tmp_path: Path, old: str, new: str, problem: str) -> None:
    with pytest.raises(SuiteError, match=problem):
        read(tmp_path, TEN_LINES.replace(old, new))


def test_a_service_of_a_command_is_no_service_of_the_image(tmp_path: Path) -> None:
    own = """command = ["x"]
metric = [{ name = "t", direction = "lower", description = "It.", exit_time = true }]
service = [{ name = "s", command = ["y"], ready = ["z"] }]"""
    text = TEN_LINES.replace("service = true\nport = 8080", own).replace('"boot"', '"steady"')
    (scenario,) = read(tmp_path, text).scenarios
    assert scenario.workload is not None
    assert scenario.workload().commands(scenario.params, ENVELOPE).services[0].name == "s"


REPORT = b"requests 4 errors 0 elapsed 2000000000 \nbucket 1000000 3\nbucket 4000000 1\n"


def completed(stdout: bytes, returncode: int = 0) -> Completed:
    return Completed(("@tare@",), returncode, None, stdout, b"", 1.0, 3.0)


def test_rates_and_quantiles_are_those_of_the_histogram() -> None:
    workload = ServiceWorkload()
    found = {one.metric: one.value for one in workload.parse(completed(REPORT))}
    assert found == pytest.approx({"service.requests": 2.0, "service.latency.p50": 0.001, "service.latency.p99": 0.004})
    (histogram,) = workload.histograms(completed(REPORT))
    assert histogram.counts == (3, 1)


@pytest.mark.parametrize(
    ("report", "problem"),
    [
        (REPORT.replace(b"errors 0", b"errors 2"), "2 of 6 requests were not answered"),
        (REPORT.replace(b"4 errors", b"5 errors"), "makes no sense"),
        (REPORT.replace(b"bucket 4", b"bocket 4"), "makes no sense"),
        (REPORT.replace(b"elapsed 2000000000", b"elapsed 0"), "makes no sense"),
        (b"requests 0 errors 0 elapsed 5 \n", "makes no sense"),
        (b"hello\n", "makes no sense"),
    ],
)
def test_a_report_that_makes_no_sense_is_refused(report: bytes, problem: str) -> None:
    with pytest.raises(ParseError, match=problem):
        ServiceWorkload().parse(completed(report))


def test_the_load_asks_where_the_service_answers() -> None:
    assert inside.load(PORT, "/x", 4, 0.5).argv[2:] == ("port=@port@", "path=/x", "connections=4", "duration_ms=500")


SERVICE = ResolvedService("web", ("/s", "-x"), {"A": "b"}, "/srv", "web", "http", 80, "/", 2.0, HealthCheck(("/h",)))


def test_a_service_is_asked_for_by_what_was_resolved() -> None:
    given = inside.serve(SERVICE).argv[2:]
    assert {"arg=/s", "arg=-x", "env=A=b", "cwd=/srv", "user=web", "port=80", "path=/", "within_ms=2000"} < {*given}
    assert not any(one.startswith("check") for one in given)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (b"failed user bob\n", "user 'bob' is not in"),
        (b"failed start exec 2 No such file", "is not in the image"),
        (b"failed start identity 1 Operation not permitted\n", "may not become its user 'web'"),
        (b"failed ended signal 9\n", "ended with signal 9"),
        (b"failed deadline silent Connection reset\n", "says nothing"),
        (b"failed log Read-only file system\n", r"could not be started \(log\)"),
        (b"", "was not started"),
        (b"answered 12 x\n", "was not started"),
    ],
)
def test_what_it_says_is_read(said: bytes, problem: str) -> None:
    with pytest.raises(WorkloadError, match=problem):
        inside.read_served(SERVICE, completed(said, 1))


def test_an_answer_names_the_process() -> None:
    assert inside.read_served(SERVICE, completed(b"answered 12 1000\n")) == 12
