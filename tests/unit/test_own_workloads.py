"""Workloads that a suite makes for itself: what is refused when it is read, what is run, and how numbers are found."""

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tare.bench.comparability import conditions
from tare.bench.errors import ParseError, SuiteError
from tare.bench.interfaces import Workload
from tare.bench.model import Command, Completed, Direction, Envelope, Metric
from tare.bench.records import Manifest, RunStatus
from tare.bench.suite import Suite, read_suite, resolve_suite
from tare.bench.traits import Category
from tare.bench.units import SCALES, Unit, parse_unit
from tare.workloads.command import CommandKind, CommandSection, StatedMetric
from tare.workloads.pyperf_script import PyperfKind, PyperfSection
from tests.unit.fakes import BACKENDS, WORKLOADS

HEAD = """
[suite]
name = "own"
[envelope]
memory = "64MiB"
[[backend]]
type = "fake"
[[experiment]]
kind = "steady"
workload = "mine"
{experiment}
[[workload]]
name = "mine"
"""
WHOLE = """
summary = "squeezes"
command = ["squeeze", "-@level@", "-T@cpus@", "@server@", "@unknown@"]
packages = ["squeeze"]
category = "cpu"
licence = "MIT"
setup = [["fill", "/scratch/data", "@memory_bytes@"], ["sync"]]
teardown = [["rm", "/scratch/data"]]
load = [["warm", "@level@"]]
env = { LEVEL = "@level@", FAST = "@fast@" }
stdin = "level @level@"
cwd = "/scratch"
timeout = "90s"
params = { level = 6, fast = false }
[[workload.service]]
name = "squeezed"
command = ["squeezed", "--listen", "@server@"]
ready = ["squeeze", "--ping"]
[[workload.metric]]
name = "squeeze.bandwidth"
unit = "MiB/s"
direction = "higher"
description = "Bytes squeezed in a second."
regex = 'at (\\S+) MiB/s'
[[workload.metric]]
name = "squeeze.time"
direction = "lower"
description = "The whole of it."
exit_time = true
"""
METRIC = {"name": "m.x", "unit": "ms", "direction": "lower", "description": "Some.", "regex": r"took (\S+) ms"}
ENVELOPE = Envelope((2, 3), 2**26, 2**20, 64)


def read(tmp_path: Path, workload: str = WHOLE, experiment: str = "") -> Suite:
    path = tmp_path / "suite.toml"
    path.write_text(HEAD.format(experiment=experiment) + workload)
    return read_suite(path, BACKENDS, WORKLOADS)


def made(**section: Any) -> Workload:
    whole = {"name": "mine", "command": ["tool"], "metric": [METRIC], **section}
    return CommandKind().make(msgspec.convert(whole, CommandSection))()


def ended(stdout: str | bytes, *, stderr: bytes = b"", returncode: int | None = 0, seconds: float = 2.0) -> Completed:
    raw = stdout.encode() if isinstance(stdout, str) else stdout
    return Completed(("tool",), returncode, None, raw, stderr, 1.0, 1.0 + seconds)


def value(stdout: str, **metric: Any) -> float:
    stated = {**{name: known for name, known in METRIC.items() if name not in ("regex", "unit")}, **metric}
    return made(metric=[stated]).parse(ended(stdout))[0].value


def test_a_workload_is_made_of_what_the_suite_says(tmp_path: Path) -> None:
    suite = read(tmp_path, experiment="params = { level = [1, 9] }")
    assert [subject.cell("").subject for subject in suite.scenarios] == ["steady/mine/level=1", "steady/mine/level=9"]
    assert suite.packages() == ("squeeze",)
    workload = suite.scenarios[1].workload
    assert workload is not None
    assert (workload.category, workload.licence, workload.summary) == (Category.CPU, "MIT", "squeezes")
    assert workload.metrics == (
        Metric("squeeze.bandwidth", Unit.BYTES_PER_SECOND, Direction.HIGHER, "Bytes squeezed in a second."),
        Metric("squeeze.time", Unit.SECOND, Direction.LOWER, "The whole of it."),
    )
    commands = workload().commands(suite.scenarios[1].params, ENVELOPE)
    env = {"LEVEL": "9", "FAST": "false"}
    assert commands.measured == Command(
        ("squeeze", "-9", "-T2", "@server@", "@unknown@"), env, "/scratch", b"level 9", 90.0
    )
    assert [one.argv for one in commands.setup] == [("fill", "/scratch/data", str(2**26)), ("sync",)]
    assert [one.argv for one in commands.load] == [("warm", "9")]
    assert [one.argv for one in commands.teardown] == [("rm", "/scratch/data")]
    assert commands.services[0].command.argv == ("squeezed", "--listen", "@server@")
    assert commands.services[0].ready.argv == ("squeeze", "--ping")
    values = {one.metric: one.value for one in workload().parse(ended("done at 1.5 MiB/s\n"))}
    assert values == {"squeeze.bandwidth": 1.5 * 2**20, "squeeze.time": 2.0}


