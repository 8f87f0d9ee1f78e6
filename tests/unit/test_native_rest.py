"""When new instances may become smaller: not while several are being started at once."""

import contextlib
import select

import pytest

from tare.backends.native.rest import Rest


@pytest.fixture
def rest():
    with contextlib.closing(Rest()) as one:
        yield one


def readable(rest):
    poll = select.poll()
    poll.register(rest.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def test_starts_one_after_another_postpone_nothing(rest):
    assert readable(rest)
    with rest.starting():
        assert readable(rest)
    assert readable(rest)


def test_nobody_rests_while_several_are_being_started(rest):
    with rest.starting():
        with rest.starting():
            assert not readable(rest)
            with rest.starting():
                assert not readable(rest)
            assert not readable(rest)
        assert readable(rest)


def test_whoever_measures_does_not_wait_for_the_end_of_the_burst(rest):
    with rest.starting(), rest.starting():
        rest.now()
        assert readable(rest)
        rest.now()
        assert readable(rest)
        with rest.starting():
            assert not readable(rest)


def test_a_start_that_fails_counts_no_longer(rest):
    with contextlib.suppress(ValueError), rest.starting(), rest.starting():
        raise ValueError
    assert readable(rest)
