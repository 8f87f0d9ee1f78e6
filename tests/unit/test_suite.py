"""A suite is read strictly: whatever is wrong, the message names the file and the key."""

import os
from pathlib import Path

import msgspec
import pytest

from tare.bench.catalogue import TRAITS
from tare.bench.errors import ExitCode, SuiteError
from tare.bench.model import Envelope
from tare.bench.settings import MetricSettings, leading_metric, settings_of
from tare.bench.suite import HostOffer, Suite, bind_suite, read_suite, resolve_suite
from tare.bench.suite_file import read_toml
from tests.unit.fakes import BACKENDS, WORKLOADS

GOOD = """
[suite]
name = "good"
[envelope]
memory = "64MiB"
[sampling]
blocks = 2
[[backend]]
type = "fake"
[[backend]]
type = "fake"
name = "faster"
options = { speed = 2 }
[[experiment]]
kind = "boot"
blocks = 3
[[experiment]]
kind = "steady"
workload = "answer"
params = { size = [1, 2], mode = ["fast", "slow"] }
"""


def load(tmp_path: Path, text: str, **options) -> Suite:
    path = tmp_path / "suite.toml"
    path.write_text(text)
    return bind_suite(resolve_suite(read_toml(path), path, BACKENDS, WORKLOADS, **options))


def refusal(tmp_path: Path, text: str, **options) -> SuiteError:
    with pytest.raises(SuiteError) as caught:
        load(tmp_path, text, **options)
    assert caught.value.exit_code is ExitCode.BAD_INPUT
    assert str(tmp_path / "suite.toml") in caught.value.message
    return caught.value


def test_defaults_options_and_counts_are_resolved(tmp_path):
    suite = load(tmp_path, GOOD)
    assert [choice.name for choice in suite.backends] == ["fake", "faster"]
    assert suite.backends[1].options.speed == 2
    assert suite.envelope.memory_bytes == 64 * 2**20
    assert suite.envelope.cpus == (max(os.sched_getaffinity(0)),)
    assert suite.scenarios[0].sampling.blocks == 3
    assert suite.scenarios[1].sampling.blocks == 2
    assert suite.packages() == ("coreutils",)


def test_limits_beyond_cpus_and_memory(tmp_path):
    asked = 'swap = "1MiB"\ncpu_quota = 0.5\ncpu_weight = 50\nio_read_bytes_per_s = "8MiB"\nio_write_ops_per_s = 100'
    envelope = load(tmp_path, GOOD.replace('memory = "64MiB"', f'memory = "64MiB"\n{asked}')).envelope
    assert (envelope.swap_bytes, envelope.cpu_quota, envelope.cpu_weight) == (2**20, 0.5, 50)
    assert (envelope.io_read_bytes_per_s, envelope.io_write_ops_per_s) == (8 * 2**20, 100)
    before = load(tmp_path, GOOD).envelope
    assert (before.swap_bytes, before.cpu_quota, before.cpu_weight, before.io_write_bytes_per_s) == (
        0,
        None,
        None,
        None,
    )
    older = {name: getattr(before, name) for name in ("cpus", "memory_bytes", "scratch_bytes", "pids_max")}
    assert msgspec.convert(older, Envelope) == before, "runs of before there were such limits stay readable"


def test_a_list_in_params_is_a_dimension(tmp_path):
    suite = load(tmp_path, GOOD)
    given = [dict(subject.given) for subject in suite.scenarios[1:]]
    assert given == [{"size": size, "mode": mode} for size in (1, 2) for mode in ("fast", "slow")]


def test_a_list_in_a_backend_s_options_is_a_dimension(tmp_path):
    text = GOOD.replace("speed = 2", "speed = [2, 3]")
    suite = load(tmp_path, text)
    assert [choice.name for choice in suite.backends] == ["fake", "faster:speed=2", "faster:speed=3"]
    assert [choice.options.speed for choice in suite.backends] == [1, 2, 3]
    again = resolve_suite(suite.file.written(), Path("manifest.json"), BACKENDS, WORKLOADS)
    assert [choice.options for choice in again.backends] == [choice.options for choice in suite.backends]
    assert [choice.name for choice in again.backends] == [choice.name for choice in suite.backends]
    for only, kept in ((("faster",), suite.backends[1:]), (("faster:speed=3", "fake"), suite.backends[::2])):
        assert load(tmp_path, text, only=only).backends == kept
    assert "the suite has fake, faster:speed=2" in refusal(tmp_path, text, only=("faster:speed=4",)).message
    assert refusal(tmp_path, GOOD.replace("speed = 2", "speed = []")).place.endswith("backend[1].options.speed")
    assert "twice" in refusal(tmp_path, GOOD.replace("speed = 2", "speed = [2, 2]")).message


