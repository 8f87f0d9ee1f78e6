"""The same conditions on all hosts: what is refused alone, what together, and what is listed."""

import pytest

from tare.bench.fleet.conditions import (
    NEEDED_BYTES,
    Hello,
    choose_image,
    find_differences,
    refuse_alone,
    refuse_together,
)

HERE = Hello("0.2", "abc", "3.11.7", "2026-01-01T12:00:00+00:00", "x86_64", "here")


def hello(fingerprint="a", **changes):
    usual = {"version": "0.2", "commit": "abc", "python": "3.11.2", "utc": "2026-01-01T12:00:30+00:00"}
    return Hello(**{**usual, "architecture": "x86_64", "fingerprint": fingerprint, **changes})


def test_a_host_like_this_one_takes_part():
    assert refuse_alone(hello(free={"/": NEEDED_BYTES}), HERE, 0) == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "0.1"}, "tare 0.1 abc is installed there, and 0.2 abc here"),
        ({"commit": "def"}, "tare 0.2 def is installed there"),
        ({"python": "3.12.1"}, "Python 3.12.1 there, and on 3.11.7 here"),
        ({"utc": "2026-01-01T15:00:00+00:00"}, "its clock is 3.0 hours ahead of"),
        ({"utc": "2026-01-01T11:50:00+00:00"}, "its clock is 10 minutes behind"),
        ({"utc": "noon\x1b[1m"}, "which is no time"),
        ({"utc": "2026-01-01T12:00:00"}, "which is no time"),
        ({"free": {"/cache": 5, "/state": 2**40}}, r"no space in /cache \(0.0 GiB free\)"),
    ],
)
def test_what_one_host_is_refused_for(changes, message):
    with pytest.raises(AssertionError, match=message):
        assert not refuse_alone(hello(**changes), HERE, 0), refuse_alone(hello(**changes), HERE, 0)


def test_an_answer_that_took_long_is_no_wrong_clock():
    assert refuse_alone(hello(utc="2026-01-01T11:50:00+00:00"), HERE, elapsed_s=400) == ""


def test_what_hosts_are_refused_for_together():
    works, lacks = {"native": "", "vm": ""}, {"native": "needs root", "vm": ""}
    refused = refuse_together(
        {
            "a": hello("1", backends=works),
            "b": hello("2", backends=works),
            "again": hello("1", backends=works),
            "arm": hello("3", architecture="aarch64", backends=works),
            "plain": hello("4", backends=lacks),
        }
    )
    assert set(refused) == {"again", "arm", "plain"}
    assert "is the same machine as a" in refused["again"]
    assert refused["arm"] == "is aarch64, and most hosts are x86_64. Leave it out."
    assert "native: needs root. See `tare doctor` there." in refused["plain"]


def test_what_works_nowhere_refuses_nobody():
    assert refuse_together({name: hello(name, backends={"vm": "no KVM"}) for name in "ab"}) == {}


def test_differences_are_listed_with_who_has_what():
    hosts = {
        name: hello(name, conditions={"kernel": kernel, "cpus": "2"}) for name, kernel in zip("abc", "112", strict=True)
    }
    (difference,) = find_differences(hosts)
    assert (difference.name, difference.hosts) == ("kernel", {"1": ("a", "b"), "2": ("c",)})


def test_the_image_is_the_one_that_most_have():
    images = ["", "one", "two", "two"]
    assert choose_image({str(n): hello(str(n), image=one) for n, one in enumerate(images)}) == "two"
    assert choose_image({"a": hello()}) == ""
