"""The page of a comparison and the index of a folder of runs: their answers, grades and fences, and their numbers."""

import json
import re
from collections import Counter
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from tare.bench.analysis import GradeLevel, analyse
from tare.bench.cli.main import app
from tare.bench.errors import ExitCode
from tare.bench.store import load_run
from tare.reports.headline import answer
from tests.synthetic import HOSTILE, QUICK, SUBJECTS, hostile_recipe, write_run
from tests.written import Page, says_change

SMALL = replace(QUICK, subjects=SUBJECTS[:2], iterations=3, noise=0.002)


def tare(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, recipe in {
        "monday": SMALL,
        "tuesday": replace(SMALL, seed=2, ratios={"native": 1.3, "vm": 8.8}),
        "hostile": hostile_recipe(),
        "loud": replace(SMALL, noise=0.2),
        "slow": replace(SMALL, noise=0.001, ratios={"native": 1.3, "vm": 8.8}),
        "one": replace(SMALL, blocks=1),
    }.items():
        run = write_run(folder / name, recipe)
        manifest = json.loads((run / "manifest.json").read_text("utf-8"))
        (run / "manifest.json").write_text(json.dumps(manifest | {"run": name}), "utf-8")
    return folder


def compared(folder, *options, form="html"):
    output = folder / f"compared.{form}"
    result = tare("compare", *options, "--format", form, "-o", output)
    assert result.exit_code == 0, result.output
    return output.read_text("utf-8")


def test_a_comparison_says_what_changed_with_its_grade_and_exact_numbers(folder):
    sides = (folder / "monday", folder / "tuesday")
    html = compared(folder, *sides)
    lines = json.loads(compared(folder, *sides, form="json"))["lines"]
    page = Page(html)
    assert "tuesday against monday" in page.text
    differing = [
        one
        for one in lines
        if one["is_leading"] and one["backend"] == "native" and one["found"]["verdict_adjusted"] in ("faster", "slower")
    ]
    leading = [one for one in lines if one["is_leading"] and one["backend"] == "native" and one["kind"] == "isolation"]
    words = Counter(one["found"]["verdict_adjusted"] for one in leading)
    assert f"Of {len(leading)} leading metrics: {words['slower']} slower" in page.text
    assert len(differing) == words["slower"] > 0
    assert "Indicative" in page.text
    assert "<svg class='strip'" in html
    saved = {value for exact in page.exact for value in exact if value}
    for one in lines:
        found = one["found"]
        if found["low"] is not None:
            assert str(found["ratio"]) in saved
            assert f"{found['low']}\t{found['high']}" in saved
    for cells, exact in zip(page.rows, page.exact, strict=True):
        if len(exact) == 7 and exact[4].replace(".", "").isdigit():
            assert says_change(cells[4], float(exact[4]))


def test_which_way_is_better_is_a_sign_that_is_explained_once(folder):
    page = Page(compared(folder, folder / "monday", "--backends", "bare-metal", "native"))
    assert page.text.count("lower is better") == page.text.count("higher is better") == 1
    names = [cells[0] for cells in page.rows if len(cells) == 7][1:]
    assert names
    assert all(("↓" in name) != ("↑" in name) for name in names)
    assert any("↑" in name for name in names if "events" in name)


def test_many_backends_are_rows_below_what_is_required(tmp_path):
    for count in (3, 8):
        names = ("bare-metal", *(f"engine-{number}" for number in range(count)))
        run = write_run(tmp_path / f"{count}", replace(SMALL, backends=names))
        assert tare("report", run, "-f", "html", "-o", run / "report.html").exit_code == 0
        rows = Page((run / "report.html").read_text("utf-8")).rows
        first = next(cells for cells in rows if cells[:1] in (["Requirement"], ["Backend"]))
        shown = rows[rows.index(first) + 1 :][:count]
        if count == 3:
            assert first == ["Requirement", *names[1:]]
        else:
            assert first[0] == "Backend"
            assert "Starts within 100 ms" in first
            assert [cells[0] for cells in shown] == list(names[1:])
            assert {len(cells) for cells in shown} == {len(first)}


def test_a_comparison_hides_nothing_that_could_not_be_told(folder):
    """Headline and tally count the same; both values stand beside each ratio; a rate is lower, not slower."""
    sides = (folder / "loud", "--backends", "bare-metal", "native")
    page, lines = Page(compared(folder, *sides)), json.loads(compared(folder, *sides, form="json"))["lines"]
    words = Counter(one["found"]["verdict_adjusted"] for one in lines if one["is_leading"])
    assert words["inconclusive"] > 0
    said = f"Of {words.total()} leading metrics: "
    headline, _, tally = page.text.partition(said)[2].partition(said)
    for text in (headline, tally):
        assert f"{words['inconclusive']} could not tell" in text.partition(". ")[0]
    assert "Could not tell: " in headline
    assert page.text.count(" → ") >= words.total()
    rates = Page(compared(folder, folder / "slow", "--backends", "bare-metal", "native")).text
    assert re.search(r"events: 2\d(\.\d+)? % lower", rates)
    assert "events is" not in rates


def test_an_emulated_guest_is_in_no_picture_of_a_comparison(folder):
    html = compared(folder, folder / "monday", folder / "tuesday")
    assert "vm (tcg)" not in html.partition('class="picture"')[2].partition("</figure>")[0]
    mixed = compared(folder, folder / "monday", "--backends", "native", "vm")
    assert "This compares with an emulated guest: it says nothing about a virtual machine." in mixed
    assert 'class="picture"' not in mixed


def test_a_side_that_cannot_be_used_is_said_first(folder):
    text = Page(compared(folder, folder / "monday", folder / "one")).text
    assert "This comparison cannot be used" in text
    assert "Not usable: one block" in text


def test_an_index_has_every_run_with_its_answer_and_grade(folder):
    assert tare("report", "--index", folder).exit_code == 0
    page = Page((folder / "index.html").read_text("utf-8"))
    for name in ("monday", "tuesday", "one"):
        analysis = analyse(load_run(folder / name))
        assert name in page.text
        assert " ".join(answer(analysis)[:1]) in page.text
        assert analysis.grade.level.capitalize() in page.text
    assert GradeLevel.NOT_USABLE.capitalize() in page.text
    assert "<script>alert" not in (folder / "index.html").read_text("utf-8")
    assert HOSTILE[0] not in (folder / "index.html").read_text("utf-8")


def test_what_cannot_be_read_is_in_the_index_and_an_empty_folder_is_refused(folder, tmp_path):
    broken = tmp_path / "runs" / "broken"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text("{", "utf-8")
    assert tare("report", "--index", tmp_path / "runs").exit_code == 0
    assert "It cannot be read" in (tmp_path / "runs" / "index.html").read_text("utf-8")
    (tmp_path / "none").mkdir()
    refused = tare("report", "--index", tmp_path / "none")
    assert refused.exit_code == ExitCode.BAD_INPUT
    assert "holds no run" in refused.stderr
