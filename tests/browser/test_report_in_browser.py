"""The report in a real browser: the answer is on the first screen, nothing is asked for, all of it fits.

The page of the stored quickstart is held to the bars: what stands above the fold, how many words, how many sheets.
"""

import csv
import io
import itertools
import re
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from tare.bench.analysis import RunResults
from tare.bench.records import RunStatus
from tare.bench.store import load_run
from tare.reports.html import HtmlReporter
from tests.synthetic import HOSTILE, QUICK, SUBJECTS, hostile_recipe, write_run
from tests.unit.test_stored_runs import unpacked

playwright_api = pytest.importorskip("playwright.sync_api", reason="the Python package playwright is not installed")

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox",  # the tests may run as root, where Chromium refuses its sandbox
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SMALL = replace(QUICK, subjects=SUBJECTS[:1])
RECIPES = {
    "normal": SMALL,
    "failed": replace(SMALL, failing=("vm",), blocks=2, status=RunStatus.INTERRUPTED, half_written=True),
    "no-baseline": replace(SMALL, backends=("native", "vm")),
    "hostile": hostile_recipe(),
}
MOST_WORDS, MOST_SHEETS, MOST_BYTES = 4000, 4, 1_500_000


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome in PATH: apt-get install chromium")
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    (folder / "stored").mkdir()
    for name, recipe in RECIPES.items():
        HtmlReporter().write(RunResults(load_run(write_run(folder / name, recipe))), folder / f"{name}.html")
    for name in ("quickstart", "density"):
        HtmlReporter().write(RunResults(load_run(unpacked(name, folder / "stored"))), folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in (*RECIPES, "quickstart", "density")}


class Visit:
    """A page that is open, with everything it said and asked for."""

    def __init__(self, browser, file, *, width=1400, scheme="light", script=True):
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=script
        )
        self.page = self.context.new_page()
        self.messages, self.requests = [], []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def bottom(self, selector):
        """Where the lower edge of an element lies."""
        return self.page.eval_on_selector(selector, "one => one.getBoundingClientRect().bottom")

    def outside(self):
        """The texts of pictures that reach over the edge of the window."""
        return self.page.evaluate(
            """() => [...document.querySelectorAll(".strips .what, .strips .says, .scale i, .chart text")]
              .filter((one) => one.checkVisibility())
              .map((one) => [one.textContent, one.getBoundingClientRect()])
              .filter(([, box]) => box.left < -1 || box.right > innerWidth + 1)
              .map(([text]) => text)"""
        )

    def accessibility(self):
        """The violations that axe finds, but for minor ones, and how many of its rules hold."""
        axe = pytest.importorskip(
            "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
        )
        found = axe.Axe().run(self.page).response
        bad = [(one["id"], one["nodes"][0]["html"]) for one in found["violations"] if one["impact"] != "minor"]
        return bad, len(found["passes"])


# --- the bars ---------------------------------------------------------------------------------------


def test_answer_grade_and_picture_stand_above_the_fold(browser, files):
    with Visit(browser, files["quickstart"]) as visit:
        assert visit.bottom("#summary") <= 900
        for selector in ("h1", ".grade", ".picture", ".fence", ".key", ".caveats", ".where"):
            assert visit.page.locator(selector).first.is_visible()
        assert "Containers" in visit.page.locator("h1").inner_text()
        assert visit.page.locator(".grade").inner_text().startswith("First look")
        strips = visit.page.locator(".picture .strip").evaluate_all(
            "all => all.map(one => one.getBoundingClientRect().width)"
        )
        assert len(strips) == 5
        assert min(strips) > 100


def test_on_a_phone_it_stands_in_the_first_two_screens(browser, files):
    with Visit(browser, files["quickstart"], width=390) as visit:
        assert visit.bottom(".picture") <= 2 * 844
        names = visit.page.locator(".strips .what").evaluate_all("all => all.map((one) => one.clientWidth)")
        assert min(width for width in names if width) >= 130, "room for a name, whatever stands beside it"


def test_words_sheets_and_bytes(browser, files):
    with Visit(browser, files["quickstart"]) as visit:
        words = visit.page.evaluate(r"document.body.innerText.split(/\s+/).filter(Boolean).length")
        assert 300 < words <= MOST_WORDS
        printed = visit.page.pdf(format="A4", prefer_css_page_size=True)
        assert 1 <= len(re.findall(rb"/Type\s*/Page[^s]", printed)) <= MOST_SHEETS
    assert files["quickstart"].stat().st_size <= MOST_BYTES


@pytest.mark.parametrize(
    ("name", "scheme"), [("quickstart", "light"), ("quickstart", "dark"), ("hostile", "dark"), ("density", "light")]
)
def test_no_serious_violation_of_accessibility(browser, files, name, scheme):
    with Visit(browser, files[name], scheme=scheme) as visit:
        visit.page.evaluate("document.querySelectorAll('details').forEach((box) => { box.open = true; })")
        bad, held = visit.accessibility()
        assert bad == []
        assert held > 20


@pytest.mark.parametrize("width", [1400, 800, 360])
@pytest.mark.parametrize("name", ["quickstart", "density", "normal", "failed", "no-baseline", "hostile"])
def test_it_fits_in_silence_without_the_network(browser, files, name, width):
    with Visit(browser, files[name], width=width) as visit:
        assert visit.messages == []
        assert visit.requests == [files[name].as_uri()]
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        assert visit.outside() == []


