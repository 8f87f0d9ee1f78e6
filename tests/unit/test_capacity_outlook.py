"""`tare plan` with what follows from it: reserves, growth, money, exports, cases, audits; each figure by hand."""

import json
import re

import pytest
import yaml

from tare.bench.capacity.growth import parse_rate
from tests.unit.test_capacity_plan import GIB, MIB, said, tare, write_density

PRICES = """
currency = "EUR"
date = "2026-12-01"
source = "mine"
[[host]]
name = "any"
rented_per_month = 300
"""
SMALL = ("--cpus", 16, "--memory", "16GiB", "--reserve", "memory=2GiB,cpu=1")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("TARE_STATE_DIR", str(tmp_path / "state"))
    return write_density(tmp_path / "run")


@pytest.fixture
def prices(tmp_path):
    file = tmp_path / "prices.toml"
    file.write_text(PRICES)
    return file


def document(*arguments):
    done = tare(*arguments, "--format", "json")
    assert done.exit_code == 0, said(done)
    return json.loads(done.stdout)


def test_reserves_are_by_hand(run):
    found = document(run, *SMALL, "--instances", 1000, "--spare", 1)
    per_host = found["plans"][0]["instances"]
    assert per_host == pytest.approx(14 * 1024 / 100, rel=0.05)
    (outlook,) = found["outlooks"]
    needed = -(-1000 // per_host)
    assert [row["total"] for row in outlook["reserves"][:2]] == [needed, needed + 1]
    shown = " ".join(tare(run, *SMALL, "--instances", 1000, "--spare", 1).stdout.split())
    assert "Losing hosts" in shown
    assert f"1 1 {needed + 1} the host" in shown


def test_growth_is_by_hand_in_every_form(run):
    options = (*SMALL, "--instances", 500, "--hosts", 10, "--growth", "8 % a month")
    found = document(run, *options)
    per_host = found["plans"][0]["instances"]
    full = found["outlooks"][0]["exhaustion"]["months"]
    month = 1
    while 500 * (1 + parse_rate("8 %")) ** month <= 10 * per_host:
        month += 1
    assert full == month
    assert found["outlooks"][0]["expected"]["native idle"][11] == pytest.approx([500 * 1.08**12] * 3)
    text, markdown = (tare(run, *options, "--format", form).stdout for form in ("table", "markdown"))
    for shown in (text, markdown):
        assert f"The hosts are full in {month} months" in " ".join(shown.split())
        assert f"{500 * 1.08**12:,.0f}" in shown


def test_money_is_by_hand_in_every_form(run, prices):
    options = (*SMALL, "--instances", 1000, "--prices", prices)
    found = document(run, *options)
    (plan,), (cost,) = found["plans"], found["costs"]
    assert cost["instance"] == pytest.approx(300 / plan["instances"])
    assert cost["demand"] == 300 * plan["hosts_needed"]
    low, high = plan["instances_interval"]
    assert cost["instance_least"] == pytest.approx(300 / high)
    assert cost["instance_most"] == pytest.approx(300 / low)
    for form in ("table", "markdown"):
        shown = " ".join(tare(run, *options, "--format", form).stdout.split())
        assert f"{300 / plan['instances']:.2f} EUR" in shown
        assert f"{300 * plan['hosts_needed']:,} EUR" in shown
        assert "mine, 2026-12-01" in shown


def test_an_export_is_the_plan_s(run, tmp_path):
    found = document(run, *SMALL)
    file = tmp_path / "node.yaml"
    assert tare(run, *SMALL, "--export", "kubernetes", "--output", file).exit_code == 0
    _, kubelet = yaml.safe_load_all(file.read_text())
    assert kubelet["maxPods"] == found["plans"][0]["instances_interval"][0]


def test_cases_are_plans_side_by_side(run, prices, tmp_path):
    file = tmp_path / "cases.toml"
    file.write_text(
        '[[case]]\nname = "today"\n'
        '[[case]]\nname = "more memory"\nmemory = "32GiB"\n'
        f'[[case]]\nname = "with prices"\nprices = "{prices.name}"\n'
    )
    cases = document(run, *SMALL, "--instances", 1000, "--what-if", file)["cases"]
    assert [case["name"] for case in cases] == ["today", "more memory", "with prices"]
    today, larger, priced = (case["plans"][0]["instances"] for case in cases)
    assert today == priced == document(run, *SMALL)["plans"][0]["instances"]
    assert larger == pytest.approx(today * 30 / 14, rel=0.01)
    shown = " ".join(tare(run, *SMALL, "--instances", 1000, "--what-if", file).stdout.split())
    assert f"more memory native idle the host {larger}" in shown
    file.write_text('[[case]]\nname = "x"\nmemry = "3GiB"\n')
    wrong = tare(run, "--what-if", file)
    assert wrong.exit_code == 3
    assert "memry" in said(wrong)


def test_overhead_of_a_size_between_two_ramps(tmp_path, run):
    assert document(run, *SMALL)["overheads"] == []
    refused = tare(run, *SMALL, "--size", "96MiB")
    assert refused.exit_code == 3
    assert "two sizes or more" in said(refused)


def test_an_audit_says_right_and_wrong_and_is_kept(run, tmp_path):
    plan = tmp_path / "plan.json"
    assert tare(run, "--format", "json", "--output", plan).exit_code == 0
    same, other = write_density(tmp_path / "same"), write_density(tmp_path / "other", each=150 * MIB)
    right = document(same, "--audit", plan)["checked"]
    memory = next(one for one in right if one["what"].startswith("memory"))
    assert memory["held"] is True
    assert memory["predicted"] == pytest.approx(100 * MIB, rel=0.05)
    wrong = document(other, "--audit", plan)["checked"]
    memory = next(one for one in wrong if one["what"].startswith("memory"))
    assert memory["held"] is False
    assert memory["measured"] == pytest.approx(150 * MIB, rel=0.05)
    counts = [one for one in right if one["what"].startswith("instances")]
    assert [one["held"] for one in counts] == [None], "forty were asked for: nothing ran out"
    assert "before anything ran out" in counts[0]["why"]
    shown = " ".join(tare(other, "--audit", plan).stdout.split())
    assert "wrong" in shown
    decided = [one for one in (*right, *wrong) if one["held"] is not None]
    held = sum(one["held"] for one in decided)
    # The second audit of `other` replaces the first: repeating it changes no record.
    record = re.search(r"Past plans: (\d+) of (\d+) audited", " ".join(tare(run).stdout.split()))
    assert (int(record[1]), int(record[2])) == (held, len(decided))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--spare", 1), "--spare: needs --instances"),
        (("--instances", 9, "--domain", "rack"), "--domain: must be a name and a number"),
        (("--instances", 9, "--maintenance", 2), "--maintenance: must be a share"),
        (("--instances", 9, "--growth", "8 % a month"), "--growth: needs --hosts"),
        (("--hosts", 3, "--growth", "8 % a month"), "--growth: needs --instances"),
        (("--instances", 9, "--hosts", 3, "--growth", "lots"), "--growth: must be a rate"),
        (("--instances", 9, "--hosts", 3, "--demand", "nowhere.csv"), "nowhere.csv: cannot be read"),
        (("--prices", "nowhere.toml"), "nowhere.toml: there is no such file"),
        (("--export", "swarm"), "there is no export 'swarm'"),
        (("--instances", 900, "--hosts", 6, "--spare", 1), "without any loss,"),
        (("--instances", 840, "--hosts", 6, "--spare", 3), "too few hosts are left after the loss"),
        (("--audit", "nowhere.json"), "nowhere.json: cannot be read"),
        (("--size", "many"), "--size:"),
    ],
)
def test_what_cannot_be_planned_is_one_message(run, options, message):
    done = tare(run, *SMALL, *options)
    assert done.exit_code == 3, said(done)
    assert message in said(done)
    assert "Traceback" not in said(done)


