"""The order of an instance's set-up, without root: each step is a value that can be looked at."""

import msgspec
import pytest

from tare.backends.cgroups.layout import Layout, Version
from tare.backends.cgroups.limits import limits_of
from tare.backends.native import identities, order, privileges
from tare.backends.native import operations as ops
from tare.backends.native.backend import find_thermal
from tare.backends.native.explain import explain_start
from tare.backends.native.options import NativeOptions
from tare.backends.native.plan import Plan, Settings, decode_plan, decode_settings
from tare.bench.model import Envelope, Image, InstanceSpec

ENVELOPE = Envelope((0,), 1024, 2048, 5)
NO_CGROUPS = Layout(Version.NONE, {}, None)


USER_NAMESPACE = {
    "folder": "/w",
    "root": "root",
    "empty": "empty",
    "image": "/img",
    "lower": "lower",
    "uid_map": ((0, 5000, 65536),),
    "gid_map": ((0, 6000, 65536),),
}


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


@pytest.mark.parametrize(
    ("changes", "root_first"), [({}, True), ({"memory": "/run/upper"}, False), (USER_NAMESPACE, False)]
)
def test_limits_hold_before_anything_else_happens_but_for_the_layers_on_disk(changes, root_first):
    for style in order.STYLES:
        steps = native_steps(style=style, **changes)
        joins = [number for number, step in enumerate(steps) if type(step) is ops.JoinCgroup]
        mounts = [number for number, step in enumerate(steps) if type(step) in (ops.Mount, ops.Bind)]
        assert [steps[number].file for number in joins] == ["/cg/pids/x/tasks", "/cg/memory/x/tasks"]
        before = [steps[number] for number in mounts if number < max(joins)]
        if not root_first:
            assert before == []
            continue
        overlay, scratch = before
        assert (overlay.kind, type(scratch)) == ("overlay", ops.Bind)
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


def test_each_cpus_thermal_counts_are_hidden(tmp_path):
    for name in ("cpu0", "cpu12", "cpufreq"):
        (tmp_path / "sys/devices/system/cpu" / name / "thermal_throttle").mkdir(parents=True)
    found = find_thermal(tmp_path)
    assert found == tuple(f"/sys/devices/system/cpu/{name}/thermal_throttle" for name in ("cpu0", "cpu12"))
    steps = native_steps(also_masked=found)
    assert index(steps, ops.Mask, path=f"/w/root{found[1]}") > index(steps, ops.Mount, target="/w/root/sys")


def test_capabilities_go_last_because_the_steps_need_them():
    assert type(native_steps()[-1]) is privileges.KeepCapabilities


def test_the_filter_goes_after_everything_it_forbids():
    filtered = native_steps(own_filter=b"12345678", inherited_filter=b"1234567887654321")
    assert type(filtered[-1]) is privileges.FilterSystemCalls
    assert type(filtered[-2]) is privileges.KeepCapabilities
    once = order.zygote_operations(make_settings(inherited_filter=b"1234567887654321"))
    assert [type(step) for step in once[-2:]] == [privileges.SetProcessFlag, privileges.FilterSystemCalls]
    assert not [step for step in order.zygote_operations(make_settings()) if type(step) is privileges.FilterSystemCalls]


def test_a_user_namespace_is_entered_after_the_hosts_files_and_before_any_mount():
    steps = native_steps(**USER_NAMESPACE)
    become = index(steps, identities.BecomeRoot)
    assert max(number for number, step in enumerate(steps) if type(step) is ops.JoinCgroup) < become
    assert become < min(
        number for number, step in enumerate(steps) if type(step) in {ops.Mount, ops.NewCgroupNamespace}
    )
    assert index(steps, privileges.SetProcessFlag, option=1) > become, "a change of identity takes PDEATHSIG away"
    assert index(steps, privileges.BoundCapabilities) == index(steps, privileges.KeepCapabilities) - 1
    (overlay,) = [step for step in steps if type(step) is ops.Mount and step.kind == "overlay"]
    assert overlay.data.endswith(",userxattr")
    once = order.zygote_operations(make_settings(**USER_NAMESPACE))
    assert index(once, ops.EnterFolder, path="/w") < index(once, identities.MountWithOwners, target="lower")
    assert not [step for step in once if type(step) is privileges.BoundCapabilities]
    assert order.clone_flags(make_settings(**USER_NAMESPACE)) & 0x10000000


