"""The order of an instance's set-up, without root: each step is a value that can be looked at."""

import struct

import msgspec
import pytest

from tare.backends.cgroups.layout import Layout, Version
from tare.backends.cgroups.limits import limits_of
from tare.backends.native import identities, seccomp, setup
from tare.backends.native.backend import find_thermal
from tare.backends.native.options import NativeOptions
from tare.backends.native.runtime import find_missing
from tare.backends.native.setup import InstanceSetup, Setup, explain_start
from tare.backends.native.steps import Call, Kind, Step, encode, escape_option
from tare.bench.errors import BackendError
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


def make_instance(**changes):
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
    return InstanceSetup(**{**given, **changes})


def make_setup(**changes):
    granted = tuple(number for _, number in seccomp.DEFAULT_CAPABILITIES)
    given = {"style": "native", "root": "/w/root", "empty": "/w/empty", "capabilities": granted}
    return Setup(**{**given, **changes})


def native_steps(**changes):
    chosen = make_setup(**changes)
    return [*setup.first_steps(chosen, make_instance()), *setup.last_steps(chosen)]


def is_about(step, kind, path=None):
    """Whether a step makes such a call, on that path."""
    return any(call.kind is kind and path in {None, call.strings[:1] and call.strings[0]} for call in step.calls)


def indices(steps, kind, path=None):
    return [number for number, step in enumerate(steps) if is_about(step, kind, path)]


def index(steps, kind, path=None):
    (found,) = indices(steps, kind, path)
    return found


def joins(steps):
    return [number for number, step in enumerate(steps) if step.text.startswith("join the cgroup")]


@pytest.mark.parametrize(
    ("changes", "root_first"), [({}, True), ({"memory": "/run/upper"}, False), (USER_NAMESPACE, False)]
)
@pytest.mark.parametrize("style", setup.STYLES)
def test_limits_hold_before_anything_else_happens_but_for_the_layers_on_disk(style, changes, root_first):
    steps = native_steps(style=style, **changes)
    joined = joins(steps)
    assert [steps[number].calls[0].strings[0] for number in joined] == ["/cg/pids/x/tasks", "/cg/memory/x/tasks"]
    before = [number for kind in (Kind.MOUNT, Kind.BIND) for number in indices(steps, kind) if number < max(joined)]
    assert [steps[number].calls[0].kind for number in before] == ([Kind.MOUNT, Kind.BIND] if root_first else [])
    assert not before or steps[before[0]].text.startswith("mount overlay")


def test_the_cgroup_namespace_is_made_in_the_cgroup():
    steps = native_steps()
    assert max(joins(steps)) < index(steps, Kind.UNSHARE)


def test_the_root_is_whole_before_it_becomes_the_root():
    steps = native_steps()
    pivot = index(steps, Kind.PIVOT, "/w/root")
    for kind in (Kind.MOUNT, Kind.BIND, Kind.MASK, Kind.READ_ONLY, Kind.DEVICE):
        assert max(indices(steps, kind)) < pivot
    assert index(steps, Kind.MOUNT, "/w/root") < index(steps, Kind.BIND, "/w/root/scratch") < pivot


@pytest.mark.parametrize("path", [*setup.MASKED, *setup.READ_ONLY])
def test_what_runtimes_hide_is_hidden_once_it_is_there(path):
    steps = native_steps()
    tree = "/w/root/" + path.split("/")[1]
    kind = Kind.MASK if path in setup.MASKED else Kind.READ_ONLY
    assert index(steps, kind, "/w/root" + path) > index(steps, Kind.MOUNT, tree)


@pytest.mark.parametrize("style", setup.STYLES)
def test_where_the_image_has_links_nothing_is_mounted(style):
    steps = native_steps(style=style)
    attached = Kind.MOUNT if style == "native" else Kind.BIND
    for name in ("proc", "sys", "dev"):
        asked = index(steps, Kind.REQUIRE_FOLDER, f"/w/root/{name}")
        assert asked < min(indices(steps, attached, f"/w/root/{name}"))


def test_an_image_with_a_link_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "dev").mkdir()
    assert find_missing(tmp_path) == ("proc", "sys")
    for target in ("/etc", "nowhere"):
        (tmp_path / "proc").symlink_to(target)
        with pytest.raises(BackendError, match=f"/proc is a symbolic link to {target}"):
            find_missing(tmp_path)
        (tmp_path / "proc").unlink()
    (tmp_path / "sys").touch()
    with pytest.raises(BackendError, match="/sys is no folder"):
        find_missing(tmp_path)


@pytest.mark.parametrize("chosen", [USER_NAMESPACE, {"identities": "one"}, {"identities": "range"}])
def test_only_a_user_namespace_gets_the_hosts_devices(chosen):
    own, bound = native_steps(), native_steps(**chosen)
    dev = f"{make_setup(**chosen).root}/dev"
    assert len([call for step in own for call in step.calls if call.kind is Kind.DEVICE]) == 6
    assert not [
        call for step in own for call in step.calls if call.kind is Kind.BIND and call.strings[1] != "/w/i/scratch"
    ]
    assert not indices(bound, Kind.DEVICE)
    assert indices(bound, Kind.BIND, f"{dev}/null") or is_about(
        bound[indices(bound, Kind.MKNOD)[0]], Kind.BIND, f"{dev}/null"
    )
    masks = [call for step in own for call in step.calls if call.kind is Kind.MASK]
    assert {call.strings[1] for call in masks} == {"/w/root/dev/null"}, "the instance's own"


