"""How many fit, with an interval that holds; what runs out first; how many hosts a mix needs; and what is refused."""

import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from tare.bench.analysis.cost import Cost, Estimate, fit_cost
from tare.bench.analysis.density import DensityCell, Ending, InstanceCost, analyse_density, fit_cell
from tare.bench.analysis.scaling import Refusal, fit_scaling, throughput
from tare.bench.capacity.fleet import load_fleet
from tare.bench.capacity.hosts import HostType, Resource
from tare.bench.capacity.instances import Basis, HostLimit, InstanceLimits, InstanceType, Need, loaded_cpu, make_type
from tare.bench.capacity.packing import Demand, pack
from tare.bench.capacity.plan import plan_host
from tare.bench.capacity.words import plan_notes
from tare.bench.cli.main import app
from tare.bench.cli.plan import PlanRequest, make_plan
from tare.bench.errors import SuiteError
from tare.bench.model import BackendDescription, Confound, Envelope, Fact, IsolationKind, named_facts
from tare.bench.records import Event, EventKind, Sample
from tare.bench.store import RunStore, load_run
from tare.bench.units import Unit
from tests.unit.test_capacity_cost import TRUE_COST, simulated
from tests.unit.test_store import MANIFEST

GIB, MIB = 2**30, 2**20
HOST = HostType("large", 64, 512 * GIB, 4096 * GIB)
COUNT = 40


def kind(*needs: Need, population: int = 50, **options) -> InstanceType:
    result = fit_cell(DensityCell("native", "", {}, ({"density.start": ((population, 0.1),)},), ()))
    backend = BackendDescription("native", IsolationKind.CONTAINER)
    defaults = {"name": "x", "result": result, "backend": backend, "run": "", "basis": Basis.MEASURED}
    defaults |= {"limits": InstanceLimits(1.0, 1.0 * GIB, 1.0 * GIB), "host_limits": (), "cpus_measured": 1}
    return InstanceType(**(defaults | options), needs=needs)


def need(resource: Resource, each: float, half: float = 0.0, **options) -> Need:
    return Need(resource, Estimate(each, each - half, each + half), **({"by_limit": False} | options))