def test_only_and_seed_replace_what_the_file_says_and_survive_the_manifest(tmp_path):
    suite = load(tmp_path, GOOD, only=("faster",), seed=99)
    assert [choice.name for choice in suite.backends] == ["faster"]
    again = resolve_suite(suite.file.written(), Path("manifest.json"), BACKENDS, WORKLOADS)
    assert again.sampling.seed == 99
    assert [choice.name for choice in again.backends] == ["faster"]
    assert again.scenarios == suite.scenarios


@pytest.mark.parametrize(
    ("change", "place", "problem"),
    [
        (("[suite]", "[suit]"), "top level", "suit"),
        (('memory = "64MiB"', 'memry = "64MiB"'), "envelope", "memry"),
        (('memory = "64MiB"', 'memory = "64MB"'), "envelope.memory", "64MB"),
        (('memory = "64MiB"', 'memory = "16MiB"'), "envelope.memory", "needs 32MiB"),
        (('memory = "64MiB"', "cpus = 4096"), "envelope.cpus", "4096"),
        (('memory = "64MiB"', "cpus = [4095]"), "envelope.cpus", "4095"),
        (('memory = "64MiB"', "pids = 1"), "envelope.pids", "at least 16"),
        (('memory = "64MiB"', 'storage = "/not/there"'), "envelope.storage", "/not/there"),
        (('memory = "64MiB"', 'swap = "-1"'), "envelope.swap", "-1"),
        (('memory = "64MiB"', "cpu_quota = 0"), "envelope.cpu_quota", "at least 0.01, not 0"),
        (('memory = "64MiB"', "cpu_quota = 1.5"), "envelope.cpu_quota", "the envelope's CPUs, not 1.5"),
        (('memory = "64MiB"', 'cpu_quota = "half"'), "envelope.cpu_quota", "str"),
        (('memory = "64MiB"', "cpu_weight = 0"), "envelope.cpu_weight", "from 1 to 10000"),
        (('memory = "64MiB"', "cpu_weight = 10001"), "envelope.cpu_weight", "from 1 to 10000"),
        (('memory = "64MiB"', 'io_read_bytes_per_s = "1MB"'), "envelope.io_read_bytes_per_s", "1MB"),
        (('memory = "64MiB"', 'io_write_bytes_per_s = "1KiB"'), "envelope.io_write_bytes_per_s", "at least 4096"),
        (('memory = "64MiB"', "io_read_ops_per_s = 0"), "envelope.io_read_ops_per_s", "at least 1"),
        (('memory = "64MiB"', "io_write_ops_per_s = -5"), "envelope.io_write_ops_per_s", "at least 1"),
        (('memory = "64MiB"', "cpus = 9223372036854775807"), "envelope.cpus", "from 1 to 8192"),
        (("blocks = 2", "blocks = 0"), "sampling.blocks", "at least 1"),
        (("blocks = 2", "blocks = 1000000000000"), "sampling", "more than the 1000000 allowed"),
        (('name = "faster"', 'name = "\\u001b[2J"'), "backend[1].name", "text without control characters"),
        (("size = [1, 2]", "size = []"), "experiment[1].params.size", "list without a value"),
        (("blocks = 2", 'blocks = "two"'), "sampling.blocks", "int"),
        (("blocks = 2", "seed = -1"), "sampling.seed", "at least 0"),
        (('type = "fake"\n[[', 'type = "docker"\n[['), "backend[0].type", "there are: broken, fake"),
        (('name = "faster"', ""), "backend[1].name", "twice"),
        (("speed = 2", "sped = 2"), "backend[1].options", "sped"),
        (("speed = 2", 'speed = "x"'), "backend[1].options.speed", "int"),
        (('kind = "boot"', 'kind = "reboot"'), "experiment[0].kind", "there are: boot, churn, density, interference"),
        (
            ('kind = "boot"', 'kind = "boot"\nworkload = "answer"'),
            "experiment[0].options",
            "boot starts no other workload",
        ),
        (('workload = "answer"', ""), "experiment[1].workload", "needs a workload"),
        (('workload = "answer"', 'workload = "foo"'), "experiment[1].workload", "there are: answer"),
        (
            ('kind = "boot"', 'kind = "density"\noptions = { objective = "5ms" }'),
            "experiment[0].options",
            "objective: needs a workload",
        ),
        (('kind = "boot"', 'kind = "density"\noptions = { rate = inf }'), "experiment[0].options", "rate: must be"),
        (("size = [1, 2]", "sizes = [1, 2]"), "experiment[1].params", "sizes"),
        (("size = [1, 2]", 'size = ["x"]'), "experiment[1].params.size", "int"),
        (("size = [1, 2]", "size = 101"), "experiment[1].params", "at most 100"),
        (("size = [1, 2]", "size = [1, 1]"), "experiment", "twice"),
        (("blocks = 2", "blocks = 2\nprecision = 2"), "sampling.precision", "a share such as 0.02"),
        (("blocks = 2", 'blocks = 2\nmax_time = "soon"'), "sampling.max_time", "soon"),
        (("blocks = 2", 'blocks = 2\nmax_time = "0s"'), "sampling.max_time", "more than 0"),
        (("blocks = 2", 'blocks = 2\nmax_time = "501h"'), "sampling.max_time", "at most 500h"),
        (("blocks = 2", "blocks = 2\nmax_blocks = 9"), "sampling.max_blocks", "together with a precision"),
        (("blocks = 2", "blocks = 2\nprecision = 0.1\nmax_blocks = 1"), "sampling.max_blocks", "at least 2"),
        (("[sampling]", "[report]\nmargin = 2\n[sampling]"), "report.margin", "a share such as 0.02"),
        (("[sampling]", "[metric.answer]\nmargin = 0.1\n[sampling]"), 'metric."answer"', "nothing in this suite"),
        (('"slow"] }', '"slow"] }\n[metric."answer.value"]\nmargin = 1'), 'metric."answer.value".margin', "a share"),
        (
            ('"slow"] }', '"slow"] }\n[metric."answer.value"]\nquantile = 1'),
            'metric."answer.value".quantile',
            "more than 0 and less than 1",
        ),
    ],
)
def test_whatever_is_wrong_is_named_with_its_key(tmp_path, change, place, problem):
    assert change[0] in GOOD
    error = refusal(tmp_path, GOOD.replace(*change))
    assert error.place.endswith(f": {place}")
    assert problem in error.message


