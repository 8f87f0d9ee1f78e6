"""The report in a real browser: it draws, it asks for nothing, it fits, it follows light and dark."""

import csv
import io
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from tare.bench.analysis import RunResults
from tare.bench.records import RunStatus
from tare.bench.store import load_run
from tare.reports.html import HtmlReporter
from tests.synthetic import HOSTILE, QUICK, SUBJECTS, hostile_recipe, write_run

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
A4_WIDTH, A4_HEIGHT = 688, 1001
"""The inside of an A4 sheet with this page's margins, in CSS pixels."""


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
    for name, recipe in RECIPES.items():
        HtmlReporter().write(RunResults(load_run(write_run(folder / name, recipe))), folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in RECIPES}


class Visit:
    """A page that is open, with everything it said and asked for."""

    def __init__(self, browser, file, *, width=1280, scheme="light", script=True):
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

    def draw_all(self):
        """Bring every figure into view and wait until each is drawn."""
        for handle in self.page.query_selector_all("[data-chart]"):
            handle.scroll_into_view_if_needed()
        self.page.wait_for_function("!document.querySelector('[data-chart]:not(.drawn)')")

    def draw_one(self):
        """Bring the first figure with marks into view and wait until it is drawn."""
        self.page.locator("figure[id] [data-chart]").first.scroll_into_view_if_needed()
        self.page.wait_for_selector("figure[id] .drawn svg .mark-symbol path")


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        ("normal", 1280, "light"),
        ("normal", 360, "dark"),
        ("failed", 360, "light"),
        ("no-baseline", 1280, "dark"),
        ("hostile", 360, "light"),
    ],
)
def test_draws_everything_in_silence_without_the_network(browser, files, name, width, scheme):
    with Visit(browser, files[name], width=width, scheme=scheme) as visit:
        visit.draw_all()
        assert visit.messages == []
        assert visit.requests == [files[name].as_uri()]
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        boxes = visit.page.eval_on_selector_all(
            ".drawn .live svg", "all => all.map(one => [one.getBoundingClientRect().width, one.innerHTML.length])"
        )
        assert boxes
        assert all(120 < box_width <= width and length > 500 for box_width, length in boxes)


DRAWN = """() => [...document.querySelectorAll("[data-chart]")].every((figure) => {
  const box = figure.getBoundingClientRect();
  return box.bottom < 0 || box.top > innerHeight || figure.classList.contains("drawn");
})"""
"""Whether every figure in view is drawn."""


def test_links_of_the_contents_lead_to_their_headings(browser, files):
    with Visit(browser, files["normal"]) as visit:
        for link in visit.page.query_selector_all(".contents a"):
            link.click()
            visit.page.wait_for_function(DRAWN)
            top, end = visit.page.evaluate(
                """(target) => [
                  document.querySelector(target).getBoundingClientRect().top,
                  document.documentElement.scrollHeight - scrollY - innerHeight,
                ]""",
                link.get_attribute("href"),
            )
            assert abs(top) < 40 or end < 2, link.get_attribute("href")


def test_dark_is_another_palette_in_page_and_charts(browser, files):
    seen = {}
    for scheme in ("light", "dark"):
        with Visit(browser, files["normal"], scheme=scheme) as visit:
            visit.draw_one()
            seen[scheme] = visit.page.evaluate(
                """() => [
                    getComputedStyle(document.body).backgroundColor,
                    getComputedStyle(document.body).color,
                    getComputedStyle(document.querySelector('.live svg .mark-symbol path')).fill,
                    getComputedStyle(document.querySelector('.live svg .role-axis text')).fill,
                ]"""
            )
    assert all(light != dark for light, dark in zip(*seen.values(), strict=True)), seen
    assert all(colour.startswith("rgb") for colours in seen.values() for colour in colours)


def test_changing_the_scheme_recolours_what_is_drawn(browser, files):
    with Visit(browser, files["normal"]) as visit:
        visit.draw_one()
        ask = "getComputedStyle(document.querySelector('.live svg .mark-symbol path')).fill"
        light = visit.page.evaluate(ask)
        visit.page.emulate_media(color_scheme="dark")
        assert visit.page.evaluate(ask) != light