def write_density(
    path: Path,
    *,
    accel: str = "",
    workload: str = "",
    each: float = 100 * MIB,
    ending: str = "",
    touched: float = 0.0,
    late: float = 1.0,
    confounds: tuple[Confound, ...] = (),
    seed: int = 1,
) -> Path:
    """A run whose instances take ``each`` of memory, 2 % of a CPU, 1 MiB of disk; with a workload throughput too."""
    described = BackendDescription("native", IsolationKind.CONTAINER)
    if accel:
        kind = IsolationKind.EMULATED if accel == "tcg" else IsolationKind.VIRTUAL_MACHINE
        described = BackendDescription(f"vm ({accel})", kind, accel, named_facts({"tcg_tb_cache": "48 MiB"}))
    manifest = msgspec.structs.replace(
        MANIFEST,
        envelope=Envelope((0,), 256 * MIB, 64 * MIB, 64),
        backends={"vm" if accel else "native": described},
        confounds=confounds,
        host=(Fact("cpus", "2", "x", 2), Fact("memory", "24.0 GiB", "x", 24 * 2**30)),
    )
    backend = next(iter(manifest.backends))
    random = np.random.default_rng(seed)

    def sample(metric: str, number: int, value: float, unit: Unit = Unit.BYTE) -> Sample:
        params = {"count": COUNT}
        return Sample(
            "i0", 0, "density", workload, params, backend, f"density.{metric}", unit, value, number, warmup=False
        )

    with RunStore(path, manifest) as store:
        for number in [0, 0, 0, *range(1, COUNT + 1)]:
            taken = each * (number + max(0, number - COUNT // 2) * (late - 1)) + float(random.normal(0, each / 20))
            store.add_sample(sample("memory_available", number, 20 * GIB - taken))
            if number:
                store.add_sample(sample("start", number, 0.02 + 1e-4 * number, Unit.SECOND))
                store.add_sample(sample("charge", number, number * each / 2))
                if touched:
                    store.add_sample(sample("guest_ram", number, number * touched))
                store.add_sample(sample("disk_owned", number, number * MIB))
                store.add_sample(sample("disk_shared", number, 300 * MIB))
                if workload:
                    rate = 100 * number / (1 + 0.05 * (number - 1) + 0.001 * number * (number - 1))
                    store.add_sample(sample("throughput", number, rate, Unit.OPERATIONS_PER_SECOND))
                    store.add_sample(sample("loaded_cpu", number, min(1.0, 0.5 * number), Unit.CPU))
                else:
                    store.add_sample(sample("idle_cpu", number, 0.02 * number, Unit.CPU))
        if ending:
            details = {"code": "density-stop", "population": COUNT, "reason": "failure", "message": "no more"}
            details |= {"resource": ending, "remedy": "raise kernel.pid_max", "evidence": ""}
            store.add_event(Event(EventKind.NOTE, 1.0, "", "i0", "", "", details))
    return path


def only(path: Path, **options) -> InstanceType:
    run = load_run(path)
    (result,) = analyse_density(run.samples, run.events)
    return make_type(result, run.manifest, str(path), **options)


def tare(*arguments: object):
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def said(result) -> str:
    return " ".join(result.stderr.split())


# --- how many fit ---------------------------------------------------------------------------------


def test_the_resource_with_least_room_binds_and_the_others_have_headroom():
    one = kind(need(Resource.MEMORY, GIB, 0.1 * GIB), need(Resource.CPU, 0.5), need(Resource.DISK, 0.0))
    plan = plan_host(one, msgspec.structs.replace(HOST, reserve={Resource.CPU: 4.0}), demand=1000)
    assert (plan.instances, plan.binds, plan.hosts) == (120, "cpu (measured)", 9)
    memory, cpu, _ = plan.headroom
    assert cpu.share == pytest.approx(1.0)
    assert memory.left == pytest.approx(512 * GIB * 0.9 - 120 * GIB)
    assert plan_host(one, msgspec.structs.replace(HOST, cpus=6400)).binds == "memory (measured)"


def test_what_the_host_keeps_and_what_is_taken_once_are_not_there_for_instances():
    disk = kind(need(Resource.DISK, 10 * GIB, once=50 * GIB))
    kept = msgspec.structs.replace(HOST, reserve={Resource.DISK: 46.0 * GIB})
    assert plan_host(disk, kept).instances == 400
    small = HostType("small", 2, 4 * GIB)
    assert small.reserved(Resource.MEMORY) == GIB
    assert plan_host(kind(need(Resource.MEMORY, GIB)), small).instances == 3


def test_only_limits_are_overcommitted():
    host = msgspec.structs.replace(HOST, overcommit={Resource.CPU: 4.0}, reserve={Resource.CPU: 0.0})
    assert plan_host(kind(need(Resource.CPU, 1.0)), host).instances == 64
    assert plan_host(kind(need(Resource.CPU, 1.0, by_limit=True)), host).instances == 256


def test_a_figure_far_beyond_what_was_measured_is_marked():
    one = kind(need(Resource.MEMORY, GIB), population=50)
    plans = [plan_host(one, HostType("x", 1, (n + 1) * GIB, reserve={Resource.MEMORY: float(GIB)})) for n in (500, 501)]
    assert [plan.is_extrapolated for plan in plans] == [False, True]


def test_without_anything_that_ends_there_is_no_number():
    plan = plan_host(kind(need(Resource.CPU, 0.0)), HOST, demand=3)
    assert (plan.instances, plan.fewest, plan.hosts) == (None, None, None)


def test_an_unbounded_cost_leaves_the_upper_end_open():
    plan = plan_host(kind(need(Resource.MEMORY, GIB, 2 * GIB)), HOST, demand=1000)
    assert (plan.fewest, plan.most) == (153, None)
    assert (plan.hosts_fewest, plan.hosts_most) == (None, 7)


def test_the_interval_holds_what_a_host_really_takes_as_often_as_it_says():
    """A ramp of 30 is measured, then a host is filled with other instances of the same kind until it is full."""
    random = np.random.default_rng(11)
    held, runs, usable = 0, 120, 100 * TRUE_COST
    host = HostType("x", 1, int(usable) + GIB, reserve={Resource.MEMORY: float(GIB)})
    for _ in range(runs):
        cost = fit_cost([simulated(random, own=0.3, noise=0.3)])
        memory = Need(Resource.MEMORY, cost, by_limit=False, measured_on=30)
        plan = plan_host(kind(memory), host)
        others = TRUE_COST * (1 + 0.3 * random.standard_normal(300))
        true = int((np.cumsum(others) <= usable).sum())
        held += plan.fewest <= true <= plan.most
    # Of 120 that hold with 95 %, fewer than 105 do 1 in 1,000 times; without the others' own spread it would be fewer.
    assert held >= 105


def test_the_interval_is_widened_for_other_instances_by_hand():
    """100 GiB for 1 GiB each, known to a tenth on 30: sqrt(1 + 30 / 100) * 0.1 = 0.114."""
    memory = need(Resource.MEMORY, GIB, 0.1 * GIB, measured_on=30)
    plan = plan_host(kind(memory), HostType("x", 1, 101 * GIB, reserve={Resource.MEMORY: float(GIB)}))
    assert (plan.instances, plan.fewest, plan.most) == (100, math.floor(100 / 1.1140175), math.floor(100 / 0.8859825))


def test_a_need_without_an_interval_that_is_not_the_first_counts_with_its_value():
    memory, cpu = need(Resource.MEMORY, GIB, 0.5 * GIB), Need(Resource.CPU, Estimate(0.5, None, None), by_limit=False)
    host = HostType("x", 55.0, 101 * GIB, reserve={Resource.MEMORY: float(GIB), Resource.CPU: 5.0})
    plan = plan_host(kind(memory, cpu), host)
    # Memory holds 100, and 66 to 200; CPUs hold 100 and so bound the upper end.
    assert (plan.instances, plan.fewest, plan.most) == (100, 66, 100)
    first = plan_host(kind(memory, cpu), msgspec.structs.replace(host, cpus=30.0))
    assert (first.instances, first.fewest, first.most) == (50, None, None)


# --- what a run says of its instances -------------------------------------------------------------


def test_a_guest_is_planned_with_its_whole_ram_and_emulated_cpus_bind_nothing(tmp_path):
    guest = only(write_density(tmp_path / "vm", accel="tcg"))
    plan = plan_host(guest, msgspec.structs.replace(HOST, cpus=1, reserve={Resource.CPU: 0.0}))
    assert plan.binds == "memory (limits)"
    assert plan.instances == pytest.approx(512 * 1024 * 0.9 / 356, abs=20)
    assert "48 MiB" in " ".join(plan_notes(plan))
    assert "KVM" in " ".join(plan_notes(plan))
    assert "on the safe side" in " ".join(plan_notes(plan))
    real = only(write_density(tmp_path / "kvm", accel="kvm", touched=60 * MIB))
    # Of the 100 MiB that it cost, 60 were of its own 256 MiB of RAM: 40 are beside it.
    told = plan_host(real, msgspec.structs.replace(HOST, cpus=1e6))
    assert told.instances == pytest.approx(512 * 1024 * 0.9 / 296, abs=30)
    assert told.fewest < told.instances < told.most
    busy = plan_host(real, msgspec.structs.replace(HOST, cpus=1, reserve={Resource.CPU: 0.0}))
    assert (busy.binds, busy.instances) == ("cpu (measured)", 50)


def test_what_ran_on_an_emulated_processor_plans_no_cpu_and_says_why(tmp_path):
    emulated = (Confound("host-emulated", "the host's own processor is emulated in software"),)
    tight = msgspec.structs.replace(HOST, cpus=1, reserve={Resource.CPU: 0.0})
    for accel in ("", "kvm"):
        plan = plan_host(only(write_density(tmp_path / f"run-{accel}", accel=accel, confounds=emulated)), tight)
        assert plan.binds != "cpu (measured)"
        said = " ".join(plan_notes(plan))
        assert "carry over to no other host and bound nothing, and the plan decides no claim about virtu" in said
        assert "emulated (TCG)" not in said


def test_a_container_is_planned_with_what_it_used_or_with_its_limit(tmp_path):
    path = write_density(tmp_path / "run")
    free = msgspec.structs.replace(HOST, cpus=1e6)
    used, limited = (plan_host(only(path, basis=basis), free) for basis in (Basis.AUTO, Basis.LIMITS))
    assert used.instances == pytest.approx(512 * 1024 * 0.9 / 100, rel=0.03)
    # Half of the 100 MiB is charged to its own limit of 256 MiB, the other half is outside of it.
    assert limited.instances == pytest.approx(512 * 1024 * 0.9 / 306, rel=0.03)
    assert any("limits of" in note for note in plan_notes(used))
    assert used.fewest < used.instances < used.most


def cost_of(per_instance: float, half: float | None) -> Cost:
    low, high = (None, None) if half is None else (per_instance - half, per_instance + half)
    return Cost(per_instance, low, high, 0.0, None, 1, 50, 50, (), "")


@pytest.mark.parametrize(
    ("memory", "attributed", "found"),
    [
        ((100.0, 10.0), 95.0, (100.0, "MemAvailable")),
        ((100.0, 30.0), 95.0, (95.0, "PSS, slab, other kernel")),  # vague, and agrees
        ((100.0, 30.0), 60.0, (100.0, "MemAvailable")),  # vague, and does not agree
        ((100.0, 120.0), 95.0, (95.0, "PSS, slab, other kernel")),  # it may be nothing
        ((100.0, None), None, (100.0, "MemAvailable")),
        ((100.0, 120.0), None, None),
    ],
)
def test_memory_is_by_the_meter_that_can_say_it(memory, attributed, found):
    parts = dict.fromkeys(InstanceCost.__struct_fields__)
    if attributed is not None:
        parts |= {"pss": cost_of(attributed - 15, 3.0), "slab": cost_of(10.0, 4.0), "kernel_other": cost_of(5.0, 0.0)}
    best = InstanceCost(**(parts | {"memory": cost_of(*memory)})).best_memory
    assert (best and (best.per_instance, best.source)) == found
    if found and found[0] == 95.0:
        assert (best.low, best.high) == (90.0, 100.0)


def test_memory_beyond_the_limit_is_what_was_not_charged_by_hand():
    """100 +- 12 MiB in all, 50 +- 5 of it charged: 50 +- 13 are outside the limit of 256."""
    result = kind().result
    cost = msgspec.structs.replace(
        result.cost, memory=cost_of(100.0 * MIB, 12.0 * MIB), charge=cost_of(50.0 * MIB, 5.0 * MIB)
    )
    manifest = msgspec.structs.replace(MANIFEST, backends={"native": BackendDescription("n", IsolationKind.CONTAINER)})
    made = make_type(msgspec.structs.replace(result, cost=cost), manifest, "", limits={"memory": 256 * MIB})
    measured, limit = (one for one in made.needs if one.resource is Resource.MEMORY)
    assert (measured.by_limit, measured.binds, limit.by_limit, limit.binds) == (False, True, True, False)
    each = limit.each
    assert (each.low, each.per_instance, each.high) == pytest.approx((293 * MIB, 306 * MIB, 319 * MIB))
    assert measured.measured_on == limit.measured_on == 50


def test_a_quota_is_the_limit_of_the_cpus(tmp_path):
    run = load_run(write_density(tmp_path / "run"))
    (result,) = analyse_density(run.samples, run.events)
    envelope = msgspec.structs.replace(run.manifest.envelope, cpu_quota=0.5)
    manifest = msgspec.structs.replace(run.manifest, envelope=envelope)
    host = msgspec.structs.replace(HOST, overcommit={Resource.CPU: 1.0}, reserve={Resource.CPU: 0.0})
    assert plan_host(make_type(result, manifest, "", cpu_by_limit=True), host).instances == 128


def test_where_later_instances_cost_more_the_plan_is_made_with_them(tmp_path):
    free = msgspec.structs.replace(HOST, cpus=1e6)
    plan = plan_host(only(write_density(tmp_path / "run", late=3.0)), free)
    assert plan.instances == pytest.approx(512 * 1024 * 0.9 / 300, rel=0.05)
    assert any("later instances cost more" in note for note in plan_notes(plan))
    straight = plan_host(only(write_density(tmp_path / "straight")), free)
    assert not any("later instances" in note for note in plan_notes(straight))


def test_a_limit_of_the_measured_host_binds_until_it_is_raised(tmp_path):
    path = write_density(tmp_path / "run", ending="processes")
    plan = plan_host(only(path), HOST)
    assert (plan.instances, plan.remedy) == (COUNT, "raise kernel.pid_max")
    assert "processes" in plan.binds
    assert plan_host(only(path, raised=("processes",)), HOST).instances > 10 * COUNT


def test_a_limit_that_no_ramp_met_cannot_be_raised(tmp_path):
    path = write_density(tmp_path / "run", ending="processes")
    with pytest.raises(SuiteError, match="--raised: no ramp ended at 'procs'; they ended at: processes"):
        make_plan(PlanRequest((path,), raised=("procs",)))


def test_of_several_ramps_the_least_population_is_the_host_s_limit_and_stated_limits_are_none():
    def ended(population, resource="namespaces", reason="failure"):
        return Ending("i", population, reason, "", resource, f"at {population}", 0)

    result = kind().result
    endings = (ended(30), ended(20), ended(25), ended(5, reason="start-limit"), ended(4, "memory"), ended(3, ""))
    cell = msgspec.structs.replace(result.cell, endings=endings)
    manifest = msgspec.structs.replace(MANIFEST, backends={"native": BackendDescription("n", IsolationKind.CONTAINER)})
    made = make_type(msgspec.structs.replace(result, cell=cell), manifest, "")
    assert made.host_limits == (HostLimit("namespaces", 20, "at 20"),)


def test_cpus_at_work_are_those_at_the_smallest_population():
    """0.1, 0.2 and 0.9 CPUs: a mean of 0.4, and Student's t for two degrees of freedom times 0.436 / sqrt(3)."""
    readings = {"density.start": ((4, 0.1),), "density.loaded_cpu": ((1, 0.1), (1, 0.2), (1, 0.9), (4, 1.0))}
    result = fit_cell(DensityCell("native", "fio", {}, (readings,), ()))
    each, on = loaded_cpu(result)
    assert (each.per_instance, on) == (pytest.approx(0.4), 3)
    assert (each.low, each.high) == (0.0, pytest.approx(0.4 + 4.302653 * 0.4358899 / math.sqrt(3)))


def test_a_loaded_ramp_says_the_cpus_at_work_and_where_throughput_is_largest(tmp_path):
    plan = plan_host(only(write_density(tmp_path / "run", workload="sysbench-cpu")), HOST)
    assert (plan.binds, plan.instances) == ("cpu (measured)", 121)
    assert plan.type.result.scaling.peak == pytest.approx(math.sqrt(0.95 / 0.001), rel=0.01)
    assert any("throughput was largest with 30.8" in note for note in plan_notes(plan))


# --- throughput -----------------------------------------------------------------------------------


def curve(population, random, *, noise: float, contention: float = 0.05, coherency: float = 0.002):
    values = 100 * population / (1 + contention * (population - 1) + coherency * population * (population - 1))
    return values * (1 + noise * random.standard_normal(len(population)))


def test_the_scaling_law_s_intervals_hold_the_truth():
    random = np.random.default_rng(5)
    population = np.repeat([1.0, 2, 4, 8, 12, 16, 24, 32], 2)
    fits = [fit_scaling(population, curve(population, random, noise=0.03)) for _ in range(25)]
    truth = {"rate": 100.0, "contention": 0.05, "coherency": 0.002}
    for name, true in truth.items():
        # Of 25 that hold with 95 %, fewer than 20 do 1 in 1,000 times.
        assert sum(getattr(fit, name).low <= true <= getattr(fit, name).high for fit in fits) >= 20, name
    peak = math.sqrt(0.95 / 0.002)
    assert sum(fit.peak_low <= peak <= fit.peak_high for fit in fits) >= 20
    assert all(fit.r_squared > 0.9 for fit in fits)


def test_throughput_that_never_falls_has_no_peak():
    population = np.arange(1.0, 9.0)
    fit = fit_scaling(population, 100 * population / (1 + 0.1 * (population - 1)))
    assert (fit.peak, fit.peak_throughput) == (None, None)
    assert fit.at(20) == pytest.approx(2000 / 2.9, rel=1e-3)


@pytest.mark.parametrize(
    ("population", "values", "reason"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], "4 populations were measured"),
        ([1, 2, 3, 4, 5], [1, 2, 0, 4, 5], "not above 0"),
        ([1, 2, 3, 4, 5, 6], [1, 4, 9, 16, 25, 36], "the law does not fit"),
        ([1, 2, 3, 4, 5, 6], [10, 20, 5, 40, 8, 60], "the law does not fit"),
    ],
)
def test_what_the_law_does_not_say_is_refused(population, values, reason):
    fit = fit_scaling(np.array(population, dtype=float), np.array(values, dtype=float))
    assert isinstance(fit, Refusal)
    assert reason in fit.reason


