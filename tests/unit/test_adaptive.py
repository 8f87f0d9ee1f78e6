"""Blocks are added until cells are precise: those that are make room, a run that goes on adds the same ones."""

import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tare.bench.adaptive import FAILURES, Sampler, SamplingEnd, describe, run_until_precise
from tare.bench.design import make_design
from tare.bench.model import Completed
from tare.bench.records import EventKind, PlannedInstance, Sample
from tare.bench.runner import Runner
from tare.bench.stats.precision import FEWEST, Standing
from tare.bench.store import RunStore, find_progress, load_run
from tare.bench.suite import Suite, bind_suite, resolve_suite
from tare.bench.units import Unit
from tests.unit.fakes import BACKENDS, IMAGE, WORKLOADS, FakeBackend
from tests.unit.test_runner import Silent
from tests.unit.test_store import MANIFEST

NOISE = {"base": 0.002, "quiet": 0.002, "noisy": 0.08}


def suite(*names: str, boot: bool = False, **sampling) -> Suite:
    source = {
        "suite": {"name": "adaptive"},
        "sampling": {"seed": 1, "blocks": 3, "iterations": 2, "warmup": 0, "precision": 0.02, **sampling},
        "backend": [{"type": "fake", "name": name} for name in names],
        "experiment": [
            *([{"kind": "boot", "precision": 0, "blocks": 2}] if boot else []),
            {"kind": "steady", "workload": "answer"},
        ],
    }
    return bind_suite(resolve_suite(source, Path("suite.toml"), BACKENDS, WORKLOADS))


def value(planned: PlannedInstance, iteration: int) -> float:
    """What an instance measures: the same in every run of the same plan."""
    backend = planned.cell.backend
    random = np.random.default_rng(zlib.crc32(f"{planned.identifier}/{iteration}".encode()))
    return float(100 * np.exp(NOISE[backend] * random.standard_normal()))


def feed(sampler: Sampler, plan: list[PlannedInstance], *, failing=(), seconds: float = 1.0) -> None:
    for planned in plan:
        cell, failed = planned.cell, planned.cell.backend in failing
        sampler.ended(cell.key, seconds, failed=failed)
        for iteration in range(0 if failed else 2):
            number = value(planned, iteration)
            sampler.add(
                Sample(
                    planned.identifier, planned.block, cell.experiment, cell.workload, cell.params, cell.backend,
                    "answer.value", Unit.COUNT, number, iteration, warmup=False,
                )
            )  # fmt: skip


def drive(given: Suite, **options) -> tuple[Sampler, list[list[PlannedInstance]]]:
    """All blocks of a run: the fixed ones as one, then each further one."""
    sampler, plan = Sampler(given, "base"), make_design(given)
    blocks = [plan]
    feed(sampler, plan, **options)
    while block := sampler.next_block(len(blocks) - 1):
        feed(sampler, block, **options)
        blocks.append(block)
    return sampler, blocks


def counts(blocks: list[list[PlannedInstance]]) -> Counter:
    return Counter(planned.cell.backend for block in blocks for planned in block)


def test_cells_that_are_done_make_room_and_the_baseline_stays_for_the_others():
    sampler, blocks = drive(suite("base", "quiet", "noisy"))
    seen = counts(blocks)
    assert sampler.ending is SamplingEnd.REACHED
    assert seen["quiet"] == FEWEST
    assert seen["noisy"] > 2 * FEWEST
    assert seen["base"] == seen["noisy"]
    standing = {one.cell.rpartition("/")[2]: one.precision for one in sampler.standings()}
    assert set(standing) == {"quiet", "noisy"}
    assert all(one.standing is Standing.REACHED and one.half_width <= 0.02 for one in standing.values())
    assert standing["noisy"].n_blocks == seen["noisy"]


def test_a_backend_alone_is_sampled_for_its_own_value():
    sampler, blocks = drive(suite("base"))
    assert counts(blocks) == {"base": FEWEST}
    assert [one.precision.standing for one in sampler.standings()] == [Standing.REACHED]


def test_experiments_without_a_precision_keep_their_blocks():
    sampler, blocks = drive(suite("base", "noisy", boot=True, max_blocks=12))
    assert Counter(planned.cell.experiment for block in blocks[1:] for planned in block) == {"steady": 2 * 9}
    assert all(one.cell.startswith("steady") for one in sampler.standings())


def test_the_largest_number_of_blocks_ends_it_and_what_it_would_take_is_said():
    sampler, blocks = drive(suite("base", "noisy", max_blocks=10, precision=0.04))
    assert counts(blocks)["noisy"] == 10
    assert sampler.ending is SamplingEnd.BLOCKS
    (one,) = sampler.standings()
    assert one.precision.standing is Standing.NOT_REACHED
    assert one.precision.needed > 10
    assert f"about {one.precision.needed} needed" in describe([one])


def test_a_block_that_would_overrun_the_time_is_not_begun():
    sampler, blocks = drive(suite("base", "noisy", max_time="21s", precision=0.04))
    assert sampler.ending is SamplingEnd.TIME
    assert len(blocks) == 1 + 7  # 3 fixed blocks and 7 further ones of 2 s are 20 s


def test_a_block_that_was_begun_before_the_run_was_stopped_is_finished_whatever_it_takes():
    given = suite("base", "noisy", max_time="21s")
    _, blocks = drive(given)
    again = Sampler(given, "base")
    for block in blocks:
        feed(again, block, seconds=10)
    assert again.next_block(3, {planned.identifier for planned in blocks[4]}) == blocks[4]
    assert again.next_block(3) == []