@pytest.mark.parametrize(("value", "problem"), [("1" * 5000, "is not TOML"), ("[" * 5000, "nested too deeply")])
def test_what_no_toml_reader_takes_is_refused(tmp_path, value, problem):
    assert problem in refusal(tmp_path, GOOD.replace("blocks = 2", f"blocks = {value}")).message


def test_a_plug_in_that_falls_over_while_a_suite_is_checked_is_named_with_its_key(tmp_path, monkeypatch):
    fake = BACKENDS.get("fake")
    monkeypatch.setattr(fake, "check", classmethod(lambda *_: {}["x"]))
    error = refusal(tmp_path, GOOD)
    assert error.place.endswith("backend[0].options")
    assert "the plug-in is at fault: KeyError: 'x'" in error.message


def test_a_suite_is_resolved_without_a_look_at_a_host_and_then_bound_to_any(tmp_path, monkeypatch):
    def look(*_):
        raise AssertionError("looked at this machine")

    path = tmp_path / "suite.toml"
    path.write_text(GOOD.replace('memory = "64MiB"', f'memory = "64MiB"\ncpus = 2\nstorage = "{tmp_path}"'))
    with monkeypatch.context() as patch:
        for name in ("sched_getaffinity", "sysconf", "cpu_count"):
            patch.setattr(os, name, look)
        spec = read_suite(path, BACKENDS, WORKLOADS)
        there = bind_suite(spec, HostOffer((2, 3, 5, 8), 2**30))
        assert (there.envelope.cpus, there.envelope.memory_bytes, there.storage) == ((5, 8), 2**26, tmp_path)
        assert (there.scenarios, there.backends) == (spec.scenarios, spec.backends)
        with pytest.raises(SuiteError, match=r"envelope\.cpus: asks for 2 CPUs; this host offers 1"):
            bind_suite(spec, HostOffer((0,), 2**30))
        with pytest.raises(SuiteError, match=r"envelope\.memory: asks for 64MiB; this host has 32.0 MiB"):
            bind_suite(spec, HostOffer((0, 1), 2**25))