# --- a mix ----------------------------------------------------------------------------------------


def test_a_mix_fills_what_one_type_leaves_and_stands_beside_its_bound():
    big = kind(need(Resource.MEMORY, 10 * GIB), need(Resource.CPU, 1.0), name="big")
    busy = kind(need(Resource.MEMORY, GIB), need(Resource.CPU, 10.0), name="busy")
    host = HostType("h", 44, 44 * GIB, reserve={Resource.MEMORY: 0.0, Resource.CPU: 0.0})
    packing = pack([Demand(big, 8), Demand(busy, 8)], [host])
    assert (packing.hosts, packing.bound, packing.left) == (2, 2, {})
    (filled,) = packing.filled
    assert (filled.hosts, filled.instances) == (2, {"big": 4, "busy": 4})
    assert all(use.share == pytest.approx(1.0) for use in filled.headroom)
    alone = sum(plan_host(one, host, demand=8).hosts for one in (big, busy))
    assert alone == 4


def test_limits_of_guests_and_use_of_others_come_out_of_one_pool():
    guest = kind(need(Resource.MEMORY, 8 * GIB, by_limit=True), name="guest")
    container = kind(need(Resource.MEMORY, GIB), name="container")
    host = HostType("h", 4, 40 * GIB, reserve={Resource.MEMORY: 0.0})
    packing = pack([Demand(guest, 5), Demand(container, 40)], [host])
    assert (packing.hosts, packing.bound) == (2, 2)
    twice = msgspec.structs.replace(host, overcommit={Resource.MEMORY: 2.0})
    packing = pack([Demand(guest, 5), Demand(container, 20)], [twice])
    assert packing.hosts == 1
    shares = {resource: share for resource, _, share in packing.filled[0].shares}
    assert shares["memory"] == pytest.approx(1.0)


