"""The page of a plan in a real browser: answer, grade, host and reserves on the first screen, silent, at any width."""

import json

import pytest

from tare.bench.cli.plan import PlanRequest, _graded, make_plan
from tare.reports.html import HtmlReporter
from tests.browser.test_report_in_browser import Visit, browser  # noqa: F401 - a fixture
from tests.synthetic import HOSTILE
from tests.unit.test_capacity_plan import MIB, write_density

pytest.importorskip("playwright.sync_api", reason="the Python package playwright is not installed")

pytestmark = pytest.mark.browser

PRICES = """
currency = "EUR"
date = "2026-12-01"
source = "mine"
[[host]]
name = "any"
rented_per_month = 300
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One type, two types with prices, one that is extrapolated, and a mix with hostile names."""
    folder = tmp_path_factory.mktemp("plans")
    run, guests = write_density(folder / "run"), write_density(folder / "guests", accel="kvm", touched=64 * MIB)
    (folder / "prices.toml").write_text(PRICES)
    (folder / "fleet.toml").write_text(
        f"[[host]]\nname = {json.dumps(HOSTILE[0])}\ncpus = 16\nmemory = '16GiB'\ncount = 20\n[spare]\nhosts = 1\n"
        + "".join(
            f"[[demand]]\nname = {json.dumps(name)}\nrun = {json.dumps(str(one))}\nbackend = '{backend}'\n"
            "instances = 300\ngrowth = '8 % a month'\n"
            for name, one, backend in ((HOSTILE[1], run, "native"), (HOSTILE[2], guests, "vm"))
        )
    )
    grows = {"instances": 1000, "spare": 2, "hosts": 20, "growth": "8 % a month"}
    requests = {
        "one": PlanRequest((run,), cpus=16, memory="16GiB", **grows),
        "two": PlanRequest(
            (run, guests), cpus=16, memory="16GiB", **grows | {"hosts": 60}, prices=folder / "prices.toml"
        ),
        "beyond": PlanRequest((run,), cpus=64, memory="512GiB", **grows),
        "hostile": PlanRequest((), fleet=folder / "fleet.toml"),
    }
    for name, request in requests.items():
        HtmlReporter().write_plan(_graded(make_plan(request)), folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in requests}


def test_answer_grade_host_and_reserves_stand_above_the_fold(browser, files):  # noqa: F811
    with Visit(browser, files["one"]) as visit:
        assert visit.bottom("#summary") <= 900
        for selector in ("h1", ".grade", ".picture .strip", ".beside .asked", ".caveats", ".where"):
            assert visit.page.locator(selector).first.is_visible()
        widths = visit.page.locator(".picture .strip .used").evaluate_all(
            "all => all.map(one => one.getBoundingClientRect().width)"
        )
        assert len(widths) == 4
        assert max(widths) > 150
    with Visit(browser, files["one"], width=390) as visit:
        assert visit.bottom(".picture") <= 2 * 844


@pytest.mark.parametrize("width", [800, 360])
@pytest.mark.parametrize("name", ["one", "two", "beyond", "hostile"])
def test_it_fits_in_silence_without_the_network(browser, files, name, width):  # noqa: F811
    with Visit(browser, files[name], width=width, scheme="dark" if width < 800 else "light") as visit:
        assert visit.messages == []
        assert visit.requests == [files[name].as_uri()]
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        assert visit.outside() == []


@pytest.mark.parametrize(("name", "scheme"), [("two", "light"), ("beyond", "dark"), ("hostile", "light")])
def test_no_serious_violation_of_accessibility(browser, files, name, scheme):  # noqa: F811
    with Visit(browser, files[name], scheme=scheme) as visit:
        bad, held = visit.accessibility()
        assert bad == []
        assert held > 15


def test_every_text_of_a_curve_is_told_from_the_paper(browser, files):  # noqa: F811
    """SVG's own black would be unreadable in the dark."""
    with Visit(browser, files["two"], scheme="dark") as visit:
        fills = visit.page.locator(".chart text").evaluate_all("all => all.map((one) => getComputedStyle(one).fill)")
        assert len(fills) > 20
        assert "rgb(0, 0, 0)" not in fills
