"""The page of a fleet in a real browser: answer, grade and hosts at any width, silent, accessible, links that lead."""

from dataclasses import replace

import pytest

from tare.bench.fleet.collection import load_collection
from tare.bench.fleet.report import make_report
from tare.reports.fleet_page import render_fleet
from tests.browser.test_report_in_browser import Visit, browser  # noqa: F401 - a fixture
from tests.fleets import Fleet, write_fleet

pytest.importorskip("playwright.sync_api", reason="the Python package playwright is not installed")

pytestmark = pytest.mark.browser

SMALL = Fleet(hosts=6, blocks=4, odd={"h3": 1.7}, dead={"h9": "no answer for 30 s"}, reports=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Few hosts with an odd and a dead one, and many hosts of two types with an emulated one."""
    fleets = {"few": SMALL, "many": replace(SMALL, hosts=16, types=("large", "small"), emulated=("h16",), subjects=1)}
    found = {}
    for name, fleet in fleets.items():
        folder = write_fleet(tmp_path_factory.mktemp("fleets") / name, fleet)
        found[name] = folder / "fleet.html"
        found[name].write_text(render_fleet(make_report(load_collection(folder))), "utf-8")
    return found


def test_answer_grade_and_first_panels_stand_above_the_fold(browser, files):  # noqa: F811
    with Visit(browser, files["few"]) as visit:
        for selector in ("h1", ".grade", ".picture .strip .dot", ".picture .predicted .span"):
            box = visit.page.locator(selector).first.bounding_box()
            assert box["y"] + box["height"] <= 900, selector
        dots = visit.page.locator(".predicted .dot")
        assert not any(dot.is_visible() for dot in dots.all()), "nobody measured that host: it has no point"


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("name", ["few", "many"])
def test_it_fits_in_silence_without_the_network(browser, files, name, width):  # noqa: F811
    with Visit(browser, files[name], width=width, scheme="dark" if width < 800 else "light") as visit:
        assert visit.messages == []
        assert visit.requests == [files[name].as_uri()]
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        assert visit.outside() == []


@pytest.mark.parametrize(("name", "scheme"), [("few", "light"), ("many", "dark")])
def test_no_serious_violation_of_accessibility(browser, files, name, scheme):  # noqa: F811
    with Visit(browser, files[name], scheme=scheme) as visit:
        bad, held = visit.accessibility()
        assert bad == []
        assert held > 15


def test_the_link_of_a_host_leads_to_its_report(browser, files):  # noqa: F811
    with Visit(browser, files["few"]) as visit:
        links = visit.page.locator("a[href^='hosts/']")
        assert links.count() == 6
        links.first.click()
        visit.page.wait_for_load_state()
        assert visit.page.title() == "report"