def test_labels_of_an_axis_do_not_run_into_each_other(browser, files):
    for width in (1400, 800, 360):
        with Visit(browser, files["quickstart"], width=width) as visit:
            boxes = visit.page.evaluate(
                """() => [...document.querySelectorAll(".scale")].filter((one) => one.checkVisibility()).map((scale) =>
                  [...scale.querySelectorAll("i")].map((one) => one.getBoundingClientRect())
                    .map((box) => [box.left, box.right]))"""
            )
            assert len(boxes) > 4
            for scale in boxes:
                ordered = sorted(scale)
                assert all(one[1] <= other[0] + 1 for one, other in itertools.pairwise(ordered)), ordered


def test_at_twice_the_size_nothing_scrolls_sideways(browser, files):
    with Visit(browser, files["quickstart"], width=700) as visit:  # 1400 at 200 %
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 700


# --- what it does -----------------------------------------------------------------------------------


def test_links_lead_to_their_places_and_open_what_is_folded(browser, files):
    with Visit(browser, files["quickstart"]) as visit:
        for link in visit.page.query_selector_all("#summary nav a"):
            target = link.get_attribute("href")
            link.click()
            top, end = visit.page.evaluate(
                """(target) => [
                  document.querySelector(target).getBoundingClientRect().top,
                  document.documentElement.scrollHeight - scrollY - innerHeight,
                ]""",
                target,
            )
            assert abs(top) < 40 or end < 2, target
        visit.page.evaluate("location.hash = '#method'")
        visit.page.wait_for_function("document.querySelector('#method').open")


def test_dark_is_another_palette_in_page_and_pictures(browser, files):
    seen = {}
    for scheme in ("light", "dark"):
        with Visit(browser, files["quickstart"], scheme=scheme) as visit:
            seen[scheme] = visit.page.evaluate(
                """() => [
                    getComputedStyle(document.body).backgroundColor,
                    getComputedStyle(document.body).color,
                    getComputedStyle(document.querySelector('.strip .dot')).fill,
                    getComputedStyle(document.querySelector('.chart svg text')).fill,
                ]"""
            )
    assert all(light != dark for light, dark in zip(*seen.values(), strict=True)), seen


def test_without_script_everything_is_there(browser, files):
    with Visit(browser, files["normal"], script=False) as visit:
        assert visit.page.locator(".strip").first.is_visible()
        assert visit.page.get_by_role("button").count() == 0
        visit.page.locator("summary").first.click()
        assert visit.page.locator("table.measurements").first.is_visible()


def test_a_table_is_saved_as_csv(browser, files):
    with Visit(browser, files["normal"]) as visit:
        visit.page.locator(".block details").first.evaluate("one => { one.open = true; }")
        with visit.page.expect_download() as download:
            visit.page.get_by_role("button", name=re.compile(r"Save this table \(All measurements of Start")).click()
        lines = list(csv.reader(io.StringIO(download.value.path().read_text("utf-8"))))
        heads = ["metric", "name", "Backend", "value", "unit", "ratio", "low", "high", "Verdict"]
        assert lines[0] == heads
        compared = [dict(zip(heads, line, strict=True)) for line in lines[1:] if line[5]]
        assert len(compared) > 3
        for value in compared:
            assert float(value["low"]) <= float(value["ratio"]) <= float(value["high"])
            assert value["metric"].startswith("boot.")


def test_samples_are_saved_from_the_page(browser, files):
    with Visit(browser, files["normal"]) as visit:
        visit.page.evaluate("document.querySelector('#raw').open = true")
        with visit.page.expect_download() as download:
            visit.page.get_by_role("button", name="Save the samples as CSV").click()
        frame = pd.read_csv(download.value.path())
        assert len(frame) == len(load_run(files["normal"].with_suffix("")).samples)
        assert {"instance", "metric", "value", "unit", "block"} <= set(frame.columns)


def test_paper_gets_the_answer_in_light_and_no_appendix(browser, files):
    with Visit(browser, files["quickstart"], scheme="dark", width=688) as visit:
        visit.page.emulate_media(media="print", color_scheme="dark")
        assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert visit.page.locator(".appendix").is_hidden()
        assert visit.page.locator(".picture .strip").first.is_visible()
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 688


def test_hostile_names_are_seen_as_text_and_do_nothing(browser, files):
    with Visit(browser, files["hostile"]) as visit:
        visit.page.on("dialog", lambda dialog: visit.messages.append(dialog.message))
        text = visit.page.evaluate("document.body.textContent")
        assert HOSTILE[0] in text
        assert visit.messages == []


def test_keyboard_reaches_the_content_and_shows_where_it_is(browser, files):
    with Visit(browser, files["normal"]) as visit:
        visit.page.keyboard.press("Tab")
        assert visit.page.evaluate("document.activeElement.className") == "skip"
        assert visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        visit.page.keyboard.press("Enter")
        assert visit.page.evaluate("document.activeElement.id") == "main"
        for _ in range(4):
            visit.page.keyboard.press("Tab")
        assert visit.page.evaluate("document.activeElement.tagName") in ("A", "SUMMARY", "DIV")
