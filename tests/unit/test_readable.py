"""Foreign text is made printable in one place, which messages, displays and reports use."""

import sys
import unicodedata

import pytest

from tare.bench import registry
from tare.bench.errors import ImageError, TareError
from tare.bench.readable import as_markup, one_line, readable


def test_no_control_character_but_line_ends_and_tabs_comes_through():
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    left = {char for char in readable(every) if unicodedata.category(char) in {"Cc", "Cs"}}
    assert left == {"\n", "\t"}
    assert not {char for char in one_line(every) if unicodedata.category(char) == "Cc"}


def test_a_return_ends_a_line_and_overwrites_none():
    assert readable("good\rbad\r\nend") == "good\nbad\nend"


def test_a_message_is_readable_whatever_made_it():
    order = "\x1b[2Jx\udcff"
    for error in (ImageError(f"the archive has {order}", remedy=order, evidence=order), TareError(order)):
        for text in (str(error), error.message, error.remedy or "", error.evidence):
            assert not {"\x1b", "\udcff"} & set(text)


def test_markup_of_others_is_text():
    assert as_markup("[red]\x1b[0m") == "\\[red]\ufffd[0m"


def test_the_reason_of_a_plug_in_that_cannot_be_loaded_is_readable(monkeypatch: pytest.MonkeyPatch):
    class Point:
        name, value = "bad", "bad:Bad"

        def load(self):
            raise ImportError("\x1b[2Jno")

    monkeypatch.setattr(registry, "entry_points", lambda group: [Point()])
    failure = registry.find_backends().failures["bad"]
    assert failure.reason == "ImportError: \ufffd[2Jno"
