"""Money: each figure by hand; where two backends cost the same by looking at every number of instances."""

import json
import math
import re
from pathlib import Path

import pytest

from tare.bench.analysis.density import DensityCell, fit_cell
from tare.bench.capacity.hosts import HostType, Resource
from tare.bench.capacity.plan import plan_host
from tare.bench.capacity.prices import break_even, cost_of, load_prices
from tare.bench.cli.plan import PlanRequest, make_plan
from tare.bench.errors import SuiteError
from tests.unit.test_capacity_plan import GIB, kind, need, write_density

BARE = {Resource.MEMORY: 0.0, Resource.CPU: 0.0, Resource.DISK: 0.0}
HOST = HostType("h", 10, 100 * GIB, reserve=BARE)
PRICES = """
currency = "EUR"
date = "2026-12-01"
source = "mine"
[energy]
per_kwh = 0.2
pue = 1.5
[[host]]
name = "h"
bought = 4800
months = 48
other_per_month = 20
idle_watts = 100
full_watts = 300
[[licence]]
name = "per core"
per_core_per_month = 2
[[licence]]
name = "guests'"
backend = "vm"
per_instance_per_month = 3
"""


@pytest.fixture
def prices(tmp_path):
    def write(text=PRICES):
        file = tmp_path / "prices.toml"
        file.write_text(text)
        return load_prices(file)

    return write


def plan(memory=1.0, cpu=0.05, *, name="x", demand=None, half=0.0, backend="native"):
    needs = (need(Resource.MEMORY, memory * GIB, half * GIB), need(Resource.CPU, cpu))
    result = fit_cell(DensityCell(backend, "", {}, ({"density.start": ((50, 0.1),)},), ()))
    return plan_host(kind(*needs, name=name, result=result), HOST, demand=demand)


def test_a_month_of_a_host_by_hand(prices):
    cost = cost_of(plan(), prices())
    # 100 instances by memory use 5 of 10 CPUs: half of the way from 100 to 300 W.
    energy = 0.200 * 730.5 * 0.2 * 1.5
    assert cost.parts == pytest.approx({"host": 100, "other": 20, "energy": energy, "licences": 20})
    assert cost.host == pytest.approx(140 + energy)
    assert cost.instance == pytest.approx(cost.host / 100)
    assert cost.demand is None


def test_the_interval_is_that_of_how_many_fit_and_the_demand_takes_whole_hosts(prices):
    one = plan(half=0.25, demand=101)
    cost = cost_of(one, prices())
    assert cost.instance_least == pytest.approx(cost.host / one.most)
    assert cost.instance_most == pytest.approx(cost.host / one.fewest)
    assert cost.instance_least < cost.instance < cost.instance_most
    assert cost.demand == pytest.approx(2 * cost.host)


def test_a_licence_of_one_backend_is_that_backend_s(prices):
    assert cost_of(plan(backend="vm"), prices()).licences == 3
    assert cost_of(plan(), prices()).licences == 0


def test_a_host_without_a_price_has_no_cost(prices):
    other = PRICES.replace('name = "h"', 'name = "a"') + '[[host]]\nname = "b"\nrented_per_month = 3\n'
    assert cost_of(plan(), prices(other)) is None


def test_the_only_price_holds_for_a_host_of_any_name(prices):
    assert cost_of(plan(), prices(PRICES.replace('name = "h"', 'name = "whichever"'))) is not None