def test_no_other_device_can_be_opened_by_the_time_anything_else_is_made():
    steps = native_steps()
    mounted, forbidden = indices(steps, Kind.MOUNT, "/w/root/dev")
    assert forbidden == index(steps, Kind.DEVICE) + 1 == mounted + 2
    nodev = 4
    assert steps[forbidden].calls[0].numbers[0] & nodev


@pytest.mark.parametrize("style", setup.STYLES)
def test_the_zygotes_streams_and_its_proc_are_closed_before_anything_runs(style):
    steps = native_steps(style=style)
    dumpable = Call(Kind.PRCTL, (), (4, 0))
    closed = [number for number, step in enumerate(steps) if dumpable in step.calls]
    assert index(steps, Kind.PIVOT) < index(steps, Kind.STREAMS, "/dev/null") < closed[0]
    system = native_steps(system=True)
    assert max(number for number, step in enumerate(system) if dumpable in step.calls) < index(system, Kind.SYSTEM)
    assert index(system, Kind.STREAMS) < index(system, Kind.SYSTEM)


def test_nothing_in_the_layers_is_setuid_or_a_device():
    for changes in ({}, {"memory": "/m"}, USER_NAMESPACE):
        nosuid_nodev = 6
        calls = [call for step in native_steps(**changes) for call in step.calls]
        (overlay,) = [call for call in calls if call.kind is Kind.MOUNT and "overlay" in call.strings]
        (scratch,) = [call for call in calls if call.kind is Kind.BIND and call.strings[0].endswith("/scratch")]
        assert overlay.numbers[0] & nosuid_nodev == scratch.numbers[1] & nosuid_nodev == nosuid_nodev


def test_each_cpus_thermal_counts_are_hidden(tmp_path):
    for name in ("cpu0", "cpu12", "cpufreq"):
        (tmp_path / "sys/devices/system/cpu" / name / "thermal_throttle").mkdir(parents=True)
    found = find_thermal(tmp_path)
    assert found == tuple(f"/sys/devices/system/cpu/{name}/thermal_throttle" for name in ("cpu0", "cpu12"))
    steps = native_steps(also_masked=found)
    assert index(steps, Kind.MASK, f"/w/root{found[1]}") > index(steps, Kind.MOUNT, "/w/root/sys")


def kinds(steps):
    return [call.kind for step in steps for call in step.calls]


def test_capabilities_go_last_because_the_steps_need_them():
    assert kinds(native_steps())[-1] is Kind.KEEP_CAPABILITIES


def test_the_filter_goes_after_everything_it_forbids():
    filtered = native_steps(own_filter=b"12345678", inherited_filter=b"1234567887654321")
    assert kinds(filtered)[-2:] == [Kind.KEEP_CAPABILITIES, Kind.FILTER]
    once = setup.zygote_steps(make_setup(inherited_filter=b"1234567887654321"))
    assert kinds(once)[-2:] == [Kind.PRCTL, Kind.FILTER]
    assert Kind.FILTER not in kinds(setup.zygote_steps(make_setup()))


def test_a_user_namespace_is_entered_after_the_hosts_files_and_before_any_mount():
    steps = native_steps(**USER_NAMESPACE)
    become = index(steps, Kind.IDENTITY)
    assert max(joins(steps)) < become
    assert become < min(*indices(steps, Kind.MOUNT), *indices(steps, Kind.UNSHARE))
    assert steps[become + 1].text == "end with the zygote", "a change of identity takes PDEATHSIG away"
    assert index(steps, Kind.BOUND_CAPABILITIES) == index(steps, Kind.KEEP_CAPABILITIES) - 1
    (overlay,) = [step for step in steps if step.text.startswith("mount overlay")]
    assert overlay.calls[0].strings[3].endswith(",userxattr")
    once = setup.zygote_steps(make_setup(**USER_NAMESPACE))
    assert index(once, Kind.CHDIR, "/w") < index(once, Kind.MOUNT_WITH_OWNERS, "lower")
    assert Kind.BOUND_CAPABILITIES not in kinds(once)
    assert setup.clone_flags(make_setup(**USER_NAMESPACE)) & 0x10000000


def test_nothing_of_a_user_namespace_without_one():
    made = kinds([*setup.zygote_steps(make_setup()), *native_steps()])
    assert not {*made} & {Kind.IDENTITY, Kind.MOUNT_WITH_OWNERS, Kind.CHDIR}
    assert not setup.clone_flags(make_setup()) & 0x10000080


