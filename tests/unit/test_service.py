"""What an image's configuration says of its program, and what a suite makes of it."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.bench.service import HealthCheck, ImageProcess, ServiceRequest, read_process, resolve_service

WEB = ImageProcess(("/server",), ("--port", "80"), {"MODE": "image", "KEPT": "1"}, "/srv", "web", ("80/tcp",))


def test_nothing_said_is_a_process_without_a_command() -> None:
    assert read_process(None) == read_process({}) == ImageProcess()
    assert read_process({"Entrypoint": None, "Env": None, "Healthcheck": {"Test": ["NONE"]}}) == ImageProcess()


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ([], "config is no object"),
        ({"Entrypoint": "/server"}, "Entrypoint is no list"),
        ({"Cmd": [1]}, "Cmd is no text"),
        ({"Cmd": ["a\0b"]}, "Cmd holds a text with a NUL"),
        ({"WorkingDir": "srv"}, "not an absolute path"),
        ({"User": 0.5}, "User is no text"),
        ({"ExposedPorts": ["80"]}, "ExposedPorts is no object"),
        ({"Healthcheck": []}, "Healthcheck is no object"),
        ({"Healthcheck": {"Test": ["CMD"]}}, "Healthcheck.Test is neither"),
        ({"Healthcheck": {"Test": ["CMD", "x"], "Timeout": -1}}, "Healthcheck.Timeout"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(config: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_process(config)


KEYS = st.sampled_from(["Entrypoint", "Cmd", "Env", "User", "WorkingDir", "ExposedPorts", "Healthcheck", "Test"])
LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.just("CMD")
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


@given(config=st.dictionaries(KEYS, JSON, max_size=6))
def test_whatever_it_says_there_is_a_process_or_one_message(config: Any) -> None:
    with contextlib.suppress(ValueError):
        read_process(config)


def test_a_request_that_says_nothing_is_what_the_image_says() -> None:
    found = resolve_service(ServiceRequest("web"), WEB)
    assert found.argv == ("/server", "--port", "80")
    assert (found.cwd, found.user, found.port, found.ready) == ("/srv", "web", 80, "http")


def test_what_is_requested_goes_before_what_the_image_says() -> None:
    request = ServiceRequest("web", 81, "/x", "tcp", env={"MODE": "own"}, cmd=("--port", "81"), cwd="/", user="0")
    found = resolve_service(request, WEB)
    assert found.argv == ("/server", "--port", "81")
    assert found.env == {"MODE": "own", "KEPT": "1"}
    assert (found.cwd, found.user, found.port, found.ready) == ("/", "0", 81, "tcp")


def test_an_entry_point_of_ones_own_takes_no_arguments_of_the_image() -> None:
    assert resolve_service(ServiceRequest("web", entrypoint=("/other",)), WEB).argv == ("/other",)


def test_without_a_port_the_health_check_says_when_it_is_ready() -> None:
    process = ImageProcess(cmd=("/worker",), healthcheck=HealthCheck(("/check",)))
    found = resolve_service(ServiceRequest("worker"), process)
    assert (found.ready, found.port) == ("healthcheck", None)


@pytest.mark.parametrize(
    ("process", "request_", "problem"),
    [
        (None, ServiceRequest("x"), "no entry point"),
        (ImageProcess(env={"A": "b"}), ServiceRequest("x"), "no entry point"),
        (ImageProcess(cmd=("/x",)), ServiceRequest("x"), "the image lists none"),
        (ImageProcess(cmd=("/x",), ports=("80/tcp", "81/tcp")), ServiceRequest("x"), "lists 80/tcp, 81/tcp"),
        (ImageProcess(cmd=("/x",), ports=("80/udp",)), ServiceRequest("x"), "lists 80/udp"),
        (WEB, ServiceRequest("x", ready="healthcheck"), "no health check"),
    ],
)
def test_what_an_image_cannot_do_is_refused(
    process: ImageProcess | None, request_: ServiceRequest, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        resolve_service(request_, process)