def test_what_the_manifest_keeps_makes_the_same_workload_again(tmp_path: Path) -> None:
    suite = read(tmp_path)
    stored = msgspec.json.decode(msgspec.json.encode(suite.file.written()))
    again = resolve_suite(stored, tmp_path / "elsewhere" / "manifest.json", BACKENDS, WORKLOADS)
    assert again.file.written() == suite.file.written()
    first, second = suite.scenarios[0], again.scenarios[0]
    assert first.workload is not None
    assert second.workload is not None
    assert second.workload.metrics == first.workload.metrics
    assert second.workload().commands(second.params, ENVELOPE) == first.workload().commands(first.params, ENVELOPE)


@pytest.mark.parametrize(
    ("change", "key", "says"),
    [
        (("packages = [", "package = ["), "workload[0]", "unknown key `package`"),
        (("regex = ", "regexp = "), "workload[0].metric[0]", "unknown key `regexp`"),
        (("at (\\\\S+) MiB", "at (\\\\S+ MiB"), "workload[0].metric[0]", "not a regular expression"),
        (("at (\\\\S+) MiB", "(at) (\\\\S+) MiB"), "workload[0].metric[0]", "exactly one group"),
        (("at (\\\\S+) MiB", "at 1 MiB"), "workload[0].metric[0]", "exactly one group"),
        (("exit_time = true", "unit = '1'\njson = 'jobs[0'"), "workload[0].metric[1]", "not a JMESPath expression"),
        (("exit_time = true", "exit_time = false"), "workload[0].metric[1]", "exactly one of these ways"),
        (("exit_time = true", "exit_time = true\nregex = '(x)'"), "workload[0].metric[1]", "exactly one of these ways"),
        (("exit_time = true", "exit_time = true\nunit = 'ms'"), "workload[0].metric[1]", "unit: tare measures"),
        (("exit_time = true", "exit_time = true\ntake = 'sum'"), "workload[0].metric[1]", "take"),
        (('unit = "MiB/s"', 'unit = "MB/sec"'), "workload[0].metric[0]", "unit: 'MB/sec' is no unit"),
        (('unit = "MiB/s"', ""), "workload[0].metric[0]", "unit: say in which"),
        (('direction = "lower"', 'direction = "down"'), "workload[0].metric[1].direction", "down"),
        (('description = "The whole of it."', ""), "workload[0].metric[1]", "description"),
        (('"squeeze.time"', '"squeeze.bandwidth"'), "workload[0]", "'squeeze.bandwidth' is defined twice"),
        (('"squeeze.time"', '"command.time"'), "workload[0].metric[1]", "one that tare measures itself"),
        (('"squeeze.time"', '"Squeeze Time"'), "workload[0].metric[1].name", "regex"),
        (('timeout = "90s"', 'timeout = "soon"'), "workload[0]", "timeout"),
        (('timeout = "90s"', 'timeout = "0s"'), "workload[0]", "timeout"),
        (('cwd = "/scratch"', 'cwd = "scratch"'), "workload[0]", "cwd"),
        (('category = "cpu"', 'category = "gpu"'), "workload[0].category", "gpu"),
        (("params = { level", "params = { cpus = 1, level"), "workload[0]", "params: cpus has a meaning of its own"),
        (("params = { level", "params = { levle = 1, level"), "workload[0]", "params: levle is used nowhere"),
        (("params = { level", "params = { Level = 1, level"), "workload[0]", "'Level' cannot be a name"),
        (('command = ["squeeze", ', 'command = []\nspare = ["squeeze", '), "workload[0].command", "length >= 1"),
        (("command = [", "pyperf = 'a.py'\ncommand = ["), "workload[0]", "command and pyperf are given"),
        (('command = ["squeeze", ', 'commands = ["squeeze", '), "workload[0]", "does not say what it runs"),
    ],
)  # fmt: skip
def test_whatever_is_wrong_is_refused_with_file_and_key(
    tmp_path: Path, change: tuple[str, str], key: str, says: str
) -> None:
    old, new = (text.replace("\\\\", "\\") for text in change)
    assert old in WHOLE, old
    with pytest.raises(SuiteError) as caught:
        read(tmp_path, WHOLE.replace(old, new))
    assert str(caught.value.place).removeprefix(f"{tmp_path}/suite.toml: ").startswith(key)
    assert says in str(caught.value)


