"""What a host says of itself to the user's side, before anything is measured."""

import asyncio

import msgspec
import pytest

from tare.bench.errors import SuiteError
from tare.bench.fleet import tasks
from tare.bench.fleet.conditions import Hello

NEWER = {"suite": {"name": "s"}, "something": "of a newer tare"}


def asked_by(*version):
    return asyncio.run(tasks.hello(None, {"suite": NEWER, "image": "", "asked_by": list(version)}, lambda *_: None))


def test_another_tare_says_which_it_is_instead_of_what_is_wrong_with_the_suite():
    """A suite of a newer tare means nothing to it: that it is another one is the reason."""
    said = msgspec.convert(asked_by("99.0", ""), Hello)
    assert (said.version, said.commit) == (tasks.tare_version(), tasks.tare_commit())
    with pytest.raises(SuiteError):
        asked_by(said.version, said.commit)
