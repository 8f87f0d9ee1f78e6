"""When new instances may become smaller: not while others are started."""

import contextlib
import select

import pytest

from backends.native.rest import Rest


@pytest.fixture
def rest():
    with contextlib.closing(Rest()) as one:
        yield one


def readable(rest, timeout_ms=0):
    poll = select.poll()
    poll.register(rest.fileno(), select.POLLIN)
    return bool(poll.poll(timeout_ms))


def test_nobody_rests_while_one_of_several_is_being_started(rest):
    assert readable(rest)
    with rest.postponed():
        assert not readable(rest)
        with rest.postponed():
            assert not readable(rest)
        assert not readable(rest, 100)  # longer than the pause


def test_the_pause_after_the_last_start_is_told_by_itself(rest):
    with rest.postponed():
        pass
    assert readable(rest, 10_000)


def test_whoever_measures_does_not_wait_for_the_pause(rest):
    with rest.postponed():
        rest.now()
        assert readable(rest)
        rest.now()
        assert readable(rest)
    with rest.postponed():
        assert not readable(rest)


def test_its_end_lets_everybody_rest_and_may_be_repeated():
    one = Rest()
    with one.postponed():
        one.close()
    one.close()