def test_the_known_keys_are_those_of_the_section_that_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(SuiteError) as caught:
        read(tmp_path, WHOLE.replace("regex = ", "regexp = "))
    assert caught.value.remedy is not None
    assert "exit_time" in caught.value.remedy
    assert "packages" not in caught.value.remedy


@pytest.mark.parametrize("taken", ["answer", "torn"])
def test_a_name_that_is_taken_is_refused(tmp_path: Path, taken: str) -> None:
    assert taken in {*WORKLOADS.loaded, *WORKLOADS.failures}
    path = tmp_path / "suite.toml"
    path.write_text((HEAD.format(experiment="") + WHOLE).replace('"mine"', f'"{taken}"'))
    with pytest.raises(SuiteError, match=rf"workload\[0\].name: tare has a workload '{taken}' already"):
        read_suite(path, BACKENDS, WORKLOADS)


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"workload\[1\].name: the suite has a workload 'mine' already"):
        read(tmp_path, f'{WHOLE}\n[[workload]]\nname = "mine"{WHOLE}')


def test_a_parameter_is_checked_by_the_type_of_its_default(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"experiment\[0\].params.level: Expected `int`, got `str`"):
        read(tmp_path, experiment='params = { level = "six" }')
    with pytest.raises(SuiteError, match=r"experiment\[0\].params: .*unknown key `depth`"):
        read(tmp_path, experiment="params = { depth = 1 }")


def test_two_runs_of_other_commands_are_not_comparable(tmp_path: Path) -> None:
    kept = {"name": "mine", "command": ["a"], "script": "x" * 1000, "summary": "words"}
    manifest = msgspec.structs.replace(_manifest(), suite={"workload": [kept]})
    fields = conditions(manifest)
    assert fields["workload.mine.command"] == '["a"]'
    assert fields["workload.mine.script"].startswith("sha256:")
    assert "workload.mine.summary" not in fields


def _manifest() -> Manifest:
    return Manifest(1, "run", "0", RunStatus.COMPLETE, 1, "", "", {}, ENVELOPE, {}, (), "", {}, {}, (), {}, 0, ())


# --- numbers --------------------------------------------------------------------------------------------


def test_units_are_those_that_the_tool_prints() -> None:
    for unit, printed, expected in (
        ("ms", "0.015", 1.5e-05),
        ("us", "3", 3e-06),
        ("µs", "3", 3e-06),
        ("min", "1.5", 90.0),
        ("kB", "2", 2000.0),
        ("KiB", "2", 2048.0),
        ("MB/s", "1.25", 1.25e6),
        ("MiB/s", "0.5", 2.0**19),
        ("Mbit/s", "8", 1e6),
        ("bit", "1", 0.125),
        ("k/s", "12", 12000.0),
        ("%", "12.5", 0.125),
        ("1", "7", 7.0),
    ):
        assert parse_unit(unit).to_base(printed) == expected, unit
    assert {scale.unit for scale in SCALES.values()} == set(Unit)
    for ambiguous in ("KB", "MB/sec", "K", "Mbps", "sec", ""):
        with pytest.raises(ValueError, match="is no unit that is known"):
            parse_unit(ambiguous)


UNUSABLE = ["nan", "inf", "-inf", "-1", "-0.5", "0", "1,5", "1.234,5", "0x10", "--", "1e999", "9" * 500]


@pytest.mark.parametrize("printed", UNUSABLE)
def test_what_cannot_be_compared_is_refused_with_the_text(printed: str) -> None:
    text = f"it took {printed} ms"
    with pytest.raises(ParseError) as caught:
        value(text, unit="ms", regex=r"took (\S+) ms")
    assert printed[:300] in caught.value.evidence
    with pytest.raises(ParseError):
        value(json.dumps({"took": printed}), unit="ms", json="took")


