"""The order of an instance's set-up, without root: each step is a value that can be looked at."""

import pytest

from backends.native import operations as ops
from backends.native.plan import Plan, decode_plan


def make_plan(**changes):
    given = {
        "hostname": "box",
        "root": "/w/root",
        "empty": "/w/empty",
        "lower": "/img",
        "upper": "/w/i/upper",
        "work": "/w/i/work",
        "scratch": "/w/i/scratch",
        "cpus": (1, 2),
        "join_files": ("/cg/pids/x/tasks", "/cg/memory/x/tasks"),
        "kill_file": "",
    }
    return Plan(**{**given, **changes})


def index(steps, kind, **attributes):
    (found,) = [
        number
        for number, step in enumerate(steps)
        if type(step) is kind and all(getattr(step, name) == value for name, value in attributes.items())
    ]
    return found


def test_limits_hold_before_anything_else_happens():
    for style in ops.STYLES:
        steps = ops.STYLES[style][0](make_plan())
        joins = [number for number, step in enumerate(steps) if type(step) is ops.JoinCgroup]
        assert max(joins) < min(number for number, step in enumerate(steps) if type(step) is ops.Mount)
        assert [steps[number].file for number in joins] == ["/cg/pids/x/tasks", "/cg/memory/x/tasks"]


def test_the_cgroup_namespace_is_made_in_the_cgroup():
    steps = ops.native_operations(make_plan())
    assert index(steps, ops.JoinCgroup, file="/cg/memory/x/tasks") < index(steps, ops.NewCgroupNamespace)


def test_the_root_is_whole_before_it_becomes_the_root():
    steps = ops.native_operations(make_plan())
    pivot = index(steps, ops.PivotRoot)
    assert steps[pivot].new_root == "/w/root"
    assert all(type(step) not in {ops.Mount, ops.Bind, ops.Mask, ops.MakeReadOnly} for step in steps[pivot:])
    assert index(steps, ops.Mount, target="/w/root") < index(steps, ops.Bind, target="/w/root/scratch") < pivot


@pytest.mark.parametrize("path", [*ops.MASKED, *ops.READ_ONLY])
def test_what_runtimes_hide_is_hidden_once_it_is_there(path):
    steps = ops.native_operations(make_plan())
    tree = "/w/root/" + path.split("/")[1]
    hides = [number for number, step in enumerate(steps) if getattr(step, "path", "") == "/w/root" + path]
    assert len(hides) == 1
    assert hides[0] > index(steps, ops.Mount, target=tree)


def test_capabilities_go_last_because_the_steps_need_them():
    assert type(ops.native_operations(make_plan())[-1]) is ops.KeepCapabilities


def test_docker_default_capabilities():
    bits = sum(1 << number for _, number in ops.DEFAULT_CAPABILITIES)
    assert bits == 0xA80425FB  # what /proc/self/status shows in a container of Docker's


def test_bare_metal_keeps_everything_but_mounts():
    steps = ops.bare_metal_operations(make_plan())
    kinds = {type(step) for step in steps}
    assert not kinds & {ops.KeepCapabilities, ops.SetHostname, ops.RaiseLoopback, ops.Mask, ops.MakeReadOnly}
    assert [step.source for step in steps if type(step) is ops.Bind and step.recursive] == ["/proc", "/sys", "/dev"]
    assert ops.BARE_METAL_FLAGS == 0x20000  # CLONE_NEWNS alone


def test_every_step_tells_what_it_does():
    for style in ops.STYLES:
        texts = [step.describe() for step in (*ops.zygote_operations(style, "/e"), *ops.STYLES[style][0](make_plan()))]
        assert all(texts)
        assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    ("path", "option"), [("/plain", "/plain"), ("/a:b", "/a\\:b"), ("/a,b", "/a\\,b"), ("/a\\b", "/a\\\\b")]
)
def test_overlay_options_are_escaped(path, option):
    assert ops.escape_option(path) == option


def test_a_plan_arrives_as_it_was_sent():
    plan = make_plan(hostname="ünï", kill_file="/cg/kill", cpus=(), join_files=())
    assert vars(decode_plan(list(plan.encode()))) == vars(plan)
    assert vars(decode_plan(list(make_plan().encode()))) == vars(make_plan())
