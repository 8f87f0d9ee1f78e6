"""Names that more than one part of tare uses are typed once, in ``bench/catalogue.py``."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from enum import EnumMeta
from pathlib import Path

import pytest

from tare.bench import catalogue

ROOT = Path(__file__).parents[2]
FOLDERS = ("bench", "backends", "reports")
LIKE_A_METRIC = re.compile(r"(boot|command|density|guest|host|instance|interference|limits)\.[a-z0-9_.]*")
WORDS = (catalogue.Builtin, catalogue.StopReason)
"""Their values are ordinary words: what else they stand for elsewhere is another thing."""
WORD_CODES = {"clock", "precision"}
HOST_FIELD = ("bench/comparability.py", "host.")
"""Fields of the conditions of a run begin so, too."""


def literals(file: Path) -> Iterator[str]:
    """Every string of a module that is not a docstring; those around the values of an f-string too."""
    tree = ast.parse(file.read_text("utf-8"))
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


@pytest.fixture(scope="module")
def typed():
    """The modules that each literal is typed in."""
    found = defaultdict(set)
    for file in python_files():
        for text in literals(file):
            found[text].add(file.relative_to(ROOT).as_posix())
    return found


def catalogued() -> set[str]:
    members = {
        str(member)
        for group in vars(catalogue).values()
        if isinstance(group, EnumMeta) and group not in WORDS
        for member in group
    }
    return members - WORD_CODES | {catalogue.RATIO_PREFIX, catalogue.VALUE_PREFIX, *catalogue.HARNESS_METRICS}


def test_what_the_catalogue_names_is_typed_nowhere_else(typed):
    elsewhere = {(name, file) for name in catalogued() for file in typed[name] - {"bench/catalogue.py"}}
    assert {(file, name) for name, file in elsewhere} <= {HOST_FIELD}


def test_no_name_of_a_metric_is_typed_in_two_modules(typed):
    twice = {name: files for name, files in typed.items() if LIKE_A_METRIC.fullmatch(name) and len(files) > 1}
    assert twice == {"host.": {"bench/catalogue.py", HOST_FIELD[0]}}


def test_the_code_of_a_note_or_confound_is_typed_in_one_module(typed):
    coded = {call.args[0].value for file in python_files() for call in confounds(file)}
    assert {code: files for code in coded if len(files := typed[code]) > 1} == {}


def python_files() -> Iterator[Path]:
    """All but what tests the contract: an expectation is typed where it is expected."""
    for folder in FOLDERS:
        yield from (file for file in sorted((ROOT / folder).rglob("*.py")) if "testing" not in file.parts)


def confounds(file: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Confound"
        if named and node.args and isinstance(node.args[0], ast.Constant):
            yield node