def test_zero_is_a_value_where_the_suite_says_so() -> None:
    assert value("took 0 ms", unit="ms", regex=r"took (\S+) ms", may_be_zero=True) == 0
    with pytest.raises(ParseError, match="cannot be compared"):
        value("took -0.1 ms", unit="ms", regex=r"took (\S+) ms", may_be_zero=True)


def test_several_matches_need_a_word_on_which() -> None:
    text = "took 3 ms\ntook 1 ms\ntook 5 ms\n"
    with pytest.raises(ParseError, match="finds 3 values where one is expected"):
        value(text, unit="ms", regex=r"^took (\S+) ms$")
    expected = {"first": 3, "last": 5, "smallest": 1, "largest": 5, "sum": 9, "mean": 3, "median": 3}
    for take, ms in expected.items():
        assert math.isclose(value(text, unit="ms", regex=r"^took (\S+) ms$", take=take), ms / 1000), take
    assert math.isclose(value('{"all": [3, "1", 5]}', unit="ms", json="all", take="sum"), 0.009)


def test_no_match_and_a_group_outside_the_match_are_refused() -> None:
    with pytest.raises(ParseError, match="does not match"):
        value("nothing of it", unit="ms", regex=r"took (\S+) ms")
    with pytest.raises(ParseError, match="is not part of the match"):
        value("took long", unit="ms", regex=r"took (?:(\d+) ms|long)")


def test_a_json_path_finds_nested_values() -> None:
    document = json.dumps({"jobs": [{"read": {"iops": 1200.5, "clat_ns": {"percentile": {"99.000000": 7e6}}}}]})
    assert value(document, unit="1/s", json="jobs[0].read.iops") == 1200.5
    assert value(document, unit="ns", json='jobs[0].read.clat_ns.percentile."99.000000"') == 0.007
    for path, says in (("jobs[1].read", "finds nothing"), ("jobs[0].read", "not a number"), ("abs(jobs)", "cannot be")):
        with pytest.raises(ParseError, match=says):
            value(document, unit="1/s", json=path)
    for text in ("", "fio: note\n{}", "[" * 50_000, '{"jobs": NaN}'):
        with pytest.raises(ParseError):
            value(text, unit="1/s", json="jobs[0].read.iops")


def test_only_the_time_is_read_of_a_command_that_prints_nothing() -> None:
    timed = {"name": "t", "direction": "lower", "description": "Time.", "exit_time": True}
    assert made(metric=[timed]).parse(ended("", seconds=0.25))[0].value == 0.25
    with pytest.raises(ParseError, match="its duration is not a measurement"):
        made(metric=[timed]).parse(ended("", returncode=1))
    with pytest.raises(ParseError, match="printed nothing to stdout"):
        made(metric=[timed, METRIC]).parse(ended(""))


def test_metrics_can_stand_in_the_error_output() -> None:
    workload = made(output="stderr")
    assert workload.parse(ended("", stderr=b"took 5 ms"))[0].value == 0.005
    with pytest.raises(ParseError, match="printed nothing to stderr"):
        workload.parse(ended("took 5 ms"))


BROKEN = st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode))


@given(raw=BROKEN, returncode=st.sampled_from([0, 0, 0, 1, None]))
@example(raw=b'{"a": [null, 1]}', returncode=0)
@example(raw=b'{"a": true}', returncode=0)
@example(raw=b"took 1e-400 ms", returncode=0)
def test_broken_output_is_a_parse_error_and_nothing_else(raw: bytes, returncode: int | None) -> None:
    for metric in (
        METRIC,
        {**METRIC, "regex": r"(.*)"},
        {**METRIC, "regex": None, "json": "a"},
        {**METRIC, "regex": None, "json": "sum(@)"},
    ):
        try:
            found = made(metric=[metric]).parse(ended(raw, returncode=returncode))
        except ParseError:
            continue
        assert returncode == 0
        assert found[0].value > 0
        assert math.isfinite(found[0].value)


def test_a_metric_needs_one_way_of_reading() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**METRIC, "json": "a"}, StatedMetric)


# --- pyperf ---------------------------------------------------------------------------------------------

