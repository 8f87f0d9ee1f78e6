"""The container next to Docker's default profile, by an audit from inside: nowhere weaker, and the docs' table holds.

Docker's column is its documentation's and moby's public default profile (Engine 28): capabilities of
``profiles/seccomp`` and ``oci/caps/defaults``, masked and read-only paths of ``oci/defaults``.
"""

import json
import re
from pathlib import Path

import pytest

from tare.bench.ledger import Ledger
from tare.bench.model import Command
from tests.privileged import audit_container
from tests.privileged.host_kernel import spec, start_backend

pytestmark = [pytest.mark.root, pytest.mark.image]
DOCKER_CAPABILITIES = 0xA80425FB
DOCKER_DEVICES = {f"/dev/{name}" for name in ("full", "null", "random", "tty", "urandom", "zero")}
DOCKER_NAMESPACES = {"cgroup", "ipc", "mnt", "net", "pid", "uts"}
DOCS = Path(__file__).parents[2] / "docs/security.md"


@pytest.fixture(scope="module")
def found(image, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    script = Path(audit_container.__file__).read_bytes()
    with Ledger(folder / "ledger") as ledger, start_backend("native", image, folder / "work", ledger) as backend:  # noqa: SIM117
        with backend.start(spec("audit", image)) as container:
            done = container.execute(Command(("python3", "-"), stdin=script))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def own_namespaces(found) -> set[str]:
    """Those that are not this process's."""
    return {
        name for name, inside in found["namespaces"].items() if inside != str(Path(f"/proc/self/ns/{name}").readlink())
    }


def test_nowhere_weaker_than_docker(found):
    sets = {name: int(text, 16) for name, text in found["capabilities"].items()}
    assert all(held & ~DOCKER_CAPABILITIES == 0 for held in sets.values())
    assert sets["CapInh"] == sets["CapAmb"] == 0
    assert found["seccomp"] == "2"
    assert [name for name, answer in found["calls"].items() if answer not in {"EPERM", "ENOSYS"}] == []
    assert set(found["new_namespaces"].values()) | set(found["sockets"].values()) <= {"EPERM", "ENOSYS"}
    assert [path for path, seen in found["masked"].items() if seen == "visible"] == []
    assert [file for files in found["read_only"].values() for file in files] == []
    assert found["sys_writable"] == found["proc_writers"] == []
    assert own_namespaces(found) >= DOCKER_NAMESPACES
    assert set(found["devices"]) <= DOCKER_DEVICES
    assert set(found["made_devices"].values()) <= {"EACCES", "EPERM", "ENXIO"}


def test_the_docs_table_is_what_was_found(found):
    text = DOCS.read_text("utf-8").partition("### The container profile")[2].partition("\n## ")[0]
    rows = {
        cells[0]: cells[2]
        for line in text.splitlines()
        if len(cells := [c.strip() for c in line.split("|")[1:-1]]) == 3
    }
    sets = {name: int(text, 16) for name, text in found["capabilities"].items()}
    denied = sum(answer in {"EPERM", "ENOSYS"} for answer in found["calls"].values())
    opened = sum(how == "opened" for how in found["made_devices"].values())
    measured = {
        "capabilities of root": f"{sets['CapEff']:x} ({sets['CapEff'].bit_count()})",
        "inheritable and ambient capabilities": str((sets["CapInh"] | sets["CapAmb"]).bit_count()),
        "no_new_privs": {"1": "yes", "0": "no"}[found["no_new_privs"]],
        "seccomp filter": {"2": "yes", "0": "no"}[found["seccomp"]],
        f"of {len(found['calls'])} system calls that Docker denies, allowed": str(len(found["calls"]) - denied),
        "a new user or mount namespace": "refused" if "allowed" not in found["new_namespaces"].values() else "allowed",
        "AF_VSOCK sockets": "refused" if found["sockets"]["vsock"] != "allowed" else "allowed",
        f"of {len(found['masked'])} masked paths, visible": str(list(found["masked"].values()).count("visible")),
        f"files that open for writing below {len(found['read_only'])} read-only paths": str(
            sum(map(len, found["read_only"].values()))
        ),
        "files that open for writing below /sys": str(len(found["sys_writable"])),
        "files in /proc that can be written to": str(len(found["proc_writers"])),
        "namespaces of its own": ", ".join(sorted(own_namespaces(found) - {"pid_for_children", "time_for_children"})),
        "device nodes": str(len(found["devices"])),
        f"of {len(found['made_devices'])} kinds of device made inside, opened": str(opened),
    }
    assert {name: rows.get(name) for name in measured} == measured
    assert re.search(r"AppArmor.*\*\*no\*\*", text)