def test_a_time_namespace_is_prepared_once_and_made_with_each_process():
    chosen = make_setup(boot_offset_s=-5)
    offset = Call(Kind.WRITE, ("/proc/self/timens_offsets", "boottime -5 0"))
    assert offset in [call for step in setup.zygote_steps(chosen) for call in step.calls]
    assert setup.clone_flags(chosen) & 0x80
    assert setup.namespaces(chosen)[-1] == "time"


def test_an_upper_layer_in_memory_is_filled_before_the_overlay():
    steps = native_steps(memory="/w/memory", memory_bytes=1000, mount_points=("proc", "dev"))
    made = index(steps, Kind.MKDIR, "/w/memory/upper")
    assert index(steps, Kind.MOUNT, "/w/memory") < made < index(steps, Kind.MOUNT, "/w/root")
    paths = {call.strings[0] for call in steps[made].calls}
    assert paths >= {"/w/memory/upper/proc", "/w/memory/upper/scratch", "/w/memory/work"}


def test_the_hosts_network_stays_as_it_is():
    assert Kind.LOOPBACK not in kinds(native_steps(network="host"))
    assert not setup.clone_flags(make_setup(network="host")) & 0x40000000


def test_a_start_is_told_in_full_without_root(tmp_path):
    spec = InstanceSpec("box", Image("", "", tmp_path, tmp_path, None, None, None, "", {}, 0), ENVELOPE)
    lines = explain_start(make_setup(), spec, tmp_path / "box", NO_CGROUPS, limits_of(ENVELOPE, None))
    described = [step.text for step in native_steps()]
    told = [line.split(". ", 1)[1] for line in lines if ". " in line]
    assert "clone3 a process with new namespaces mnt, pid, net, uts, ipc" in told
    assert any(line.startswith("limit it: cpus 0") and "memory_bytes 1024" in line for line in told)
    assert told[-len(described) + 11 :] == described[11:]
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
    bits = sum(1 << number for _, number in seccomp.DEFAULT_CAPABILITIES)
    assert bits == 0xA80425FB  # what /proc/self/status shows in a container of Docker's


def test_bare_metal_keeps_everything_but_mounts():
    steps = native_steps(style="bare-metal")
    absent = {Kind.KEEP_CAPABILITIES, Kind.HOSTNAME, Kind.LOOPBACK, Kind.MASK, Kind.READ_ONLY}
    assert not {*kinds(steps)} & absent
    bound = [call.strings[1] for step in steps for call in step.calls if call.kind is Kind.BIND and call.numbers[0]]
    assert bound == ["/proc", "/sys", "/dev"]
    assert setup.clone_flags(make_setup(style="bare-metal")) == 0x20000  # CLONE_NEWNS alone


def test_every_step_tells_what_it_does():
    for style in setup.STYLES:
        texts = [step.text for step in (*setup.zygote_steps(make_setup(style=style)), *native_steps(style=style))]
        assert all(texts)
        assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    ("path", "option"), [("/plain", "/plain"), ("/a:b", "/a\\:b"), ("/a,b", "/a\\,b"), ("/a\\b", "/a\\\\b")]
)
def test_overlay_options_are_escaped(path, option):
    assert escape_option(path) == option


def test_steps_are_written_as_the_zygote_reads_them():
    steps = [Step("do \u00fc", (Call(Kind.MOUNT, ("/a", b"\0\1"), (7, 1 << 40), 2), Call(Kind.KEYRING)))]
    text = "do \u00fc".encode()
    first = struct.pack("=II3Q", Kind.MOUNT, 2, 7, 1 << 40, 0) + struct.pack("=I", 2) + b"/a\0"
    first += struct.pack("=I", 2) + b"\0\1\0" + 2 * (struct.pack("=I", 0) + b"\0")
    second = struct.pack("=II3Q", Kind.KEYRING, 0, 0, 0, 0) + 4 * (struct.pack("=I", 0) + b"\0")
    head = struct.pack("=II", 1, len(text)) + text + struct.pack("=I", 2)
    assert encode(steps) == head + first + second


def test_systemd_finds_mounted_what_it_may_not_mount_itself():
    steps = native_steps(system=True)
    assert not [step for step in native_steps() if "cgroup2" in step.text]
    own = index(steps, Kind.MOUNT, "/w/root/sys/fs/cgroup")
    # In its own cgroup namespace it shows the container's own groups and no other.
    assert index(steps, Kind.UNSHARE) < index(steps, Kind.MOUNT, "/w/root/sys") < own
    assert own < index(steps, Kind.PIVOT)
    assert index(steps, Kind.MOUNT, "/w/root/run") < index(steps, Kind.MOUNT, "/w/root/run/lock")


def test_the_layers_of_an_image_lie_above_it_and_below_the_writable_one():
    (root,) = (step for step in native_steps(above=("/w/l1", "/w/l,2")) if "lowerdir" in repr(step))
    assert r"lowerdir=/w/l1:/w/l\,2:/img,upperdir=" in root.calls[0].strings[-1]


@pytest.mark.parametrize("layers", [0, 33])
def test_the_number_of_layers_is_bounded(layers):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"layers": layers}, NativeOptions)