def test_hosts_that_are_counted_run_out_and_the_rest_is_named():
    one = kind(need(Resource.MEMORY, GIB, 0.25 * GIB), name="one")
    small = HostType("small", 4, 5 * GIB, count=3, reserve={Resource.MEMORY: float(GIB)})
    packing = pack([Demand(one, 20)], [small])
    assert (packing.hosts, packing.left) == (3, {"one": 8})
    unlimited = msgspec.structs.replace(small, name="more", count=None)
    packing = pack([Demand(one, 20)], [small, unlimited])
    assert [(filled.host, filled.hosts) for filled in packing.filled] == [("small", 3), ("more", 2)]
    assert packing.hosts_fewest <= packing.hosts <= packing.hosts_most
    capped = msgspec.structs.replace(one, host_limits=(HostLimit("processes", 2, ""),))
    packing = pack([Demand(capped, 20)], [unlimited])
    assert (packing.hosts, packing.bound) == (10, 10)


def test_the_largest_are_placed_first():
    """6 + 3 of 10 on each of two hosts; small ones first would share one and leave two hosts to the large ones."""
    small, large = (kind(need(Resource.MEMORY, size * GIB), name=str(size)) for size in (3, 6))
    host = HostType("h", 1, 10 * GIB, reserve={Resource.MEMORY: 0.0})
    packing = pack([Demand(small, 2), Demand(large, 2)], [host])
    assert [(one.hosts, one.instances) for one in packing.filled] == [(2, {"3": 1, "6": 1})]


