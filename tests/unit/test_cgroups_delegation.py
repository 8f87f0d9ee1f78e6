"""Which v2 cgroup an instance's is made below, on copies of trees of every kind."""

import pytest

from tare.backends.cgroups import layout as delegation
from tare.backends.cgroups.layout import Layout, Version, find_handed_on, find_parent, prepare_parent

ALL = "cpu cpuset io memory pids"


def group(folder, *, controllers=ALL, handed_on="", procs="", kind="domain"):
    folder.mkdir(parents=True, exist_ok=True)
    files = {"cgroup.controllers": controllers, "cgroup.subtree_control": handed_on, "cgroup.procs": procs}
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")
    if kind:
        (folder / "cgroup.type").write_text(f"{kind}\n")
    return folder


@pytest.fixture
def kernel(monkeypatch):
    """What is written, done as the kernel does it: subtree_control keeps what it had."""
    written = []

    def write(path, text):
        if (refused := "+cpu") == text and "realtime" in str(path):
            raise OSError(22, f"Invalid argument: {refused}")
        written.append((path.parent.name, text))
        path.write_text(f"{path.read_text().strip()} {text[1:]}\n")

    monkeypatch.setattr(delegation, "write_text", write)
    return written


def session(root, **own):
    """A login session as systemd makes it: processes only in the leaf."""
    group(root, handed_on="memory pids", procs="1", kind="")
    group(root / "user.slice", controllers="memory pids", handed_on="memory pids")
    return group(root / "user.slice/session.scope", controllers="memory pids", **{"procs": "100", **own})


def test_a_leaf_with_processes_is_passed_over_and_left_alone(tmp_path, kernel):
    own = session(tmp_path / "top")
    slice_ = own.parent
    assert find_parent(own, tmp_path / "top") == (slice_, frozenset(ALL.split()))
    assert kernel == [], "finding changes nothing"
    assert prepare_parent(own, tmp_path / "top") == slice_
    assert kernel == [(folder, f"+{name}") for folder in ("top", "user.slice") for name in ("cpu", "cpuset", "io")]
    assert find_handed_on(own) == frozenset()
    kernel.clear()
    assert prepare_parent(own, tmp_path / "top") == slice_
    assert kernel == []


def test_in_the_root_group(tmp_path, kernel):
    top = group(tmp_path / "top", procs="1\n100", kind="")
    assert prepare_parent(top, top) == top
    assert find_handed_on(top) == frozenset(ALL.split())


def test_in_a_container_whose_only_group_has_processes_nothing_can_be_had(tmp_path, kernel):
    top = group(tmp_path / "top", procs="1\n100")
    layout = Layout(Version.V2, {}, top, top)
    assert prepare_parent(top, top) == top
    assert kernel == []
    assert layout.available() == frozenset()
    assert [confound.code for confound in layout.confounds("x")] == [
        f"no-{name}-controller" for name in ("cpu", "cpuset", "memory", "pids", "io")
    ]


def test_a_group_above_with_processes_hands_on_what_it_did_before(tmp_path, kernel):
    top = group(tmp_path / "top", kind="")
    group(top / "job", procs="7", handed_on="cpu pids")
    own = group(top / "job/step", procs="100")
    assert find_parent(own, top) == (top, frozenset(ALL.split()))


def test_threaded_groups_take_no_instance(tmp_path, kernel):
    top = group(tmp_path / "top", kind="")
    own = group(top / "job", kind="domain threaded", handed_on=ALL)
    assert find_parent(own, top)[0] == top


def test_what_the_kernel_refuses_is_missing_afterwards(tmp_path, kernel):
    top = group(tmp_path / "realtime", kind="")
    layout = Layout(Version.V2, {}, top, top)
    assert layout.missing() == ()
    prepare_parent(top, top)
    assert layout.missing(layout.granted()) == ("cpu",)


def test_without_files_our_own_group_is_the_parent(tmp_path):
    assert find_parent(tmp_path / "top/own", tmp_path / "top") == (tmp_path / "top/own", frozenset())
    assert find_handed_on(tmp_path) == frozenset()
