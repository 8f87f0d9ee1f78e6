"""`tare fleet run` where it cannot begin, and where it is interrupted: one message, and no folder without a fleet."""

import signal
import socket
import subprocess
import sys

import pytest

from tare.bench.errors import ExitCode

pytest.importorskip("distributed")
pytest.importorskip("asyncssh")

HOSTS = '[[host]]\nname = "a"\naddress = "127.0.0.1"\nstart = "hand"\n'


@pytest.fixture
def command(tmp_path):
    (tmp_path / "hosts.toml").write_text(HOSTS)
    base = [sys.executable, "-m", "tare", "fleet", "run", "quickstart", "--hosts", "hosts.toml", "-o", "fleet"]

    def start(*options):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        return subprocess.Popen([*base, *options], text=True, cwd=tmp_path, **pipes)

    return start


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "tare: cannot listen at tcp://127.0.0.1:{port}: Address already in use\n  what to do: name a free"),
        (("--keys", "nowhere"), "tare: the keys of the fleet cannot be read: nowhere/user/certificate.pem"),
        (("--wait", "soon"), "tare: --wait: "),
    ],
)
def test_a_fleet_that_cannot_begin_leaves_no_folder(command, tmp_path, options, message):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with command("--address", f"127.0.0.1:{port}", *options) as process:
            _, said = process.communicate(timeout=120)
    assert said.startswith(message.format(port=port)), said
    assert process.returncode in {ExitCode.ENVIRONMENT, ExitCode.BAD_INPUT}
    assert sorted(one.name for one in tmp_path.iterdir()) == ["hosts.toml"]


def test_ctrl_c_says_how_to_go_on(command, tmp_path):
    with command("--wait", "1h") as process:
        assert process.stdout.readline().startswith("waiting for 1 hosts at tcp://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=120)
    assert out.endswith("Runs go on on their hosts; go on with: tare fleet run --resume fleet\n")
    assert said == "tare: interrupted\n"
    assert process.returncode == ExitCode.INTERRUPTED
    assert (tmp_path / "fleet/fleet.json").exists()
