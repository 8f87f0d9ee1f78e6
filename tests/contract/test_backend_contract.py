"""The contract tests that anybody runs, on the fake and on every built-in backend that this machine can run."""

import pytest

from tare.bench.model import Image
from tare.bench.testing.contract import *  # noqa: F403 - its tests and fixtures are the tests here


@pytest.fixture(scope="session")
def tare_image(image: Image) -> Image:
    return image