def test_nothing_of_a_user_namespace_without_one():
    steps = [*order.zygote_operations(make_settings()), *native_steps()]
    kinds = {type(step) for step in steps}
    assert not kinds & {identities.BecomeRoot, identities.MountWithOwners, identities.OffsetBootClock, ops.EnterFolder}
    assert not order.clone_flags(make_settings()) & 0x10000080


def test_a_time_namespace_is_prepared_once_and_made_with_each_process():
    settings = make_settings(boot_offset_s=-5)
    assert index(order.zygote_operations(settings), identities.OffsetBootClock, offset_s=-5)
    assert order.clone_flags(settings) & 0x80
    assert order.namespaces(settings)[-1] == "time"


def test_an_upper_layer_in_memory_is_filled_before_the_overlay():
    steps = native_steps(memory="/w/memory", memory_bytes=1000, mount_points=("proc", "dev"))
    made = index(steps, ops.MakeFolders)
    assert index(steps, ops.Mount, target="/w/memory") < made < index(steps, ops.Mount, target="/w/root")
    assert set(steps[made].paths) >= {"/w/memory/upper/proc", "/w/memory/upper/scratch", "/w/memory/work"}


def test_the_hosts_network_stays_as_it_is():
    assert not [step for step in native_steps(network="host") if type(step) is ops.RaiseLoopback]
    assert not order.clone_flags(make_settings(network="host")) & 0x40000000


@pytest.mark.parametrize("chosen", [{}, USER_NAMESPACE, {"boot_offset_s": 0}, {"network": "host"}, {"memory": "/m"}])
def test_what_never_differs_may_be_made_beforehand(chosen):
    settings = make_settings(**chosen)
    afresh = order.instance_operations(settings, make_plan())
    prepared = order.instance_operations(settings, make_plan(), order.same_operations(settings))
    assert [step.describe() for step in afresh] == [step.describe() for step in prepared]


def test_a_start_is_told_in_full_without_root(tmp_path):
    spec = InstanceSpec("box", Image("", "", tmp_path, tmp_path, None, None, None, "", {}, 0), ENVELOPE)
    lines = explain_start(make_settings(), spec, tmp_path / "box", NO_CGROUPS, limits_of(ENVELOPE, None))
    described = [step.describe() for step in native_steps()]
    told = [line.split(". ", 1)[1] for line in lines if ". " in line]
    assert "clone3 a process with new namespaces mnt, pid, net, uts, ipc" in told
    assert any(line.startswith("limit it: cpus 0") and "memory_bytes 1024" in line for line in told)
    assert told[-len(described) + 10 :] == described[10:]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"boot_offset_s": 1}, "needs time_namespace"),
        ({"user_namespace": True, "network": "host"}, "cannot have network"),
        ({"seccomp": "off"}, "Invalid enum value"),
        ({"memory": "tmpfs"}, "unknown field"),
    ],
)
def test_options_that_cannot_be(chosen, message):
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(chosen, NativeOptions)


def test_identities_outside():
    assert identities.outside_id(7, ((0, 100, 5), (5, 900, 5))) == 902
    assert identities.describe_map(((0, 1000, 1), (1, 100000, 10))) == "0 as 1000, 1-10 as 100000-100009"
    with pytest.raises(ValueError, match="11 is not mapped"):
        identities.outside_id(11, ((0, 100, 5),))


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
        also_masked=("/sys/a", "/sys/b"),
    )
    for settings in (make_settings(), chosen):
        assert vars(decode_settings(list(settings.encode()))) == vars(settings)


def test_systemd_finds_mounted_what_it_may_not_mount_itself():
    steps = native_steps(system=True)
    assert not [step for step in native_steps() if type(step) is ops.Mount and step.kind == "cgroup2"]
    own = index(steps, ops.Mount, target="/w/root/sys/fs/cgroup")
    # In its own cgroup namespace it shows the container's own groups and no other.
    assert index(steps, ops.NewCgroupNamespace) < index(steps, ops.Mount, target="/w/root/sys") < own
    assert own < index(steps, ops.PivotRoot)
    assert index(steps, ops.Mount, target="/w/root/run") < index(steps, ops.Mount, target="/w/root/run/lock")
    assert decode_settings(list(make_settings(system=True).encode())).system
    assert not decode_settings(list(make_settings().encode())).system
