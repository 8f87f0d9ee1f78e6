"""The page of a plan: every figure is the JSON form's, bars are as long as they say, and what is no answer is none."""

import gzip
import json
import re
from html import unescape
from pathlib import Path

import msgspec
import pytest

from tare.bench.analysis import Grade, GradeLevel
from tare.bench.capacity.planned import Plan
from tare.bench.cli.plan import PlanRequest, make_plan
from tare.bench.model import Confound
from tare.reports.plan_page import plan_context, render_plan
from tests.unit.test_capacity_plan import GIB, MIB, said, tare, write_density
from tests.written import Page, markdown_rows

SMALL = ("--cpus", 16, "--memory", "16GiB", "--reserve", "memory=2GiB,cpu=1")
FULL = (*SMALL, "--instances", 1000, "--spare", 2, "--hosts", 20, "--growth", "8 % a month")
SIZE = {"MiB": MIB, "GiB": GIB}
PRICES = """
currency = "EUR"
date = "2026-12-01"
source = "mine"
[[host]]
name = "any"
rented_per_month = 300
"""
HOSTILE = "web</bdi><script>alert(1)</script>"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("TARE_STATE_DIR", str(tmp_path / "state"))
    return write_density(tmp_path / "run")


@pytest.fixture
def prices(tmp_path):
    file = tmp_path / "prices.toml"
    file.write_text(PRICES)
    return file


def written(form, *arguments):
    done = tare(*arguments, "--format", form)
    assert done.exit_code == 0, said(done)
    return done.stdout


def at(document, key):
    """The number that ``a.0.b`` names."""
    for part in key.split("."):
        document = document[int(part) if part.isdigit() else part]
    return document