def test_a_file_that_is_no_plan_says_how_to_write_one(run, tmp_path):
    (tmp_path / "plan.json").write_text('{"hosts": 3}')
    done = tare(run, "--audit", tmp_path / "plan.json")
    assert done.exit_code == 3
    assert "is no plan" in said(done)
    assert "--format json" in said(done)


def test_a_fleet_has_spares_and_grows(run, tmp_path):
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(f"""
[[host]]
name = "h"
cpus = 16
memory = "16GiB"
count = 12
reserve = {{ memory = "2GiB", cpu = 1 }}
[spare]
hosts = 1
[[demand]]
name = "web"
run = "{run}"
backend = "native"
instances = 900
growth = "5 % a month"
""")
    found = document("--fleet", fleet)
    (outlook,) = found["outlooks"]
    per_host = found["plans"][0]["instances"]
    assert outlook["reserves"][1]["total"] == -(-900 // per_host) + 1
    month = 1
    while 900 * 1.05**month <= 12 * per_host:
        month += 1
    assert outlook["exhaustion"]["months"] == month
    assert outlook["exhaustion"]["earliest"] <= month <= outlook["exhaustion"]["latest"]
    fleet.write_text(fleet.read_text().replace('"5 % a month"', '"fast"'))
    wrong = tare("--fleet", fleet)
    assert wrong.exit_code == 3
    assert "demand[0].growth" in said(wrong)
    assert GIB
