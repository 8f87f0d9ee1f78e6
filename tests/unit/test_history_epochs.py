"""Where conditions changed: bridged steps, confounded ones, and what a new image moved on every backend alike."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from tare.bench.cli.history import app
from tare.bench.errors import NotComparableError, RunDirectoryError
from tare.bench.history.bridges import FEWEST, bridged_suite, old_name, require_bridge
from tare.bench.history.epochs import EpochMark
from tare.bench.history.findings import Cause, State
from tare.bench.history.gate import Judgement, Verdict, find_run
from tare.bench.history.index import open_history
from tare.bench.history.nights import load_nights
from tare.bench.model import Fact
from tare.bench.records import Manifest
from tare.bench.store import load_manifest
from tare.reports import gate_words
from tests.nights import Night, Plan, write_night, write_nights
from tests.unit.test_history_gate import again

SUBJECTS = [f"work-{n}" for n in range(6)]
NEW = "sha256:bbbb"
MOVED = {(one, "native"): 0.04 for one in SUBJECTS}
BRIDGE = Plan(
    backends=("bare-metal", "native", "vm", "bare-metal-old", "native-old", "vm-old"), blocks=8, ratio_noise=0
)


def bridge(**conditions: Any) -> Night:
    """Old and new side by side; with the old image everything, bare metal too, has 0.06 (of logs) less."""
    old = {(one, "bare-metal-old"): 0.1 - 0.06 for one in SUBJECTS}
    old |= {(one, backend): -0.06 for one in SUBJECTS for backend in ("native-old", "vm-old")}
    return Night(image=NEW, ratios={**old, **MOVED}, bridges="20260115-nightly", **conditions)


def bridged(folder: Path, *, image: str = NEW) -> Judgement:
    write_nights(folder, [Night()] * 15 + [Night(image=image, ratios=MOVED)])
    write_night(folder, 16, bridge(), plan=BRIDGE, name="20260116-nightly-bridge")
    return again(folder)


def mark_of(judgement: Judgement) -> EpochMark:
    (mark,) = judgement.marks
    return mark


def test_a_bridge_gives_the_size_of_the_step_from_blocks_that_held_both(tmp_path: Path) -> None:
    mark = mark_of(bridged(tmp_path / "runs"))
    assert list(mark.fields) == ["image.digest"]
    assert mark.bridge == "20260116-nightly-bridge"
    assert len(mark.bridged) == 6 * 3
    history = open_history(tmp_path / "runs")
    nights = load_nights(history, find_run(history, None))
    steps = {"native": 1.0408, "vm": 1.0, "bare-metal": 1.0618}
    for series in nights.series:
        shift, moved = mark.bridged[series.identifier], steps[series.backend]
        assert shift.ratio == pytest.approx(moved, abs=0.03)
        assert 1 < shift.high / shift.low < 1.1
    native = [one.identifier for one in nights.series if one.backend == "native"]
    centre = float(np.mean([np.log(mark.bridged[name].ratio) for name in native]))
    assert centre == pytest.approx(0.04, abs=0.02)
    assert "Bridged by 20260116-nightly-bridge" in gate_words.mark_line(mark)
    assert "old and new in the same blocks" in gate_words.step_line(mark, native[0])


def test_a_bridge_is_no_night_and_its_steps_are_no_regression(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    judgement = bridged(folder)
    assert (judgement.n_nights, judgement.run.run) == (16, "20260116-nightly")
    assert judgement.verdict is Verdict.ENVIRONMENT
    with pytest.raises(RunDirectoryError, match="bridge to 20260115-nightly"):
        again(folder, run="20260116-nightly-bridge")
    assert open_history(folder).entries[-1].standing == "bridge to 20260115-nightly"


def test_without_a_bridge_and_with_one_between_other_epochs_a_step_is_confounded(tmp_path: Path) -> None:
    """The bridge measured another image than the nights have."""
    mark = mark_of(bridged(tmp_path / "runs", image="sha256:cccc"))
    assert not mark.bridged
    assert mark.steps
    assert all("confounded" in gate_words.step_line(mark, series) for series in mark.steps)


def test_the_pages_of_a_subject_have_its_steps(tmp_path: Path) -> None:
    bridged(tmp_path / "runs")
    site = tmp_path / "site"
    done = CliRunner().invoke(app, ["publish", str(tmp_path / "runs"), "--output", str(site)])
    assert done.exit_code == 0, done.output
    pages = [path.read_text("utf-8") for path in site.glob("subject-*.html")]
    assert pages
    for page in pages:
        assert "image.digest: sha256:aaaa → sha256:bbbb" in page
        assert page.count("old and new in the same blocks of 20260116-nightly-bridge") == 3


def moved_with(folder: Path, **conditions: Any) -> Judgement:
    levels = dict.fromkeys(SUBJECTS, -0.2)
    write_nights(folder, [Night()] * 15 + [Night(levels=levels, **conditions)] * 2)
    return again(folder)


def test_what_a_new_image_moved_on_every_backend_alike_is_the_workloads_or_the_images(tmp_path: Path) -> None:
    judgement = moved_with(tmp_path / "runs", image=NEW)
    (finding,) = judgement.findings
    assert (finding.cause, finding.worse, finding.since) == (Cause.WORKLOAD, True, "20260116-nightly")
    assert len(finding.subjects) >= 5  # the ratio of one may have moved by chance
    assert finding.shift.low < 0.819 < finding.shift.high
    assert not finding.is_regression
    assert "workload or image" in gate_words.title(finding)
    assert judgement.verdict is not Verdict.REGRESSION
    again_told = again(tmp_path / "runs")
    assert [one.state for one in again_told.findings] == [State.NEW]


def test_with_a_new_kernel_too_nobody_can_tell_whose_it_is(tmp_path: Path) -> None:
    assert not moved_with(tmp_path / "runs", image=NEW, kernel="6.18").findings
    assert not moved_with(tmp_path / "others", kernel="6.18").findings


def test_a_new_image_that_moved_ratios_too_is_not_called_the_workloads(tmp_path: Path) -> None:
    ratios = {(one, "native"): -0.1 for one in SUBJECTS}
    assert not moved_with(tmp_path / "runs", image=NEW, ratios=ratios).findings


def test_a_new_image_that_moved_nothing_is_told_as_a_mark_alone(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    write_nights(folder, [Night()] * 15 + [Night(image=NEW)] * 3)
    assert not again(folder).findings


# --- the suite of a bridge ----------------------------------------------------------------------------


def manifests(folder: Path, **conditions: Any) -> tuple[Manifest, Manifest]:
    """An old run, and a bridge to it as it would be on this host."""
    write_nights(folder, [Night()])
    old = load_manifest(folder / "20260101-nightly")
    write_night(folder, 1, bridge(**conditions), plan=BRIDGE)
    return old, load_manifest(folder / "20260102-nightly")


def test_the_suite_of_a_bridge_has_each_backend_twice(tmp_path: Path) -> None:
    old, _ = manifests(tmp_path / "runs")
    suite = {"suite": {"name": "nightly"}, "backend": [{"type": "bare-metal"}, {"type": "native"}], "experiment": []}
    made = bridged_suite(suite, ("bare-metal", "native"), old)
    assert [one.get("name") or one["type"] for one in made["backend"]] == [
        *("bare-metal", "native"),
        *("bare-metal-old", "native-old"),
    ]
    assert [one.get("image") for one in made["backend"]] == [None, None, "sha256:aaaa", "sha256:aaaa"]
    assert made["sampling"]["blocks"] == FEWEST
    assert made["report"]["baseline"] == "bare-metal"


def test_a_run_of_other_backends_is_refused(tmp_path: Path) -> None:
    old, _ = manifests(tmp_path / "runs")
    with pytest.raises(RunDirectoryError, match="no backends that the suite has too"):
        bridged_suite({"backend": [], "experiment": []}, ("gvisor",), old)


def test_a_bridge_needs_something_that_differs(tmp_path: Path) -> None:
    old, now = manifests(tmp_path / "runs")
    require_bridge(now, old)
    with pytest.raises(RunDirectoryError, match="nothing differs"):
        require_bridge(msgspec.structs.replace(now, image=old.image), old)


def test_what_cannot_be_had_any_more_is_named(tmp_path: Path) -> None:
    old, now = manifests(tmp_path / "runs", kernel="6.18")
    with pytest.raises(NotComparableError, match=r"host\.kernel: 6\.12 then, 6\.18 now") as refused:
        require_bridge(now, old)
    assert "confounded" in str(refused.value.remedy)


def test_another_version_of_an_engine_cannot_be_had(tmp_path: Path) -> None:
    old, now = manifests(tmp_path / "runs")
    engine = msgspec.structs.replace(now.backends[old_name("native")], facts={"runc": Fact("runc", "1.3")})
    changed = msgspec.structs.replace(now, backends={**now.backends, old_name("native"): engine})
    with pytest.raises(NotComparableError, match=r"backend\.native\.runc: not recorded then, 1\.3 now"):
        require_bridge(changed, old)