def test_no_packing_is_below_its_bound():
    random = np.random.default_rng(2)
    for _ in range(20):
        demands = [
            Demand(
                kind(
                    need(Resource.MEMORY, float(random.uniform(0.1, 8)) * GIB),
                    need(Resource.CPU, float(random.uniform(0.1, 8))),
                    name=str(number),
                ),
                int(random.integers(1, 200)),
            )
            for number in range(4)
        ]
        packing = pack(demands, [HostType("h", 40, 40 * GIB)])
        assert packing.bound <= packing.hosts
        assert not packing.left
        for one in demands:
            placed = sum(filled.hosts * filled.instances.get(one.type.name, 0) for filled in packing.filled)
            assert placed == one.instances
        assert all(use.share <= 1 + 1e-6 for filled in packing.filled for use in filled.headroom)


# --- the command ----------------------------------------------------------------------------------


def test_the_three_forms_say_the_same(tmp_path):
    path = write_density(tmp_path / "run")
    options = [path, "--cpus", 64, "--memory", "512GiB", "--disk", "4TiB", "--overcommit", "cpu=4", "--instances", 5000]
    document = json.loads(tare(*options, "--format", "json").stdout)
    (plan,) = document["plans"]
    assert (plan["instances"], plan["binds"], plan["hosts_needed"]) == (243, "cpu (limits)", 21)
    assert plan["instances_interval"] == [243, 243]
    assert document["hosts"][0]["reserve"]["memory"] == pytest.approx(51.2 * GIB)
    table = tare(*options)
    assert table.exit_code == 0
    assert "243" in table.stdout
    assert "cpu 4 times" in " ".join(table.stdout.split())
    output = tmp_path / "plan.md"
    assert tare(*options, "-f", "markdown", "-o", output).exit_code == 0
    text = output.read_text()
    assert "| native idle | 243 |" in text
    assert "measured while idle" in text
    assert "for the host: 0.5 CPUs" in " ".join(tare(path).stdout.split())


