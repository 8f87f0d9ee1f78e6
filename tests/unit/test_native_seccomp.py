"""The system-call profile: what it holds, and that its two programs answer as it says.

The programs are run here as the kernel would, by a small interpreter of classic BPF, for every call number.
"""

import errno
import os
import struct

import pytest

from benchmarks.start_latency import oci_seccomp
from tare.backends.native import seccomp
from tare.backends.native.seccomp import CAPABILITIES, DEFAULT_CAPABILITIES
from tare.bench.errors import UnavailableError

GRANTED = tuple(number for _, number in DEFAULT_CAPABILITIES)
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
X86_64, I386 = 0xC000003E, 0x40000003
pyseccomp = pytest.importorskip("pyseccomp", exc_type=(ImportError, RuntimeError))
pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers below are x86_64's")


def run_program(program, number, *arguments, architecture=X86_64):
    """The answer of a classic BPF program to one system call (linux/filter.h)."""
    data = struct.pack("=iIQ6Q", number, architecture, 0, *(*arguments, *[0] * (6 - len(arguments))))
    instructions = list(struct.iter_unpack("=HBBI", program))
    accumulator = at = 0
    while True:
        code, yes, no, constant = instructions[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, constant)
        elif code == 0x06:
            return constant
        elif code == 0x54:
            accumulator &= constant
        elif code == 0x05:
            at += constant
        else:
            held = {0x15: accumulator == constant, 0x25: accumulator > constant, 0x35: accumulator >= constant}
            at += yes if {**held, 0x45: bool(accumulator & constant)}[code] else no


@pytest.fixture(scope="module")
def ask():
    filters = seccomp.compile_filters(GRANTED)

    def judge(call, *arguments, **which):
        number = call if isinstance(call, int) else pyseccomp.resolve_syscall(pyseccomp.Arch.X86_64, call)
        answers = [run_program(program, number, *arguments, **which) for program in filters[:2]]
        assert set(answers) <= {ALLOW, REFUSE | errno.EPERM, REFUSE | errno.ENOSYS}
        found = min(answers)  # the kernel takes the action with the smallest number
        return 0 if found == ALLOW else found & 0xFFFF

    return judge


def test_every_call_is_answered_as_the_profile_says(ask):
    conditional = {condition.call for condition in seccomp.conditions(GRANTED)}
    expected = {}
    for number in range(470):
        name = ""
        if number not in range(336, 424):
            try:
                name = pyseccomp.resolve_syscall(pyseccomp.Arch.X86_64, number).decode()
            except ValueError:
                name = ""
        if name in conditional:
            continue
        expected[number] = 0 if name in seccomp.allowed_calls(GRANTED) else errno.EPERM
    newest = max(number for number, answer in expected.items() if answer == 0)
    for number, answer in expected.items():
        if number == 435 or number > newest:
            assert ask(number) == errno.ENOSYS, number
        else:
            assert ask(number) == answer, number


@pytest.mark.parametrize(
    "call",
    [
        *("mount", "umount2", "pivot_root", "unshare", "setns", "keyctl", "add_key", "bpf", "perf_event_open"),
        *("io_uring_setup", "io_uring_enter", "userfaultfd", "kexec_load", "init_module", "reboot"),
        *(
            "settimeofday",
            "swapon",
            "ioperm",
            "get_mempolicy",
            "move_mount",
            "open_tree",
            "sethostname",
            "acct",
            "open_by_handle_at",
        ),
    ],
)
def test_what_docker_denies(ask, call):
    assert ask(call) == errno.EPERM


@pytest.mark.parametrize("call", ["read", "openat2", "io_submit", "ptrace", "chroot", "futex_waitv", "statx", "vfork"])
def test_what_docker_allows(ask, call):
    assert ask(call) == 0


def test_clone_makes_threads_and_processes_but_no_namespace(ask):
    assert ask("clone", 0x3D0F00) == 0
    assert ask("clone", 17) == 0
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert ask("clone", flag | 17) == errno.EPERM
    assert ask("clone3") == errno.ENOSYS


def test_conditions_on_arguments(ask):
    assert [ask("personality", value) for value in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF)] == [0] * 5
    assert ask("personality", 0x0040000) == errno.EPERM, "address space randomisation stays on"
    assert ask("socket", 2) == 0
    assert ask("socket", 40) == errno.EPERM, "AF_VSOCK"


def test_programs_of_the_other_architectures(ask):
    assert ask(3, architecture=I386) == 0  # read
    assert ask(21, architecture=I386) == errno.EPERM  # mount
    assert ask(120, 0x10000000, architecture=I386) == errno.EPERM  # clone, CLONE_NEWUSER
    assert ask(435, architecture=I386) == errno.ENOSYS
    assert ask(0x40000000) == 0  # x32's read
    assert ask(0x40000000 | 165) == errno.EPERM


def test_capabilities_bring_their_calls():
    assert "chroot" not in seccomp.allowed_calls(())
    assert "chroot" in seccomp.allowed_calls(GRANTED)
    administrator = (CAPABILITIES["SYS_ADMIN"],)
    assert {"mount", "clone", "clone3"} <= set(seccomp.allowed_calls(administrator))
    assert "clone" not in {condition.call for condition in seccomp.conditions(administrator)}


def test_the_oci_form_is_the_same_profile():
    profile = oci_seccomp(GRANTED)
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert profile["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    allowed, *special = profile["syscalls"]
    assert tuple(allowed["names"]) == seccomp.allowed_calls(GRANTED)
    assert {name for rule in special for name in rule["names"]} == {"personality", "socket", "clone", "clone3"}


def test_a_kernel_without_filters(tmp_path):
    found = seccomp.probe_seccomp(tmp_path / "nothing")
    assert not found.available
    assert "CONFIG_SECCOMP_FILTER" in found.reason
    assert "seccomp" in found.remedy


def test_no_library(monkeypatch, tmp_path):
    def refuse():
        raise UnavailableError("no libseccomp", remedy="install it")

    monkeypatch.setattr(seccomp, "_load_library", refuse)
    (tmp_path / "actions").write_text("kill_process errno allow\n")
    assert seccomp.probe_seccomp(tmp_path / "actions").remedy == "install it"
