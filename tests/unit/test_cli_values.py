"""``name=value`` and suites made of options: what is wrong is said of the option."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tare.bench.cli.exec import InstanceRequest
from tare.bench.cli.main import app
from tare.bench.cli.values import named_values, suite_of_options, typed_values
from tare.bench.errors import SuiteError
from tare.bench.suite_file import EnvelopeSection


def test_values_are_text_or_what_they_read_as():
    given = ["a=1", "b = x", "c=[1, 2]", "d=true", "e=a=b", "f="]
    assert named_values("--param", given)["a"] == "1"
    typed = {"a": 1, "b": "x", "c": [1, 2], "d": True, "e": "a=b", "f": ""}
    assert typed_values("--param", given) == typed
    assert named_values("--only", ["smt"], alone="on") == {"smt": "on"}


@pytest.mark.parametrize("text", ["size", "=1", " =1", ""])
def test_what_is_not_name_value_is_refused(text):
    with pytest.raises(SuiteError, match=r"--param: .* is not name=value"):
        named_values("--param", [text])


@pytest.mark.parametrize(
    ("key", "option"),
    [
        ("envelope.memory", "--memory"),
        ("sampling.blocks", "--blocks"),
        ("experiment[0].options.start_limit", "--start-limit"),
        ("experiment[0].workload", "--workload"),
        ("experiment[0].params.block_size", "--param block_size"),
        ("experiment[0].params", "--param"),
        ("backend[0].options.user_namespace", "--option user_namespace"),
        ("backend[1].type", "BACKEND"),
        ("image.use", "tare x: image.use"),
    ],
)
def test_a_key_is_said_as_its_option(key, option):
    place = Path("tare x")
    with pytest.raises(SuiteError) as caught, suite_of_options(place):
        raise SuiteError(f"{place}: {key}", "must be more", remedy="more")
    assert (caught.value.message, caught.value.remedy) == (f"{option}: must be more", "more")


def test_a_suite_file_keeps_its_keys():
    with pytest.raises(SuiteError, match=r"^my\.toml: envelope\.memory: no$"), suite_of_options(Path("tare density")):
        raise SuiteError("my.toml: envelope.memory", "no")


def test_an_instance_has_the_defaults_of_a_suite():
    suite = InstanceRequest("native", {}, "").suite()
    assert suite.file.envelope == EnvelopeSection()
    assert suite.envelope.memory_bytes == EnvelopeSection().memory_bytes
    with pytest.raises(SuiteError, match=r"^--memory: '64MB' is not a size"):
        InstanceRequest("native", {"memory": "64MB"}, "").suite()
    with pytest.raises(SuiteError, match=r"^--cpus: asks for 999 CPUs"):
        InstanceRequest("native", {"cpus": 999}, "").suite()


@pytest.mark.parametrize("command", ["exec", "shell", "density"])
def test_help_names_the_defaults_of_a_suite(command):
    defaults = EnvelopeSection()
    shown = " ".join(CliRunner().invoke(app, [command, "--help"]).stdout.split())
    assert f"Memory of an instance ({defaults.memory_bytes})." in shown
    assert f"CPUs of an instance ({defaults.cpus})." in shown
