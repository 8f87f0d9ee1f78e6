"""The image's own service: started as its configuration says, and every way in which it fails."""

import contextlib
import os
import shutil
import socket
from types import SimpleNamespace

import msgspec
import pytest

from tare.backends.vm.backend import VirtualMachine
from tare.backends.vm.options import VmOptions
from tare.bench import inside
from tare.bench.errors import WorkloadError
from tare.bench.experiments.work import ImageService
from tare.bench.image import ImageStore
from tare.bench.image.boot import make_disk
from tare.bench.image.tools import ToolRunner
from tare.bench.interfaces import BackendContext
from tare.bench.ledger import Ledger
from tare.bench.locations import cache_directory
from tare.bench.model import Command
from tare.bench.service import HealthCheck, ServiceRequest
from tare.bench.testing.subject import load_backend
from tests.accelerator import ACCEL
from tests.privileged.host_kernel import ENVELOPE, spec, start_backend
from tests.service_image import PORT, make_archive

pytestmark = [
    pytest.mark.root,
    pytest.mark.tools,
    pytest.mark.skipif(os.geteuid() != 0, reason="instances need root"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc to compile the server with"),
]

AS_CONFIGURED = "uid=1234 gid=1235 more=1:77 cwd=/srv MODE=image HOME=/srv EXTRA=(null)\n"
PLAIN = ServiceRequest("web")


@pytest.fixture(scope="module")
def own_image(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    with Ledger(folder / "ledger") as ledger, pytest.MonkeyPatch.context() as patch:
        patch.setattr("tare.bench.image.archive.guest_problem", lambda *_: "not here")  # which takes a minute to add
        yield ImageStore(folder / "cache", ledger).import_archive(make_archive(folder))


ENGINES = ("runc", "docker", "podman", "containerd") if os.environ.get("TARE_TEST_ENGINES") == "all" else ("runc",)


@pytest.fixture(scope="module", params=["native", "bare-metal", *ENGINES])
def backend(request, own_image, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    with Ledger(folder / "ledger") as ledger, contextlib.ExitStack() as stack:
        if request.param in ENGINES:
            kind = load_backend(request.param)
            yield stack.enter_context(prepared(kind, kind.Options(), ledger, folder, own_image))
        else:
            yield stack.enter_context(start_backend(request.param, own_image, folder / "work", ledger))
        stack.close()
        assert ledger.entries() == ()


@contextlib.contextmanager
def prepared(kind, options, ledger, folder, image):
    """A backend that is prepared, or a skip with the reason."""
    backend = kind(BackendContext(ledger, folder, cache_directory(), options, ()))
    found = backend.probe()
    if not found.available:
        pytest.skip(f"{kind.name} is not available here: {found.reason}")
    try:
        backend.prepare(image, ENVELOPE)
        yield backend
    finally:
        backend.close()


@pytest.fixture
def instance(backend, own_image, request):
    with backend.start(spec(f"service{abs(hash(request.node.name)) % 10**8}", own_image)) as started:
        yield started


def started(instance, image, request=PLAIN, **process):
    """A service of the image, with ``process`` changed in its configuration."""
    changed = msgspec.structs.replace(image, process=msgspec.structs.replace(image.process, **process))
    run = SimpleNamespace(image=changed, keep=lambda *_: "")
    return ImageService(run, request, instance)


def test_it_runs_as_the_image_says(instance, own_image):
    service = started(instance, own_image)
    assert service.said() == AS_CONFIGURED.strip()
    assert service.is_alive()
    asked = instance.execute(inside.load(PORT, "/", 2, 0.2))
    assert asked.returncode == 0
    assert asked.stdout.startswith(b"requests ")
    assert instance.execute(inside.end(service._pid)).returncode == 0
    assert not service.is_alive()


def test_what_the_suite_says_goes_before(instance, own_image):
    request = ServiceRequest("web", env={"EXTRA": "a=b c", "MODE": "own"}, user="4321:77", cwd="/etc", ready="tcp")
    assert started(instance, own_image, request).said() == (
        "uid=4321 gid=77 more=0:-1 cwd=/etc MODE=own HOME=/ EXTRA=a=b c"
    )


def test_a_health_check_says_when_it_is_ready(instance, own_image):
    request = ServiceRequest("web", ready="healthcheck")
    service = started(instance, own_image, request, healthcheck=HealthCheck(("/srv/server", "0", "well")))
    assert service.is_alive()


def test_a_health_check_that_never_ends_is_ended_with_its_timeout(instance, own_image):
    request = ServiceRequest("web", ready="healthcheck", within_s=0.5)
    with pytest.raises(WorkloadError, match=r"its health check did not end within \d+ ms"):
        started(instance, own_image, request, healthcheck=HealthCheck(("/srv/server", "0", "idle"), 0.2))


@pytest.mark.parametrize(
    ("process", "request_", "problem"),
    [
        ({"user": "nobody"}, PLAIN, "its user 'nobody' is not in the image's /etc/passwd"),
        ({"user": "web:none"}, PLAIN, "its group 'none' is not in the image's /etc/group"),
        ({"entrypoint": ("/no/server",)}, PLAIN, "its program '/no/server' is not in the image"),
        ({"entrypoint": ("server",)}, PLAIN, "its program 'server' is not in the image"),
        ({"entrypoint": ("/srv/data",)}, PLAIN, "its program '/srv/data' cannot be executed: Permission denied"),
        ({"cwd": "/nowhere"}, PLAIN, "its working directory '/nowhere': No such file or directory"),
        ({"cmd": ("end",)}, PLAIN, r"ended with status 7 before it answered"),
        ({"cmd": ("idle",)}, ServiceRequest("web", within_s=2.0), rf"nothing listens on port {PORT}"),
        ({"cmd": ("other",)}, ServiceRequest("web", within_s=2.0), "says something else"),
        (
            {"cmd": ("missing",)},
            ServiceRequest("web", path="/x", within_s=2.0),
            rf"GET /x on port {PORT} has status 404",
        ),
        (
            {"healthcheck": HealthCheck(("/srv/server", "0", "unwell"))},
            ServiceRequest("web", ready="healthcheck", within_s=2.0),
            r"did not become healthy within 2 s: its health check ended with status 4",
        ),
    ],
)
def test_what_is_wrong_is_one_message(instance, own_image, process, request_, problem):
    with pytest.raises(WorkloadError, match=problem) as caught:
        started(instance, own_image, request_, **process)
    assert caught.value.remedy
    evidence = {"end": "no configuration", "unwell": "the disk is on fire"}
    for word, said in evidence.items():
        if word in repr(process):
            assert said in caught.value.evidence
    assert instance.execute(Command(("/srv/server", "0", "unwell"))).returncode == 4  # it is of use still


def test_a_port_that_is_taken_is_told(own_image, backend):
    if backend.name != "bare-metal":
        pytest.skip("a network of its own has free ports")
    with (
        socket.create_server(("127.0.0.1", PORT)),
        backend.start(spec("taken", own_image)) as instance,
        pytest.raises(WorkloadError, match=f"something else listens on port {PORT} already"),
    ):
        started(instance, own_image)


@pytest.mark.image
@pytest.mark.guest
def test_a_guest_runs_it_without_an_agent_in_the_image(own_image, image, tmp_path):
    disk = tmp_path / "disk.erofs"
    make_disk(disk, own_image.rootfs, ToolRunner(str(tmp_path)))
    guest = msgspec.structs.replace(
        own_image, disk=disk, kernel=image.kernel, initramfs=image.initramfs, guest_problem=""
    )
    options = msgspec.convert({"accel": ACCEL}, VmOptions)
    with Ledger(tmp_path / "ledger") as ledger:
        with (
            prepared(VirtualMachine, options, ledger, tmp_path, guest) as backend,
            backend.start(spec("guest", guest)) as instance,
        ):
            service = started(instance, guest)
            assert service.said() == AS_CONFIGURED.strip()
            assert service.is_alive()
            assert instance.execute(inside.load(PORT, "/", 1, 0.2)).returncode == 0
            assert instance.guest_steal_s() is None  # which this agent does not know
            with pytest.raises(WorkloadError, match="its user 'nobody' is not in"):
                started(instance, guest, msgspec.structs.replace(PLAIN, port=PORT + 1), user="nobody")
            assert instance.execute(Command(("/srv/server", "0", "unwell"))).returncode == 4
        assert ledger.entries() == ()