def test_the_documented_fleet_can_be_planned(tmp_path):
    example = Path("docs/fleet-example.toml").read_text()
    (tmp_path / "fleet.toml").write_text(example)
    write_density(tmp_path / "runs" / "density-web")
    write_density(tmp_path / "runs" / "density-vm", accel="kvm")
    result = tare("--fleet", tmp_path / "fleet.toml", "--format", "json")
    assert result.exit_code == 0, result.stderr
    packing = json.loads(result.stdout)["packing"]
    assert packing["left"] == {}
    assert packing["filled"][0]["host"] == "large"
    placed = {"web": 0, "build agents": 0}
    for filled in packing["filled"]:
        for name, count in filled["instances"].items():
            placed[name] += count * filled["hosts"]
    assert placed == {"web": 3000, "build agents": 200}
    assert "first fit decreasing" in tare("--fleet", tmp_path / "fleet.toml", "-f", "markdown").stdout


@pytest.mark.parametrize(
    ("change", "place", "problem"),
    [
        (('memory = "512GiB"', 'memory = "512GB"'), "host[0].memory", "not a size"),
        (("cpus = 64", 'cpus = "many"'), "host[0].cpus", "Expected `float`"),
        (("cpus = 16", "cpus = 0"), "host[1].cpus", "more than 0"),
        (("cpu = 4 } ", "gpu = 4 } "), "host[0].overcommit", "unknown key `gpu`"),
        (('memory = "16GiB"', 'memory = "600GiB"'), "host[0].reserve.memory", "leaves nothing"),
        (("instances = 200", "instances = 0"), "demand[1].instances", "at least 1"),
        (('basis = "limits"', 'basis = "hoped"'), "demand[0].basis", "hoped"),
        (('name = "small"', 'name = "large"'), "host", "two are named"),
        (("count = 4", "number = 4"), "host[0]", "number"),
        (("[[host]]", "[host"), "fleet.toml", "not TOML"),
    ],
)
def test_a_wrong_fleet_file_is_named_with_its_key(tmp_path, change, place, problem):
    text = Path("docs/fleet-example.toml").read_text()
    assert change[0] in text
    path = tmp_path / "fleet.toml"
    path.write_text(text.replace(*change))
    with pytest.raises(SuiteError) as raised:
        load_fleet(path)
    assert place in raised.value.place
    assert problem in raised.value.message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{run}", "--memory", "12GB"), "--memory: '12GB' is not a size"),
        (("{run}", "--cpus", "0"), "--cpus: must be more than 0"),
        (("{run}", "--cpus", "nan"), "--cpus: must be more than 0"),
        (("{run}", "--instances", "0"), "--instances: must be 1 or more"),
        (("{run}", "--overcommit", "cpu"), "--overcommit: 'cpu' is not name=value"),
        (("{run}", "--overcommit", "cpu=-1"), "--overcommit.cpu: must be more than 0"),
        (("{run}", "--reserve", "memory=1TiB"), "--reserve.memory: leaves nothing of it"),
        (("{run}", "--basis", "hoped"), "--basis: there is no 'hoped'; there are: auto, measured, limits"),
        (("{run}", "-b", "podman"), "no ramp of the backend 'podman' is in what was named; there are: native"),
        (("{run}", "-f", "xml"), "no form 'xml'; there are: table, json, markdown"),
        (("{empty}",), "has no density data"),
        (("{folder}",), "is not a run directory"),
        (("--fleet", "{folder}/none.toml"), "none.toml: there is no such file"),
        (("{run}", "--fleet", "docs/fleet-example.toml"), "--fleet: cannot be combined with RUN"),
        ((), "names neither a run nor a --fleet"),
    ],
)
def test_what_cannot_be_planned_ends_with_one_message(tmp_path, arguments, message):
    run = write_density(tmp_path / "run")
    with RunStore(tmp_path / "empty", MANIFEST):
        pass
    places = {"run": run, "empty": tmp_path / "empty", "folder": tmp_path}
    result = tare(*(str(one).format(**places) for one in arguments))
    assert result.exit_code == 3
    assert message in said(result)
    assert "Traceback" not in result.stderr


