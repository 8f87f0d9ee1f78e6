"""Workloads that go wrong, each in its way: their cells fail with the reason and the output, the others go on."""

import pytest

from tare.bench.errors import ExitCode
from tare.bench.records import EventKind
from tare.bench.store import load_run
from tests.faults.test_killed_runs import Run

pytestmark = [pytest.mark.root, pytest.mark.image]

PARTICULAR = {
    "missing": ('["no-such-tool"]', "no-such-tool", ""),
    "refused": ('["sh", "-c", "echo cannot do this >&2; exit 3"]', "3", "cannot do this"),
    "silent": ('["true"]', "", ""),
    "full": ('["sh", "-c", "head -c 9 /dev/zero | dd of=/dev/full"]', "", "No space left on device"),
    "hanging": ('["sleep", "600"]', "1 s", ""),
    "nan": ('["echo", "rate: nan"]', "", "rate: nan"),
    "negative": ('["echo", "rate: -5"]', "", "rate: -5"),
    "good": ('["echo", "rate: 5"]', None, ""),
}
"""Name: the command, what the failure says of it (None: it is measured), and what it shows of the output."""
WORKLOAD = """
[[workload]]
name = "{name}"
command = {command}
timeout = "1s"
[[workload.metric]]
name = "rate"
unit = "1/s"
direction = "higher"
description = "A rate."
regex = '^rate: (.+)$'
[[experiment]]
kind = "steady"
workload = "{name}"
"""
BACKENDS = '[[backend]]\ntype = "bare-metal"\n[[backend]]\ntype = "native"\n'


def test_each_failure_is_told_and_the_rest_goes_on(tmp_path, image):
    run = Run(tmp_path, image.directory.parent.parent, BACKENDS)
    text = run.suite.read_text().replace("blocks = 2", "blocks = 1")
    text += "".join(WORKLOAD.format(name=name, command=command) for name, (command, *_) in PARTICULAR.items())
    run.suite.write_text(text)
    done = run.finish("run", str(run.suite), "--output", str(run.output), "--no-report")
    assert done.returncode == ExitCode.FAILED_CELLS, done.stdout + done.stderr
    loaded = load_run(run.output)
    failed = {event.cell.split("/")[1]: event for event in loaded.events if event.kind is EventKind.INSTANCE_FAILED}
    for name, (_, said, shown) in PARTICULAR.items():
        if said is None:
            assert name not in failed
            continue
        event = failed[name]
        assert said in event.message, event
        assert shown in str(event.details), event
    measured = {(sample.workload, sample.backend) for sample in loaded.samples}
    assert {("good", "bare-metal"), ("good", "native"), ("sysbench-cpu", "native")} <= measured
    assert run.left_behind() == []