def test_the_headline_is_the_json_form_s_answer(run):
    html, found = written("html", run, *FULL), json.loads(written("json", run, *FULL))
    page, (plan,) = Page(html), found["plans"]
    assert plan["instances"] == pytest.approx(14 * 1024 / 100, rel=0.05)
    hosts = -(-1000 // plan["instances"])
    assert f"{plan['instances']} instances of native idle per host, {hosts} hosts for 1,000." == found["answer"][0]
    assert re.search(r"<h1><bdi>(.*?)</bdi>", html)[1] == found["answer"][0]
    assert found["answer"][1] == f"{hosts + 2} hosts of which 2 may be out of service, for native idle."
    low, high = plan["instances_interval"]
    assert (
        f"95 % interval: {low} to {high} per host, which is {-(-1000 // high)} to {-(-1000 // low)} hosts" in page.text
    )
    assert "40 ran at once when it was measured" in page.text
    for form in ("table", "markdown"):
        assert found["answer"][0] in " ".join(written(form, run, *FULL).split())


def test_bars_are_as_long_as_the_json_form_s_shares(run):
    html, found = written("html", run, *FULL), json.loads(written("json", run, *FULL))
    named = Page(html).data
    uses = found["plans"][0]["headroom"]
    assert len(named) == len([use for use in uses if use["resource"] != "memory cgroups"]) == 4
    widths = [float(one) for one in re.findall(r"<rect class='used[^']*' x='0' y='4' width='([\d.]+)%'", html)]
    shares = [at(found, key) for key, *_ in named]
    assert max(shares) > 1.5  # so the axis ends at 150 %, and has an arrow
    for (key, value, shown), width, share in zip(named, widths, shares, strict=True):
        assert float(value) == share == uses[int(key.split(".")[3])]["share"]
        assert shown == f"{100 * share:,.0f} %"
        assert width == pytest.approx(100 * min(1, share / 1.5), abs=0.01)
    assert html.count("<path class='more'") == len([share for share in shares if share > 1.5])
    for use, (amount, unit, there, of) in zip(
        (at(found, key.removesuffix(".share")) for key, *_ in named),
        re.findall(r"<small>([\d.]+) ?(\w*) of ([\d.]+) ?(\w*)</small>", html),
        strict=True,
    ):
        assert float(amount) * SIZE.get(unit, 1) == pytest.approx(use["used"], rel=0.005)
        assert float(there) * SIZE.get(of, 1) == pytest.approx(use["usable"], rel=0.005)


def test_tables_are_those_of_the_other_forms_and_equal_the_json_form(run, prices):
    options = (run, *FULL, "--prices", prices)
    page, found = Page(written("html", *options)), json.loads(written("json", *options))
    shown = [[cell.replace("&lt;", "<").replace("\\*", "*") for cell in row]
             for row in markdown_rows(written("markdown", *options))]  # fmt: skip
    assert sorted(map(tuple, page.rows)) == sorted(map(tuple, shown))
    (outlook,), (cost,), (plan,) = found["outlooks"], found["costs"], found["plans"]
    for row in outlook["reserves"]:
        cells = [str(row["lost"]), str(row["missing"]), f"{row['total']} the host", f"{100 * row['share']:.0f} %"]
        assert [*cells, "native idle"] in page.rows
    for month in (3, 12, 60):
        assert [str(month), f"{outlook['expected']['native idle'][month - 1][0]:,.0f}"] in page.rows
    money = ["300 EUR", f"{300 / plan['instances']:.2f} EUR"]
    money += [f"{cost['instance_least']:.2f} EUR to {cost['instance_most']:.2f} EUR"]
    assert ["native idle", "the host", *money, f"{300 * plan['hosts_needed']:,} EUR"] in page.rows
    assert f"The hosts are full in {outlook['exhaustion']['months']} months" in page.text
    assert 'class="asked"' in written("html", *options)


def test_types_have_names_for_people_and_a_sentence_is_said_once(tmp_path):
    kept = Path(__file__).parents[1] / "data" / "runs" / "density"
    run = tmp_path / "density"
    run.mkdir()
    (run / "manifest.json").write_bytes((kept / "manifest.json").read_bytes())
    for name in ("events.jsonl", "samples.jsonl"):
        (run / name).write_bytes(gzip.decompress((kept / f"{name}.gz").read_bytes()))
    page, found = Page(written("html", run, "--instances", 500)), json.loads(written("json", run, "--instances", 500))
    assert {"sysbench-cpu" in plan["type"] for plan in found["plans"]} == {True, False}
    for part in ("sysbench-cpu", "meters_every", "runtime_s"):
        assert part not in page.text
    assert "native (container) with CPU (sysbench) per host" in page.text
    rows = [cells for cells in page.rows if cells[0] in ("bare-metal with CPU (sysbench)", "bare-metal idle")]
    assert [cells[-2] for cells in rows] == ["500", "500"]
    for sentence in ("all types: the host's disk was not stated", "measured while idle", "Pale: shown"):
        assert page.text.count(sentence) == 1


def test_curves_hold_the_json_form_s_figures(run, prices, tmp_path):
    guests = write_density(tmp_path / "guests", accel="kvm", touched=64 * MIB)
    arguments = PlanRequest(
        (run, guests), cpus=16, memory="16GiB", instances=1000, hosts=20, growth="8 % a month", prices=prices
    )
    plan = make_plan(arguments)
    options = (run, guests, "--cpus", 16, "--memory", "16GiB", "--instances", 1000, "--hosts", 20)
    found = json.loads(written("json", *options, "--growth", "8 % a month", "--prices", prices))
    drawn = [one for view in plan_context(plan)["sections"] for one in view.curves]
    growth, costs = drawn[:2], drawn[2:]
    for curve, one, outlook in zip(growth, found["plans"], found["outlooks"], strict=True):
        data = curve.chart.spec["datasets"]
        (expected,) = outlook["expected"].values()
        assert [row["v"] for row in data["demand"]] == pytest.approx(
            [middle for middle, *_ in expected[: len(data["demand"])]], rel=1e-4
        )
        assert {row["v"] for row in data["held"]} == {20 * one["instances"]}
        assert [row["x"] for row in data["full"]] == [outlook["exhaustion"]["months"]]
        assert f"20 hosts hold {20 * one['instances']:,}" in curve.chart.svg
    (curve,), (even,) = costs, found["break_evens"]
    rows = curve.chart.spec["datasets"]["costs"]
    assert [(row["x"], row["v"]) for row in rows if row["b"] == even["cheaper"]] == [
        (number, pytest.approx(cost, rel=1e-4)) for number, cost, _ in even["curve"]
    ]
    assert even["cheaper"] == "native idle"
    assert max(row["v"] for row in rows) == pytest.approx(max(cost for *_, cost in even["curve"]), rel=1e-4)


def test_what_is_extrapolated_is_no_answer_in_any_form(run, prices):
    options = (run, "--cpus", 64, "--memory", "512GiB", "--instances", 5000, "--spare", 1, "--hosts", 9)
    options = (*options, "--growth", "8 % a month", "--prices", prices)
    html, found = written("html", *options), json.loads(written("json", *options))
    instances = found["plans"][0]["instances"]
    assert instances > 400
    assert found["answer"] == [
        "How many instances of native idle fit on a host is not answered.",
        f"{instances:,} would be more than 10 times the 40 that were measured.",
    ]
    text = Page(html).text
    assert "When the hosts are full is not answered (extrapolated: " in text
    assert "95 % interval:" not in text
    assert 'class="panel fill beyond"' in html
    assert 'class="beside beyond-ramp"' in html
    assert not [row for row in Page(html).rows if row[2:3] == ["2 the host"]]
    for form in ("table", "markdown", "html"):
        shown = " ".join(
            Page(written(form, *options)).text.split() if form == "html" else written(form, *options).split()
        )
        assert found["answer"][0] in shown
        assert "not answered (extrapolated: " in shown


def test_a_mix_that_fills_hosts_beyond_what_was_measured_is_no_answer(run, tmp_path):
    def fleet(memory, wanted):
        file = tmp_path / "fleet.toml"
        file.write_text(
            f'[[host]]\nname = "large"\ncpus = 64\nmemory = "{memory}"\n'
            f'[[demand]]\nname = "web"\nrun = "{run}"\nbackend = "native"\ninstances = {wanted}\n'
        )
        return ("--fleet", file)

    html, found = written("html", *fleet("16GiB", 500)), json.loads(written("json", *fleet("16GiB", 500)))
    assert found["answer"] == [f"{found['packing']['hosts']} hosts for all demands together."]
    for key, value, _ in Page(html).data:
        assert key.startswith("packing.filled.")
        assert float(value) == at(found, key)
    beyond = json.loads(written("json", *fleet("512GiB", 5000)))
    assert beyond["packing"]["extrapolated"]
    assert "is not answered" in beyond["answer"][0]
    assert "fill beyond" in written("html", *fleet("512GiB", 5000))
    assert "It is not answered *" in " ".join(written("table", *fleet("512GiB", 5000)).split())


def test_a_host_with_a_mix_shows_the_sum_by_which_it_is_filled(run, tmp_path):
    guests = write_density(tmp_path / "guests", accel="kvm", touched=64 * MIB)
    file = tmp_path / "fleet.toml"
    file.write_text(
        '[[host]]\nname = "large"\ncpus = 16\nmemory = "16GiB"\n'
        f'[[demand]]\nname = "web"\nrun = "{run}"\nbackend = "native"\ninstances = 100\n'
        f'[[demand]]\nname = "vms"\nrun = "{guests}"\nbackend = "vm"\ninstances = 25\n'
    )
    html, found = written("html", "--fleet", file), json.loads(written("json", "--fleet", file))
    mixed = next(place for place, one in enumerate(found["packing"]["filled"]) if len(one["instances"]) == 2)
    shown = {key: float(value) for key, value, _ in Page(html).data}
    filled = found["packing"]["filled"][mixed]
    use = {(one["resource"], one["promised"]): one["share"] for one in filled["headroom"]}
    assert use["memory", False] < filled["shares"]["memory"] < use["memory", True]
    assert shown[f"packing.filled.{mixed}.shares.memory"] == filled["shares"]["memory"]
    assert all(value == at(found, key) for key, value in shown.items())
    panel = html.split("each with", 2)[1 + mixed]
    assert panel.index("Memory, as planned") < panel.index("Memory (measured)")
    assert panel.count("class='used'") == 2  # that sum, and the use of CPUs


def test_the_grade_is_the_same_in_every_form_and_first_if_nothing_can_be_relied_on(run):
    html, found = written("html", run, *FULL), json.loads(written("json", run, *FULL))
    (grade,) = found["grades"].values()
    words = f"{grade['level'].capitalize()}: {grade['reason']}. Remedy: {grade['remedy']}."
    assert grade["level"] == "first look"
    assert words in Page(html).text
    assert html.index("<h1>") < html.index('class="grade first-look"')
    for form in ("table", "markdown"):
        assert words in " ".join(written(form, run, *FULL).replace("\\", "").split())
    busy = Grade(GradeLevel.NOT_USABLE, "the host was busy", "wait")
    plan: Plan = msgspec.structs.replace(
        make_plan(PlanRequest((run,))), grades={"quiet": Grade(GradeLevel.DECISION, "x", "y"), "busy": busy}
    )
    html = render_plan(plan)
    assert html.index("Not usable: the host was busy. Remedy: wait. (Of busy.)") < html.index("<h1>")


def test_emulated_guests_are_fenced_on_the_first_screen(run, tmp_path):
    guests = write_density(tmp_path / "guests", accel="tcg", touched=64 * MIB)
    fence = 'class="fence"><span><bdi>vm (tcg) idle: emulated (TCG): its CPU figures'
    html = written("html", run, guests, *SMALL)
    assert fence in html.partition("</header>")[0]
    assert 'class="fence"' not in written("html", run, *SMALL)


def test_a_plan_of_an_emulated_host_says_so_first(tmp_path):
    emulated = (Confound("host-emulated", "the host's own processor is emulated in software"),)
    run = write_density(tmp_path / "run", accel="kvm", touched=64 * MIB, confounds=emulated)
    first = unescape(written("html", run, *SMALL).partition("</header>")[0])
    assert 'class="fence"><span><bdi>vm (kvm) idle: measured on a host whose own processor is emulated' in first
    assert "Not usable: the host's own processor is emulated" in first
    for form in ("table", "markdown"):
        words = " ".join(written(form, run, *SMALL).split())
        assert words.count("decides no claim about virtualization") == 2
    assert json.loads(written("json", run, *SMALL))["plans"][0]["emulated"]


def test_hostile_names_are_text(run, tmp_path, prices):
    hostile = tmp_path / "hostile.toml"
    hostile.write_text(
        f"[[host]]\nname = {json.dumps(HOSTILE)}\ncpus = 16\nmemory = '16GiB'\ncount = 20\n"
        f"[[demand]]\nname = {json.dumps(HOSTILE + chr(27))}\nrun = {json.dumps(str(run))}\nbackend = 'native'\n"
        "instances = 500\ngrowth = '8 % a month'\n[spare]\nhosts = 1\n"
    )
    prices.write_text(PRICES.replace('"mine"', json.dumps(HOSTILE)).replace('"EUR"', json.dumps(HOSTILE)))
    html = written("html", "--fleet", hostile, "--prices", prices)
    assert "<script>alert" not in html
    assert chr(27) not in html
    assert unescape(html).count("<script>alert(1)</script>") > 10
    assert "</bdi><script" not in html


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "csv"), "a plan has no form 'csv'; there are: table, json, markdown, html"),
        (("--format", "html", "--export", "nomad"), "this has no form 'html'; there are: table, json, markdown"),
    ],
)
def test_a_form_that_is_not_there_is_refused(run, options, message):
    done = tare(run, *options)
    assert done.exit_code == 3
    assert message in said(done)


def test_cases_and_an_audit_stand_on_the_page(run, tmp_path):
    cases = tmp_path / "cases.toml"
    cases.write_text('[[case]]\nname = "today"\n[[case]]\nname = "twice the memory"\nmemory = "32GiB"\n')
    later = write_density(tmp_path / "later", seed=2)
    plan = tmp_path / "plan.json"
    plan.write_text(written("json", run, *SMALL))
    page = Page(written("html", later, *SMALL, "--what-if", cases, "--audit", plan))
    table = tare(later, *SMALL, "--what-if", cases).stdout
    assert "twice the memory" in page.text
    assert f"Audit of {plan}" in page.text
    assert f"By the ramp of {later}." in page.text
    fits = re.search(r"twice the memory\s+native idle\s+the host\s+([\d,]+)", table)[1]
    assert re.search(rf"twice the memory\s*native idle\s*the host\s*{fits}", page.text)
    assert re.search(r"memory of an instance.*(right|wrong)", page.text, re.DOTALL)