@pytest.mark.parametrize("memory", [1.1, 1.5, 2.0, 3.3])
def test_the_break_even_is_right_for_every_number_of_instances(prices, memory):
    small, large = plan(1.0, name="small"), plan(memory, name="large")
    found = break_even((large, small), prices(), most=2000)
    assert (found.cheaper, found.dearer) == ("small", "large")
    costs = {one.type.name: (cost_of(one, prices()), one.instances) for one in (small, large)}

    def total(name, number):
        cost, fits = costs[name]
        return math.ceil(number / fits) * cost.host + number * cost.licences

    assert all(total("small", n) <= total("large", n) for n in range(found.instances, 2001))
    assert found.instances == 1 or any(total("small", n) > total("large", n) for n in range(1, found.instances))
    for number, own, theirs in found.curve:
        assert (own, theirs) == pytest.approx((total("small", number), total("large", number)))
    ratio = found.host_price_ratio
    assert costs["small"][0].host * ratio / costs["small"][1] == pytest.approx(costs["large"][0].instance)


@pytest.mark.parametrize(
    ("old", "new", "key", "problem"),
    [
        ('currency = "EUR"\n', "", "currency", "missing"),
        ("bought = 4800\n", "", "host[0]", "needs one of rented_per_month and bought"),
        ("months = 48\n", "", "host[0].months", "belongs to bought"),
        ("full_watts = 300", "full_watts = 30", "host[0].full_watts", "less than idle_watts"),
        ("[energy]\nper_kwh = 0.2\npue = 1.5\n", "", "energy", "is missing"),
        ("pue = 1.5", "pue = 0.5", "energy.pue", "must be from 1 to 10"),
        ("months = 48", 'months = "48"', "host[0].months", "int"),
        ("bought = 4800", "bougt = 4800", "host[0]", "unknown key `bougt`"),
    ],
)
def test_a_wrong_price_file_is_named_with_its_key(prices, old, new, key, problem):
    assert old in PRICES
    with pytest.raises(SuiteError) as refused:
        prices(PRICES.replace(old, new))
    assert key in refused.value.message
    assert problem in refused.value.message


def test_the_documented_prices_can_be_read():
    assert load_prices(Path(__file__).parents[2] / "docs/prices-example.toml").of_host("small").rented_per_month == 190


WATTS = """
currency = "EUR"
date = "2026-12-01"
source = "mine"
[energy]
per_kwh = 0.2
[[host]]
name = "any"
rented_per_month = 100
idle_watts = "measured"
"""


def with_watts(path, idle, populated):
    """A ramp whose note has the host's power."""
    events = path / "events.jsonl"
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    for line in lines:
        if line.get("details", {}).get("code") == "density-stop":
            line["details"] |= {"idle_watts": idle, "populated_watts": populated}
    events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_measured_watts_are_those_of_the_host_and_of_each_instance(tmp_path):
    run = with_watts(write_density(tmp_path / "run", ending="processes"), 50.0, 58.0)
    file = tmp_path / "prices.toml"
    file.write_text(WATTS)
    (plan,) = make_plan(PlanRequest((run,), prices=file)).plans
    (cost,) = make_plan(PlanRequest((run,), prices=file)).costs
    watts = 50 + (58 - 50) / 40 * plan.instances
    assert cost.parts["energy"] == pytest.approx(watts / 1000 * 730.5 * 0.2)


@pytest.mark.parametrize(
    ("ending", "options", "said"),
    [
        ("", {}, "host.idle_watts: no power was measured with native idle: the host has no counters of energy"),
        ("processes", {"cpus": 64.0, "memory": "64GiB"}, "host.idle_watts: the ramp's host has other CPUs"),
    ],
)
def test_power_that_nobody_measured_is_refused(tmp_path, ending, options, said):
    run = write_density(tmp_path / "run", ending=ending)
    if ending:
        with_watts(run, 50.0, 58.0)
    file = tmp_path / "prices.toml"
    file.write_text(WATTS)
    with pytest.raises(SuiteError, match=re.escape(said)):
        make_plan(PlanRequest((run,), prices=file, **options))


def test_measured_watts_have_no_other_end(tmp_path):
    file = tmp_path / "prices.toml"
    file.write_text(WATTS + "full_watts = 300\n")
    with pytest.raises(SuiteError, match="full_watts: cannot be combined with idle_watts = 'measured'"):
        load_prices(file)
