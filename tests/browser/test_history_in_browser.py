"""The pages of a history in a real browser: they draw, ask for their own files alone, fit, and work by keyboard."""

from dataclasses import replace

import pytest

from tare.bench.history.acks import AckFile
from tare.bench.history.gate import find_run, judge, save_told
from tare.bench.history.index import open_history, update_history
from tare.bench.history.story import tell
from tare.reports.history import SitePages
from tests.browser.test_report_in_browser import Visit, browser  # noqa: F401 - a fixture
from tests.nights import Night, Plan, write_nights
from tests.synthetic import HOSTILE

pytest.importorskip("playwright.sync_api", reason="the Python package playwright is not installed")

pytestmark = pytest.mark.browser

HOSTILE_PLAN = Plan(subjects=HOSTILE[:3], backends=("bare-metal", "native"))


def publish(runs, folder):
    update_history(runs)
    history = open_history(runs)
    save_told(history, judge(history, find_run(history, None), AckFile()))
    folder.mkdir()
    SitePages().write(tell(history, lambda _: AckFile()), folder, title="Nightly", address="https://example.org/n")
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A hundred nights: a kernel, an image, a slower container; reports for the first."""
    folder = tmp_path_factory.mktemp("site")
    nights = [Night(kernel="6.12" if n < 40 else "6.13", labels={"commit": f"{n:04x}"}) for n in range(94)]
    nights += [replace(nights[-1], ratios={("work-2", "native"): -0.09})] * 6
    paths = write_nights(folder / "a folder of runs", nights)
    for path in paths[-3:]:
        (path / "report.html").write_text("<!DOCTYPE html><title>report</title>")
    return publish(folder / "a folder of runs", folder / "pages")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    labels = {HOSTILE[0]: HOSTILE[1]}
    write_nights(folder / "runs", [Night(labels=labels, kernel=HOSTILE[0])] * 12, plan=HOSTILE_PLAN)
    return publish(folder / "runs", folder / "pages")


def subject_of(site, word):
    return next(
        path for path in sorted(site.glob("subject-*.html")) if word in path.read_text("utf-8").split("</h1>")[0]
    )


@pytest.mark.parametrize("page", ["index.html", "runs.html", "subject"])
@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (360, "dark")])
def test_draws_in_silence_and_asks_only_for_its_own_files(browser, site, page, width, scheme):  # noqa: F811
    file = subject_of(site, "work-2") if page == "subject" else site / page
    with Visit(browser, file, width=width, scheme=scheme) as visit:
        assert visit.messages == []
        own = {file.as_uri(), *((site / name).as_uri() for name in ("style.css", "history.js"))}
        assert set(visit.requests) == own
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width


def test_hostile_names_are_text(browser, hostile):  # noqa: F811
    for file in sorted(hostile.glob("*.html")):
        with Visit(browser, file, width=360) as visit:
            assert visit.messages == []
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= 360
            assert visit.page.evaluate("document.scripts.length") == (2 if file.name.startswith("subject") else 1)


@pytest.mark.parametrize("page", ["index.html", "runs.html", "subject"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_violation_of_the_rules_for_accessibility(browser, site, page, scheme):  # noqa: F811
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    file = subject_of(site, "work-2") if page == "subject" else site / page
    with Visit(browser, file, scheme=scheme) as visit:
        found = axe.Axe().run(visit.page).response["violations"]
        assert [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found] == []


def test_the_first_screen_says_what_changed_and_whose_it_is(browser, site):  # noqa: F811
    with Visit(browser, site / "index.html") as visit:
        page = visit.page
        change = page.locator(".changes li").first
        assert change.bounding_box()["y"] < 900
        assert "isolation of native" in change.inner_text()
        change.locator("a").click()
        assert page.locator("h1").inner_text().startswith("work-2")
        assert page.locator(".changes li:target").count() == 1


def test_the_picture_has_bands_marks_and_all_nights_and_zooms(browser, site):  # noqa: F811
    with Visit(browser, subject_of(site, "work-2")) as visit:
        page = visit.page
        assert page.locator(".past .change").count() == 1
        assert page.locator(".past path.finding").count() == 1
        everything = page.locator(".past polyline.line").first.get_attribute("points").count(",")
        assert everything == 100
        page.get_by_role("button", name="30 nights").click()
        assert page.locator(".past polyline.line").first.get_attribute("points").count(",") == 30
        assert page.locator(".past .change").count() == 0
        page.get_by_role("button", name="Earlier").click()
        assert page.locator(".past polyline.line").first.get_attribute("points").count(",") == 30
        page.get_by_role("button", name="All").click()
        assert page.locator(".past .change").count() == 1


def test_a_night_is_found_by_keyboard_and_leads_to_its_report(browser, site):  # noqa: F811
    with Visit(browser, subject_of(site, "work-2")) as visit:
        page = visit.page
        page.locator(".past .scroll").focus()
        page.keyboard.press("ArrowLeft")
        told = page.locator(".told")
        assert "native" in told.inner_text()
        page.keyboard.press("End")
        told.locator("a").click()
        assert page.title() == "report"
        page.go_back()
        page.locator("table th a").first.click()
        assert page.title() == "report"


def test_without_scripts_everything_is_there(browser, site):  # noqa: F811
    with Visit(browser, subject_of(site, "work-2"), script=False) as visit:
        assert visit.page.locator(".past polyline.line").count() == 5
        assert visit.page.locator(".zoom").is_hidden()
    with Visit(browser, site / "index.html", script=False) as visit:
        assert visit.page.locator("tbody tr").count() == 18
        assert visit.page.locator(".find").is_hidden()


def test_runs_are_found_by_their_labels(browser, site):  # noqa: F811
    with Visit(browser, site / "runs.html") as visit:
        page = visit.page
        page.get_by_label("Show only").fill("commit=001")
        assert page.locator("tbody:visible").count() == 16
        assert page.locator(".find output").inner_text() == "16 of 100"


def test_what_is_drawn_here_and_there_is_the_same(browser, site):  # noqa: F811
    """The still picture and the script's first, by their lines."""
    file = subject_of(site, "work-2")
    points = []
    for script in (False, True):
        with Visit(browser, file, script=script) as visit:
            lines = visit.page.locator(".past polyline.line")
            points.append([lines.nth(n).get_attribute("points") for n in range(lines.count())])
    still, live = ([[float(one) for one in line.replace(",", " ").split()] for line in lines] for lines in points)
    assert len(still) == len(live) == 5
    assert all(a == pytest.approx(b, abs=0.4) for a, b in zip(still, live, strict=True))


def test_prints_without_what_only_a_screen_can_do(browser, site):  # noqa: F811
    with Visit(browser, subject_of(site, "work-2")) as visit:
        visit.page.emulate_media(media="print")
        assert visit.page.locator(".zoom").is_hidden()
        assert visit.page.locator(".past svg").is_visible()
