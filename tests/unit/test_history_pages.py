"""The published pages without a browser: files, links, the feed, and the numbers in them against the index."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from typer.testing import CliRunner

from tare.bench.cli.gate import app as gate_app
from tare.bench.cli.history import app
from tare.bench.history.index import open_history
from tare.reports.history_charts import MOST_POINTS, groups_of, sparkline
from tests.nights import Night, write_night, write_nights

ATOM = "{http://www.w3.org/2005/Atom}"
SLOWER = {("work-2", "native"): -0.09}


def tare(*words: Any) -> Any:
    return CliRunner().invoke(app, [*map(str, words)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("history") / "runs"
    write_nights(folder, [Night()] * 20 + [Night(ratios=SLOWER, labels={"commit": "<b>"})] * 5)
    CliRunner().invoke(gate_app, ["--runs", str(folder)])
    return folder


def test_the_pages_are_whole_and_their_links_lead_somewhere(runs: Path, tmp_path: Path) -> None:
    (runs / "20260125-nightly" / "report.html").write_text("")
    done = tare("publish", runs, "--output", tmp_path / "site")
    assert done.exit_code == 0, done.output
    pages = sorted((tmp_path / "site").glob("*.html"))
    assert len(pages) == 2 + 6
    for page in pages:
        text = page.read_text("utf-8")
        for link in re.findall(r'(?:href|src)="(?!data:)([^"#:]+)[^"]*"', text):
            assert (page.parent / link).exists(), link
        assert "http:" not in text.replace("http://www.w3.org", "")
        assert "<b>" not in text
    assert sum("report.html" in page.read_text("utf-8") for page in pages) == 2 - 1 + 6


def test_the_data_of_a_page_are_those_of_the_index(runs: Path, tmp_path: Path) -> None:
    tare("publish", runs, "--output", tmp_path / "site")
    with open_history(runs).start_query() as connection:
        rows = connection.execute(
            "SELECT workload, backend, level, ratio FROM cells WHERE own ORDER BY number"
        ).fetchall()
    for page in (tmp_path / "site").glob("subject-*.html"):
        text = page.read_text("utf-8")
        data = json.loads(re.search(r'class="data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
        workload = re.search(r"<h1><bdi>(work-\d)", text)[1]  # type: ignore[index]
        for line in data["lines"]:
            mine = [row for row in rows if row[:2] == (workload, line["name"])]
            assert line["level"] == pytest.approx([row[2] for row in mine], abs=6e-5)
            expected = [row[3] for row in mine]
            assert line["ratio"] == (expected if expected[0] is None else pytest.approx(expected, abs=6e-5))


def test_the_feed_keeps_its_identifiers_when_nights_are_added(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    write_nights(folder, [Night()] * 20 + [Night(ratios=SLOWER)] * 5)
    feeds = []
    for extra in (0, 3):
        for number in range(25, 25 + extra):
            write_night(folder, number, Night(ratios=SLOWER))
        CliRunner().invoke(gate_app, ["--runs", str(folder)])
        tare("publish", folder, "--output", tmp_path / "site", "--address", "https://example.org/n/")
        root = ET.parse(tmp_path / "site" / "feed.xml").getroot()
        feeds.append({entry.findtext(f"{ATOM}id"): entry for entry in root.findall(f"{ATOM}entry")})
        assert root.findtext(f"{ATOM}id") == "https://example.org/n/feed.xml"
    assert feeds[0].keys() == feeds[1].keys()
    (entry,) = feeds[0].values()
    link = entry.find(f"{ATOM}link").get("href")  # type: ignore[union-attr]
    assert re.fullmatch(r"https://example.org/n/subject-\w{4}-\w{12}\.html#\w{8}", link or "")
    assert entry.findtext(f"{ATOM}updated") == "2026-01-25T02:00:00+00:00"


def test_an_empty_history_has_pages_too(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    assert tare("update", tmp_path / "runs").exit_code == 0
    assert tare("publish", tmp_path / "runs", "--output", tmp_path / "site").exit_code == 0
    assert "Nothing that the gate knows of" in (tmp_path / "site" / "index.html").read_text()


def test_pages_that_cannot_be_written_are_one_message(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = tare("publish", runs, "--output", tmp_path / "file" / "site")
    assert done.exit_code == 6
    assert "cannot write the pages" in done.stderr


def test_groups_hold_every_night_once_and_are_few() -> None:
    for n in (0, 1, 30, 180, 181, 1000, 1001):
        groups = groups_of(n)
        assert [row for begin, end in groups for row in range(begin, end)] == list(range(n))
        assert len(groups) <= MOST_POINTS
    assert sparkline(np.array([np.nan, 1.0]), 0) == ""