def test_a_demand_that_names_no_ramp_of_its_run_says_what_there_is(tmp_path):
    write_density(tmp_path / "run")
    (tmp_path / "fleet.toml").write_text(
        '[[host]]\nname = "h"\ncpus = 4\nmemory = "8GiB"\n'
        '[[demand]]\nname = "d"\nrun = "run"\nbackend = "native"\nworkload = "fio"\ninstances = 5\n'
    )
    result = tare("--fleet", tmp_path / "fleet.toml")
    assert result.exit_code == 3
    assert "no ramp of that workload on native; there are: ''" in said(result)


def test_a_ramp_without_memory_that_can_be_told_bounds_nothing_by_it():
    cell = DensityCell("native", "", {}, ({"density.start": ((1, 0.1),)},), ())
    manifest = msgspec.structs.replace(
        MANIFEST, backends={"native": BackendDescription("native", IsolationKind.CONTAINER)}
    )
    plan = plan_host(make_type(fit_cell(cell), manifest, ""), HOST)
    assert "memory bounds nothing" in " ".join(plan_notes(plan))


def test_errors_that_a_ramp_shares_are_in_the_interval_of_the_rate():
    random, law, inside = np.random.default_rng(32), (100.0, 0.03, 0.0005), {True: 0, False: 0}
    population, ramps = np.tile([1.0, 2, 4, 8, 16, 32], 3), np.repeat(np.arange(3), 6)
    for _ in range(25):
        errors = 0.05 * random.standard_normal(3)[ramps] + 0.01 * random.standard_normal(18)
        values = throughput(population, law) * (1 + errors)
        for known in inside:
            fit = fit_scaling(population, values, ramps=ramps if known else None)
            inside[known] += fit.rate.low <= law[0] <= fit.rate.high
    assert inside[True] >= 21
    assert inside[False] <= 20