def test_sizes_may_be_numbers_and_are_kept_as_they_were_written(tmp_path):
    suite = load(tmp_path, GOOD.replace('memory = "64MiB"', 'memory = 67108864\nscratch = "0.5GiB"'))
    assert (suite.envelope.memory_bytes, suite.envelope.scratch_bytes) == (2**26, 2**29)
    assert type(suite.envelope.memory_bytes) is int
    written = suite.file.written()
    assert (written["envelope"]["memory"], written["envelope"]["scratch"]) == ("67108864", "0.5GiB")
    assert written["sampling"]["max_time"] == "10m"
    again = resolve_suite(written, Path("manifest.json"), BACKENDS, WORKLOADS)
    assert again.file == suite.file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('memory = "64MiB"', "memory = true"), "envelope.memory: Expected a size such as 512MiB, got `bool`"),
        (('memory = "64MiB"', "memory = -1"), "envelope.memory: must be at least 0 B, not -1"),
        (("blocks = 2", "blocks = 2\nmax_time = 5"), "sampling.max_time: Expected a duration such as 90s, got `int`"),
        (("size = [1, 2]", "sizes = [1, 2]"), "experiment[1].params: unknown key `sizes`"),
        (
            ('"slow"] }', '"slow"] }\n[metric."answer.value"]\nquantile = [0.5, 7]'),
            'metric."answer.value".quantile[1]: must be more than 0 and less than 1, not 7',
        ),
        (
            ("blocks = 2", "blocks = 2\nprecision = 2"),
            "sampling.precision: must be at least 0 and less than 1 (a share such as 0.02, or 0: no precision), not 2",
        ),
        (('memory = "64MiB"', "cpus = []"), "envelope.cpus: Expected `array` of length >= 1"),
        (('memory = "64MiB"', "cpus = [0, 0]"), "envelope.cpus: must name each CPU once"),
    ],
)
def test_a_message_says_what_may_stand_there(tmp_path, change, message):
    assert refusal(tmp_path, GOOD.replace(*change)).message == f"{tmp_path}/suite.toml: {message}"


def test_an_unknown_key_is_answered_with_the_known_ones(tmp_path):
    error = refusal(tmp_path, GOOD.replace('memory = "64MiB"', 'memry = "64MiB"'))
    assert "memory" in (error.remedy or "")


def test_a_metric_s_own_settings_reach_whoever_reads_the_manifest(tmp_path):
    stated = """
[report]
margin = 0.03
[metric."answer.value"]
quantile = 0.9
[metric."answer/answer.value"]
margin = 0.05
[metric."boot.total"]
quantile = [0.99, 0.5]
"""
    source = load(tmp_path, GOOD + stated).file.written()
    assert settings_of(source, "answer", "answer.value") == MetricSettings(0.05, (0.9,))
    assert settings_of(source, "other", "answer.value") == MetricSettings(0.03, (0.9,))
    assert settings_of(source, "boot", "boot.total") == MetricSettings(0.03, (0.5, 0.99))
    assert settings_of(source, "boot", "boot.total", margin=0.1).margin == 0.1
    assert settings_of({"name": "from before"}, "boot", "boot.total") == MetricSettings()


def test_an_unknown_metric_is_answered_with_the_close_ones(tmp_path):
    error = refusal(tmp_path, GOOD + '[metric."answer/answer.valu"]\nmargin = 0.1')
    assert "answer/answer.value" in (error.remedy or "")


def test_bad_toml_names_the_line(tmp_path):
    assert "line 2" in refusal(tmp_path, "\n[suite\n").message


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(SuiteError, match="no such file"):
        read_suite(tmp_path / "none.toml", BACKENDS, WORKLOADS)
    with pytest.raises(SuiteError, match="cannot be read"):
        read_suite(tmp_path, BACKENDS, WORKLOADS)


def test_only_an_unknown_backend(tmp_path):
    assert "the suite has fake, faster" in refusal(tmp_path, GOOD, only=("vm",)).message


def test_a_workload_that_failed_to_load_is_told_with_its_reason(tmp_path):
    from tare.bench.errors import UnavailableError

    with pytest.raises(UnavailableError, match="No module named 'torn'"):
        load(tmp_path, GOOD.replace('workload = "answer"', 'workload = "torn"'))


@pytest.mark.parametrize("path", sorted(Path("suites").glob("*.toml")), ids=lambda path: path.name)
def test_the_ready_suites_can_be_read(path):
    from tare.bench.registry import find_backends, find_workloads

    suite = read_suite(path, find_backends(), find_workloads())
    assert suite.file.suite.description


@pytest.mark.parametrize(
    ("experiment", "measured", "leading"),
    [
        ("boot", ["boot.create", "boot.total"], "boot.total"),
        ("steady", ["command.duration", "read.iops", "read.latency"], "read.iops"),
        ("steady", ["command.duration", "host.cpu"], "command.duration"),
        (
            "interference",
            [
                "interference.aggressor_cpu",
                "interference.ratio.duration",
                "interference.ratio.a",
                "interference.ratio.b",
            ],
            "interference.ratio.a",
        ),
        ("interference", ["interference.aggressor_cpu", "interference.ratio.duration"], "interference.ratio.duration"),
        ("interference", ["interference.aggressor_cpu"], "interference.aggressor_cpu"),
        ("density", [], None),
    ],
)
def test_a_cell_is_known_by_one_metric_that_was_chosen_beforehand(experiment, measured, leading):
    assert leading_metric(TRAITS[experiment], measured) == leading