def test_a_cell_that_only_fails_is_given_up():
    sampler, blocks = drive(suite("base", "quiet", "noisy"), failing=("quiet",))
    assert counts(blocks)["quiet"] == FAILURES
    assert {one.cell.rpartition("/")[2]: one.precision.standing for one in sampler.standings()} == {
        "quiet": Standing.CANNOT,
        "noisy": Standing.REACHED,
    }


@pytest.mark.parametrize("limit", [{"max_blocks": 9}, {"max_time": "26s"}])
def test_a_cell_that_cannot_get_there_is_given_up_and_its_time_goes_to_the_others(limit, monkeypatch):
    """The hopeless cell leaves after the fewest blocks; with the same noise and room enough it stays."""
    monkeypatch.setitem(NOISE, "noisy", 0.6)
    sampler, blocks = drive(suite("base", "quiet", "noisy", **limit), seconds=1.0)
    assert counts(blocks) == {"base": FEWEST, "quiet": FEWEST, "noisy": FEWEST}
    assert sampler.ending is SamplingEnd.REACHED
    (one,) = [found for found in sampler.standings() if found.cell.endswith("noisy")]
    assert one.precision.standing is Standing.CANNOT
    assert one.precision.note.startswith(f"given up after {FEWEST} blocks: about ")
    assert describe(sampler.standings()).endswith("; 1 cannot be")
    assert one.precision.note in {cell["precision"]["note"] for cell in sampler.record()["cells"]}
    _, roomy = drive(suite("base", "noisy", max_blocks=FEWEST + 2, precision=0.2), seconds=1.0)
    assert counts(roomy)["noisy"] == FEWEST + 2


def test_without_the_baseline_cells_are_sampled_for_their_own_values():
    _, blocks = drive(suite("base", "quiet"), failing=("base",))
    assert counts(blocks)["quiet"] == FEWEST


def test_a_further_block_s_order_follows_from_the_seed_alone():
    _, blocks = drive(suite("base", "quiet", "noisy"))
    _, other = drive(suite("base", "quiet", "noisy", seed=2))
    orders = [[planned.cell.backend for planned in block] for block in blocks[1:]]
    assert orders != [[planned.cell.backend for planned in block] for block in other[1:]]
    assert drive(suite("base", "quiet", "noisy"))[1] == blocks


class Extending(Silent):
    def __init__(self) -> None:
        super().__init__()
        self.standings: list[str] = []

    def extend(self, plan, standing) -> None:
        self.standings.append(standing)


def run(tmp_path: Path, given: Suite, stop_after: int | None = None):
    """A run, or one that goes on, through runner and store; stopped by a signal after some commands."""
    earlier = load_run(tmp_path) if (tmp_path / "manifest.json").exists() else None
    done = find_progress(earlier).done if earlier else frozenset()
    plan = {planned.identifier: planned for planned in make_design(given)}
    backends = {choice.name: FakeBackend() for choice in given.backends}
    commands, seen = 0, Counter()

    def answer_of(backend):
        def answer(command):
            nonlocal commands
            if command.argv[0] != "answer":
                return None
            commands += 1
            if commands == stop_after:
                raise KeyboardInterrupt
            name = backend.started[-1].removeprefix("tare-x-").partition("r")[0]
            seen[name] += 1
            cell = next(one for one in plan.values() if one.identifier[-8:] == name[-8:]).cell
            number = value(PlannedInstance(name, 0, 0, cell), seen[name] - 1)
            started = next(backend.clock)
            return Completed(command.argv, 0, None, f"value {number}\n".encode(), b"", started, started + 0.5)

        return answer

    for backend in backends.values():
        backend.answer = answer_of(backend)
    sampler, shown = Sampler(given, "base"), Extending()
    if earlier:
        sampler.catch_up(earlier.samples, earlier.events)
    with RunStore(tmp_path, MANIFEST) as store:
        runner = Runner(given, IMAGE, backends, store, shown, identity="x", unavailable={}, listener=sampler)
        left = [planned for planned in plan.values() if planned.identifier not in done]
        attempts = dict.fromkeys({event.instance.partition("~")[0] for event in earlier.events} if earlier else (), 1)
        outcome = runner.run(left, attempts)
        outcome = run_until_precise(sampler, runner, store, shown.extend, outcome=outcome, attempts=attempts, done=done)
    return outcome, load_run(tmp_path), shown


@pytest.mark.parametrize("stop_after", [9, 41])
def test_a_run_that_is_stopped_and_goes_on_measures_what_it_would_have_measured(tmp_path, stop_after):
    given = suite("base", "quiet", "noisy", max_blocks=14)
    _, whole, _ = run(tmp_path / "whole", given)
    outcome, part, _ = run(tmp_path / "part", given, stop_after)
    assert outcome.interrupted
    assert len(part.samples) < len(whole.samples)
    outcome, part, shown = run(tmp_path / "part", given)
    assert not outcome.interrupted

    def shape(loaded):
        return sorted({(one.block, one.backend) for one in loaded.samples})

    assert shape(part) == shape(whole)
    assert max(block for block, _ in shape(whole)) == 13
    assert shown.standings
    last = part.events[-1]
    assert (last.kind, last.details["code"], last.details["ending"]) == (EventKind.NOTE, "precision", "blocks")
    assert part.manifest.planned_instances == whole.manifest.planned_instances
