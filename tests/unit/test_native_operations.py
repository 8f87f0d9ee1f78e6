"""The order of an instance's set-up, without root: each step is a value that can be looked at."""

import pytest

from backends.native import operations as ops
from backends.native import order, privileges
from backends.native.plan import Plan, Settings, decode_plan, decode_settings


def make_plan(**changes):
    given = {
        "hostname": "box",
        "lower": "/img",
        "upper": "/w/i/upper",
        "work": "/w/i/work",
        "scratch": "/w/i/scratch",
        "cpus": (1, 2),
        "join_files": ("/cg/pids/x/tasks", "/cg/memory/x/tasks"),
        "kill_file": "",
    }
    return Plan(**{**given, **changes})


def make_settings(**changes):
    granted = tuple(number for _, number in privileges.DEFAULT_CAPABILITIES)
    given = {"style": "native", "root": "/w/root", "empty": "/w/empty", "capabilities": granted}
    return Settings(**{**given, **changes})


def native_steps(**changes):
    return order.instance_operations(make_settings(**changes), make_plan())


def index(steps, kind, **attributes):
    (found,) = [
        number
        for number, step in enumerate(steps)
        if type(step) is kind and all(getattr(step, name) == value for name, value in attributes.items())
    ]
    return found


def test_limits_hold_before_anything_else_happens():
    for style in order.STYLES:
        steps = native_steps(style=style)
        joins = [number for number, step in enumerate(steps) if type(step) is ops.JoinCgroup]
        assert max(joins) < min(number for number, step in enumerate(steps) if type(step) is ops.Mount)
        assert [steps[number].file for number in joins] == ["/cg/pids/x/tasks", "/cg/memory/x/tasks"]


def test_the_cgroup_namespace_is_made_in_the_cgroup():
    steps = native_steps()
    assert index(steps, ops.JoinCgroup, file="/cg/memory/x/tasks") < index(steps, ops.NewCgroupNamespace)


def test_the_root_is_whole_before_it_becomes_the_root():
    steps = native_steps()
    pivot = index(steps, ops.PivotRoot)
    assert steps[pivot].new_root == "/w/root"
    assert all(type(step) not in {ops.Mount, ops.Bind, ops.Mask, ops.MakeReadOnly} for step in steps[pivot:])
    assert index(steps, ops.Mount, target="/w/root") < index(steps, ops.Bind, target="/w/root/scratch") < pivot


@pytest.mark.parametrize("path", [*order.MASKED, *order.READ_ONLY])
def test_what_runtimes_hide_is_hidden_once_it_is_there(path):
    steps = native_steps()
    tree = "/w/root/" + path.split("/")[1]
    hides = [number for number, step in enumerate(steps) if getattr(step, "path", "") == "/w/root" + path]
    assert len(hides) == 1
    assert hides[0] > index(steps, ops.Mount, target=tree)


def test_capabilities_go_last_because_the_steps_need_them():
    assert type(native_steps()[-1]) is privileges.KeepCapabilities


def test_the_filter_goes_after_everything_it_forbids():
    filtered = native_steps(own_filter=b"12345678", inherited_filter=b"1234567887654321")
    assert type(filtered[-1]) is privileges.FilterSystemCalls
    assert type(filtered[-2]) is privileges.KeepCapabilities
    once = order.zygote_operations(make_settings(inherited_filter=b"1234567887654321"))
    assert [type(step) for step in once[-2:]] == [privileges.SetProcessFlag, privileges.FilterSystemCalls]
    assert not [step for step in order.zygote_operations(make_settings()) if type(step) is privileges.FilterSystemCalls]


def test_docker_default_capabilities():
    bits = sum(1 << number for _, number in privileges.DEFAULT_CAPABILITIES)
    assert bits == 0xA80425FB  # what /proc/self/status shows in a container of Docker's


def test_bare_metal_keeps_everything_but_mounts():
    steps = native_steps(style="bare-metal")
    kinds = {type(step) for step in steps}
    assert not kinds & {privileges.KeepCapabilities, ops.SetHostname, ops.RaiseLoopback, ops.Mask, ops.MakeReadOnly}
    assert [step.source for step in steps if type(step) is ops.Bind and step.recursive] == ["/proc", "/sys", "/dev"]
    assert order.clone_flags(make_settings(style="bare-metal")) == 0x20000  # CLONE_NEWNS alone


def test_every_step_tells_what_it_does():
    for style in order.STYLES:
        settings = make_settings(style=style)
        texts = [step.describe() for step in (*order.zygote_operations(settings), *native_steps(style=style))]
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


def test_settings_arrive_as_they_were_sent():
    chosen = make_settings(
        memory="/w/memory",
        memory_bytes=5,
        mount_points=("proc", "dev"),
        network="veth",
        inherited_filter=bytes(range(256)),
        own_filter=b"\0",
        uid_map=((0, 100000, 65536), (65536, 7, 1)),
        gid_map=((0, 200000, 65536),),
        folder="/w",
        image="/img",
        lower="lower",
        boot_offset_s=-3,
    )
    for settings in (make_settings(), chosen):
        assert vars(decode_settings(list(settings.encode()))) == vars(settings)
