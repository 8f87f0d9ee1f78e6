"""What tests of several kinds share. A fixture skips with the exact reason when the machine lacks something."""

import os
from collections.abc import Iterator
from importlib.metadata import entry_points

import pytest

from bench.errors import TareError
from bench.image import ImageStore, Recipe
from bench.image.build import BUILD_TOOLS
from bench.ledger import Ledger
from bench.locations import cache_directory
from bench.model import Image
from bench.process import find_tool


def workload_packages() -> set[str]:
    """The Debian packages of every registered workload."""
    return {package for point in entry_points(group="tare.workloads") for package in point.load().packages}


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The image with every workload's packages, in the real cache: found there, or built once for all tests."""
    with Ledger(tmp_path_factory.mktemp("image-ledger")) as ledger:
        images = ImageStore(cache_directory(), ledger)
        recipe = Recipe.of(workload_packages())
        found = images.find(recipe)
        if found is None:
            if os.geteuid() != 0:
                pytest.skip("no image in the cache, and building one needs root")
            missing = [tool for tool in BUILD_TOOLS if find_tool(tool) is None]
            if missing:
                pytest.skip(f"no image in the cache, and building one needs {', '.join(missing)}")
            try:
                found = images.build(recipe)
            except TareError as error:
                if "archive cannot be reached" in error.message:
                    pytest.skip(f"no image in the cache, and building one needs the Debian archive: {error.message}")
                raise
        with images.hold(found):
            yield found
