"""Every `tare` command in the documents exists as it is written: its options, and how many arguments it takes."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from tare.bench.cli.main import every_command

ROOT = Path(__file__).parents[2]
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")} - {ROOT / "CHANGELOG.md"})
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`(tare [a-z][^`]*)`")
_SHELL = {"", "console", "sh", "shell", "bash"}


def commands(text: str) -> Iterator[tuple[str, bool]]:
    """The commands of a page, and whether each is whole: those in a sentence may leave arguments out."""
    for language, block in _BLOCK.findall(text):
        if language in _SHELL:
            for line in block.splitlines():
                command = re.sub(r"\$\([^)]*\)", "x", line.strip().removeprefix("$ "))
                if command.startswith("tare "):
                    yield re.split(r"\s+(?:[|>]|#|&&|\|\|)|;", command)[0], True
    for inline in _INLINE.findall(_BLOCK.sub("", text)):
        yield re.split(r"\s+(?:[|>]|&&)", inline)[0], False


FOUND = [(page, command, whole) for page in PAGES for command, whole in dict(commands(page.read_text("utf-8"))).items()]


@pytest.fixture(scope="module")
def root():
    return typer.main.get_command(every_command())


def test_commands_were_found():
    assert len(FOUND) > 80
    assert len({page for page, _, _ in FOUND}) > 15


@pytest.mark.parametrize(
    ("page", "command", "whole"), FOUND, ids=[f"{page.relative_to(ROOT)}: {command}" for page, command, _ in FOUND]
)
def test_a_documented_command_exists(root, page, command, whole):
    words = shlex.split(command)[1:]
    at, context = root, root.context_class(root, info_name="tare")
    while words and getattr(at, "commands", None):
        if "judge" in at.commands and words[0] not in at.commands:
            words.insert(0, "judge")  # what `tare gate` does without a command of its own
        if words[0].startswith("-"):
            break
        assert words[0] in at.commands or _is_placeholder(words[0]), f"{page}: there is no command {words[0]!r}"
        if words[0] not in at.commands:
            return
        at = at.commands[words.pop(0)]
        context = at.context_class(at, parent=context, info_name=at.name)
    known = {flag for param in at.params for flag in (*param.opts, *param.secondary_opts)} | {"--help", "-h"}
    own = words[: words.index("--")] if "--" in words else words
    for word in own:
        flag = word.partition("=")[0]
        if re.fullmatch(r"--?[a-z][a-z-]*", flag):
            assert flag in known, f"{page}: {command}: there is no option {flag}"
    if whole:
        wanted = [param for param in at.params if param.param_type_name == "argument"]
        needed = sum(param.required for param in wanted)
        assert sum(not word.startswith("-") for word in words) >= needed, f"{page}: {command}: an argument is missing"


def _is_placeholder(word: str) -> bool:
    return word.isupper() or word in {"…", "..."}
