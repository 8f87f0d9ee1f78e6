"""What tests of several kinds share. A fixture skips with the exact reason when the machine lacks something."""

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tare.bench.errors import TareError
from tare.bench.image import ImageStore, Recipe
from tare.bench.image.build import BUILD_TOOLS
from tare.bench.ledger import Ledger
from tare.bench.locations import cache_directory, ledger_directory
from tare.bench.model import Image
from tare.bench.process import find_tool
from tare.bench.registry import find_workloads

# How long an example takes says something of the machine, not of the code.
hypothesis.settings.register_profile("tare", deadline=None)
hypothesis.settings.load_profile("tare")

# Under nohup, cron or in the background they come in ignored, and would be in every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _state_folder() -> str:
    """A state folder of this checkout and process of pytest-xdist: runs hold a lock there (decision 0232).

    Tests that run at once would keep one another from measuring. It stays, so that the next tests remove what killed
    ones left.
    """
    checkout = hashlib.sha256(os.fsencode(Path(__file__).resolve())).hexdigest()[:8]
    return f"/var/tmp/tare-tests-{os.geteuid()}/{checkout}-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"


if os.environ.get("PYTEST_XDIST_WORKER") or "TARE_STATE_DIR" not in os.environ:
    os.environ["TARE_STATE_DIR"] = _state_folder()


def workload_packages() -> set[str]:
    """The packages of every registered workload."""
    workloads = find_workloads()
    assert not workloads.failures, workloads.failures
    return {package for workload in workloads.loaded.values() for package in workload.packages}


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    """The base image, in the real cache: found there, or built once for all tests."""
    yield from _hold(Recipe.of(()))


@pytest.fixture(scope="session")
def catalogue_image() -> Iterator[Image]:
    """The image with every workload's packages, for the tests of workloads that the base image does not suffice for."""
    yield from _hold(Recipe.of(workload_packages()))


def _hold(recipe: Recipe) -> Iterator[Image]:
    # The real ledger too, so that `tare clean` knows what a killed test run left in the real cache. Closed before the
    # tests run: they open ledgers of their own.
    with Ledger(ledger_directory()) as ledger:
        images = ImageStore(cache_directory(), ledger)
        found = _find_or_build(images, recipe)
    with images.hold(found):
        yield found


def _find_or_build(images: ImageStore, recipe: Recipe) -> Image:
    found = images.find(recipe)
    if found is not None:
        return found
    if os.geteuid() != 0:
        pytest.skip("no image in the cache, and building one needs root")
    missing = [tool for tool in BUILD_TOOLS if find_tool(tool) is None]
    if missing:
        pytest.skip(f"no image in the cache, and building one needs {', '.join(missing)}")
    try:
        return images.build(recipe)
    except TareError as error:
        if "archive cannot be reached" in error.message:
            pytest.skip(f"no image in the cache, and building one needs the Debian archive: {error.message}")
        raise