def test_without_script_the_still_pictures_stand(browser, files):
    with Visit(browser, files["normal"], script=False) as visit:
        pictures = visit.page.locator(".still svg")
        assert pictures.count() > 5
        assert pictures.first.is_visible()
        assert visit.page.locator("[data-subject]:visible").count() == 2
        assert visit.page.locator("form").is_hidden()
        assert visit.page.get_by_role("button").count() == 0
        assert visit.requests == [files["normal"].as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_violation_of_accessibility(browser, files, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    with Visit(browser, files["hostile"], scheme=scheme) as visit:
        visit.draw_all()
        visit.page.evaluate("document.querySelectorAll('details').forEach((box) => { box.open = true; })")
        found = axe.Axe().run(visit.page).response
        bad = [(one["id"], one["nodes"][0]["html"]) for one in found["violations"] if one["impact"] != "minor"]
        assert bad == []
        assert len(found["passes"]) > 20


def test_filter_leaves_what_is_asked_for_and_comes_back(browser, files):
    with Visit(browser, files["normal"]) as visit:
        page = visit.page
        visit.draw_one()
        drawn = "document.querySelector('figure[id] .drawn .live svg')?.textContent"
        lines = page.locator("table.ratios tr[data-row]:visible")
        every = lines.count()
        assert "vm (tcg)" in page.evaluate(drawn)
        page.get_by_role("checkbox", name="vm (tcg)").focus()
        page.keyboard.press("Space")
        assert 0 < lines.count() < every
        assert "vm (tcg)" not in " ".join(lines.all_inner_texts())
        page.wait_for_function(f"{drawn}?.includes('native') && !{drawn}.includes('vm (tcg)')")
        page.get_by_label("Workload").select_option(label="sysbench-cpu")
        assert page.locator("#s-boot").is_hidden()
        assert page.locator("[data-subject]:visible").count() == 1
        assert "1 of 2 subjects" in page.locator(".filters output").inner_text()
        page.get_by_role("button", name="Show everything").click()
        page.wait_for_function("document.querySelectorAll('[data-subject]:not([hidden])').length === 2")
        assert lines.count() == every
        assert visit.messages == []


def test_a_table_is_copied_as_csv(browser, files):
    for name in ("normal", "hostile"):
        with Visit(browser, files[name]) as visit:
            page = visit.page
            page.get_by_role("button", name="Copy as CSV: Table of the leading metrics").click()
            page.evaluate("document.body.append(Object.assign(document.createElement('textarea'), { id: 'paste' }))")
            page.locator("#paste").focus()
            page.keyboard.press("Control+V")
            lines = list(csv.reader(io.StringIO(page.locator("#paste").input_value())))
            heads = ["Metric", "Backend", "Ratio", "low", "high", "Verdict", "value", "unit", "baseline"]
            assert lines[0] == heads
            assert len(lines) > 2
            for line in lines[1:]:
                assert len(line) == len(heads)
                value = dict(zip(heads, line, strict=True))
                assert float(value["low"]) <= float(value["Ratio"]) <= float(value["high"])
                assert float(value["value"]) > 0
                assert value["unit"] in {"s", "1/s", "B"}


def test_samples_are_saved_from_the_page(browser, files):
    with Visit(browser, files["normal"]) as visit:
        with visit.page.expect_download() as download:
            visit.page.get_by_role("button", name="Save all samples as CSV").click()
        frame = pd.read_csv(download.value.path())
        assert len(frame) == len(load_run(files["normal"].with_suffix("")).samples)
        assert {"instance", "metric", "value", "unit", "block"} <= set(frame.columns)


def test_paper_gets_light_still_pictures_that_fit(browser, files):
    with Visit(browser, files["normal"], scheme="dark", width=A4_WIDTH) as visit:
        visit.draw_one()
        visit.page.emulate_media(media="print", color_scheme="dark")
        boxes = visit.page.eval_on_selector_all(
            ".still svg",
            "all => all.map((one) => one.getBoundingClientRect()).map((box) => [box.left, box.right])",
        )
        assert len(boxes) > 5
        assert all(left >= 0 and right <= A4_WIDTH for left, right in boxes)
        kept = visit.page.eval_on_selector_all(
            ".figures > figure, .phase",
            "all => all.map((one) => [getComputedStyle(one).breakInside, one.offsetHeight])",
        )
        assert all(rule == "avoid" and height < A4_HEIGHT for rule, height in kept), kept
        tables = visit.page.eval_on_selector_all("table", "all => all.map((one) => one.getBoundingClientRect().right)")
        assert max(tables) <= A4_WIDTH
        assert visit.page.locator(".live").first.is_hidden()
        assert visit.page.locator(".still svg").first.is_visible()
        assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= A4_WIDTH
        assert visit.page.pdf(format="A4").startswith(b"%PDF")


def test_hostile_names_are_seen_as_text_and_do_nothing(browser, files):
    with Visit(browser, files["hostile"]) as visit:
        visit.page.on("dialog", lambda dialog: visit.messages.append(dialog.message))
        visit.draw_one()
        text = visit.page.evaluate("document.body.innerText")
        assert HOSTILE[0] in text
        assert HOSTILE[4] in text
        assert visit.page.locator("h1").inner_text() == HOSTILE[0]
        assert visit.messages == []


def test_keyboard_reaches_the_content_and_shows_where_it_is(browser, files):
    with Visit(browser, files["normal"]) as visit:
        visit.page.keyboard.press("Tab")
        focused = visit.page.evaluate("document.activeElement.className")
        assert focused == "skip"
        outline = visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        visit.page.keyboard.press("Enter")
        assert visit.page.evaluate("document.activeElement.id") == "main"


def test_a_figure_can_be_kept_as_a_picture(browser, files):
    with Visit(browser, files["normal"]) as visit:
        visit.draw_one()
        for kind, start in (("SVG", b"<svg"), ("PNG", b"\x89PNG")):
            with visit.page.expect_download() as download:
                visit.page.get_by_role("button", name=f"Save boot.create as {kind}").first.click()
            with open(download.value.path(), "rb") as file:  # noqa: PTH123 - playwright gives a string or a path
                content = file.read()
            assert content.startswith(start)
            assert b"var(--" not in content
        assert visit.messages == []
