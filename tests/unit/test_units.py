"""Sizes and durations, read and shown: no value is lost, and everything that is not one is refused with ValueError."""

import math
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tare.bench.units import Unit, format_duration, format_size, format_value, parse_duration, parse_size

IEC = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "m": 60.0, "min": 60.0, "h": 3600.0}
calm = settings(deadline=None)
finite = st.floats(allow_nan=False, allow_infinity=False)
reasonable = st.floats(min_value=-1e15, max_value=1e15)


@calm
@given(number=st.integers(0, 2**70), prefix=st.sampled_from(list(IEC)), space=st.sampled_from(["", " "]))
@example(number=2**53 + 1, prefix="", space="")
def test_whole_sizes_are_exact(number: int, prefix: str, space: str) -> None:
    assert parse_size(f"{number}{space}{prefix}") == number * IEC[prefix]


@calm
@given(number=st.decimals(0, 10**6, places=3), prefix=st.sampled_from(["KiB", "MiB", "GiB"]))
def test_fractions_of_a_prefix_are_the_nearest_byte(number: object, prefix: str) -> None:
    from fractions import Fraction

    exact = Fraction(str(number)) * IEC[prefix]
    assert abs(parse_size(f"{number}{prefix}") - exact) <= Fraction(1, 2)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "B",
            "MiB",
            "-1MiB",
            "+1",
            "1MB",
            "1kB",
            "1kiB",
            "1mib",
            "1 M",
            "1M",
            "1e3",
            "0x10",
            ".5MiB",
            "1.MiB",
        ),
        *(
            "1,5MiB",
            "1_000",
            "nan",
            "inf",
            "٤KiB",
            "４KiB",
            "1MiB/s",
            "1 2",
            "1MiB1KiB",
            "1KiB\x00",
            "9" * 400,
            "9" * 5000,
        ),
    ],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size; write it like 512MiB"):
        parse_size(text)


@pytest.mark.parametrize(
    "text",
    ["", "s", "-1s", "1 sec", "1d", "1S", "1.s", "1e3s", "nan", "inf", "٤s", "1:30", "1m30s", "9" * 400, "1,5s"],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a duration; write it like 90s"):
        parse_duration(text)


@calm
@given(text=st.text(max_size=12))
def test_any_text_is_a_finite_value_or_a_value_error(text: str) -> None:
    for parse in (parse_size, parse_duration):
        try:
            value = parse(text)
        except ValueError:
            continue
        assert math.isfinite(value)
        assert value >= 0
        assert text.strip().isascii()


@calm
@given(number=st.integers(0, 10**9), unit=st.sampled_from(list(SECONDS)))
def test_durations(number: int, unit: str) -> None:
    assert parse_duration(f"{number}{unit}") == number * SECONDS[unit]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 B"),
        (1, "1.00 B"),
        (999, "999 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (10235, "10.0 KiB"),
        (2**20 - 1, "1.00 MiB"),
        (5 * 2**40, "5.00 TiB"),
        (-2048, "-2.00 KiB"),
        (math.inf, "–"),
        (math.nan, "–"),
    ],
)
def test_sizes_for_people(value: float, shown: str) -> None:
    assert format_size(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 s"),
        (1.85e-3, "1.85 ms"),
        (4.3, "4.30 s"),
        (9.999, "10.0 s"),
        (0.99999, "1.00 s"),
        (0.0009999, "1.00 ms"),
        (2.5e-10, "0.250 ns"),
        (119.4, "119 s"),
        (119.6, "2 min 00 s"),
        (125, "2 min 05 s"),
        (-125, "-2 min 05 s"),
        (-0.5, "-500 ms"),
        (3725, "62 min 05 s"),
        (math.inf, "–"),
        (math.nan, "–"),
    ],
)
def test_durations_for_people(value: float, shown: str) -> None:
    assert format_duration(value) == shown


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (2**21, Unit.BYTES_PER_SECOND, "2.00 MiB/s"),
        (122359.4, Unit.OPERATIONS_PER_SECOND, "122,359/s"),
        (999.7, Unit.OPERATIONS_PER_SECOND, "1,000/s"),
        (12.345, Unit.COUNT, "12.3"),
        (1.8571, Unit.RATIO, "1.86×"),
        (0.0, Unit.COUNT, "0"),
        (0.01234, Unit.SHARE, "1.23 %"),
        (0.0, Unit.SHARE, "0 %"),
        (0.02134, Unit.CPU, "0.0213 CPUs"),
        (math.nan, Unit.BYTES_PER_SECOND, "–"),
    ],
)
def test_values_for_people(value: float, unit: Unit, shown: str) -> None:
    assert format_value(value, unit) == shown


@calm
@given(value=finite, unit=st.sampled_from(list(Unit)))
def test_every_finite_value_of_every_unit_can_be_shown(value: float, unit: Unit) -> None:
    assert "e" not in format_value(value, unit).replace("ratio", "")


@calm
@given(value=reasonable.filter(lambda value: abs(value) >= 0.5))
@example(value=1023.99)
@example(value=2**30 - 1)
@example(value=9.9999)
def test_a_size_shown_is_right_to_three_digits(value: float) -> None:
    match = re.fullmatch(r"(-?[\d.]+) (B|[KMGT]iB)", format_size(value))
    assert match
    assert float(match[1]) * IEC[match[2]] == pytest.approx(value, rel=5.01e-3)
    # Four digits only where a prefix spans them, 1000 to 1023; a TiB has nothing above it.
    assert match[2] == "TiB" or abs(float(match[1])) < 1024
    digits = match[1].replace(".", "").lstrip("-0")
    assert len(digits) == 3 or abs(float(match[1])) >= 1000


@calm
@given(value=st.floats(min_value=1e-8, max_value=1e7) | st.floats(min_value=-1e7, max_value=-1e-8))
@example(value=0.9995)
@example(value=119.5)
def test_a_duration_shown_is_right_to_three_digits(value: float) -> None:
    shown = format_duration(value)
    minutes = re.fullmatch(r"(-?)(\d+) min (\d\d) s", shown)
    if minutes:
        back = (int(minutes[2]) * 60 + int(minutes[3])) * (-1 if minutes[1] else 1)
        assert back == pytest.approx(value, abs=0.51)
        assert int(minutes[3]) < 60
        return
    match = re.fullmatch(r"(-?[\d.]+) (s|ms|µs|ns)", shown)
    assert match
    factor = {"s": 1, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}[match[2]]
    assert float(match[1]) * factor == pytest.approx(value, rel=5.01e-3)
    assert len(match[1].replace(".", "").lstrip("-0")) == 3
    assert match[2] == "s" or abs(float(match[1])) < 1000