SCRIPT = "import pyperf\npyperf.Runner().timeit('sum', 'sum(range(100))')\n"
PYPERF = 'pyperf = "bench_mine.py"\nbenchmarks = ["sum", "Sort 2"]\narguments = ["--fast"]\n'
CAPTURED = Path(__file__).parents[1] / "data" / "pyperf-2.10.0" / "two.json"


def test_a_pyperf_script_is_carried_in_and_kept_in_the_manifest(tmp_path: Path) -> None:
    script = tmp_path / "bench_mine.py"
    script.write_text(SCRIPT)
    suite = read(tmp_path, PYPERF)
    script.unlink()
    again = resolve_suite(suite.file.written(), tmp_path / "run" / "manifest.json", BACKENDS, WORKLOADS)
    workload = again.scenarios[0].workload
    assert workload is not None
    assert [(metric.name, metric.unit) for metric in workload.metrics] == [("sum", "s"), ("sort-2", "s")]
    assert "python3" in workload.packages
    commands = workload().commands(again.scenarios[0].params, ENVELOPE)
    assert commands.setup[0].stdin == SCRIPT.encode()
    assert commands.measured.argv[-2:] == ("bench_mine.py", "--fast")


@pytest.mark.parametrize(
    ("text", "script", "says"),
    [
        (PYPERF, None, "bench_mine.py: No such file"),
        (PYPERF, "def (", "is not valid Python"),
        (PYPERF.replace('"Sort 2"', '"SUM"'), SCRIPT, "two of them would be the metric 'sum'"),
        (PYPERF.replace("--fast", "--output=x"), SCRIPT, "arguments: tare itself says where"),
        (PYPERF.replace("benchmarks", "benchmark"), SCRIPT, "benchmark"),
        (PYPERF + 'timeout = "x"', SCRIPT, "timeout"),
    ],
)  # fmt: skip
def test_a_wrong_pyperf_workload_is_refused(tmp_path: Path, text: str, script: str | None, says: str) -> None:
    if script is not None:
        (tmp_path / "bench_mine.py").write_text(script)
    with pytest.raises(SuiteError, match=r"suite.toml: workload\[0\]") as caught:
        read(tmp_path, text)
    assert says in str(caught.value)


def pyperf_workload(*benchmarks: str) -> Workload:
    section = PyperfSection(name="mine", pyperf="bench_mine.py", benchmarks=benchmarks, script=SCRIPT)
    return PyperfKind().make(section)()


def test_pyperf_values_are_those_of_its_own_file() -> None:
    raw = CAPTURED.read_bytes()
    document = json.loads(raw)
    expected = {
        benchmark.get("metadata", {}).get("name") or document["metadata"]["name"]: [
            value for run in benchmark["runs"] for value in run.get("values", ())
        ]
        for benchmark in document["benchmarks"]
    }
    workload = pyperf_workload("sum", "Sort 2")
    found = {one.metric: one.value for one in workload.parse(ended(raw))}
    assert set(expected) == {"sum", "Sort 2"}
    for metric, name in (("sum", "sum"), ("sort-2", "Sort 2")):
        assert math.isclose(found[metric], sum(expected[name]) / len(expected[name]), rel_tol=1e-12)
    for histogram, name in zip(workload.histograms(ended(raw)), expected, strict=True):
        kept = [bound for bound, count in zip(histogram.bounds, histogram.counts, strict=True) for _ in range(count)]
        assert kept == sorted(expected[name])


def test_a_benchmark_that_is_not_declared_is_refused_and_so_is_one_that_is_missing() -> None:
    raw = CAPTURED.read_bytes()
    for declared in (("sum",), ("sum", "Sort 2", "more")):
        with pytest.raises(ParseError, match="measured Sort 2, sum, and the suite says"):
            pyperf_workload(*declared).parse(ended(raw))


@given(cut=st.integers(min_value=0, max_value=CAPTURED.stat().st_size - 3), junk=st.sampled_from([b"", b"}", b"NaN]"]))
def test_a_broken_pyperf_file_is_a_parse_error(cut: int, junk: bytes) -> None:
    with pytest.raises(ParseError):
        pyperf_workload("sum", "Sort 2").parse(ended(CAPTURED.read_bytes()[:cut] + junk))


@pytest.mark.parametrize("argv", [(), ("",)])
def test_a_command_names_a_program(argv: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="names no program"):
        Command(argv)
