"""What `tare --help` imports: nothing of what only a command needs."""

import subprocess
import sys

import pytest

CODE = """
import sys
before = set(sys.modules)
sys.argv = ["tare", *sys.argv[1:]]
from tare.bench.cli import main
try:
    main()
except SystemExit:
    pass
print(*sorted(set(sys.modules) - before), file=sys.stderr)
"""
NEEDLESS = {"altair", "jinja2", "libvirt", "markdown_it", "msgspec", "numpy", "pandas", "platformdirs", "pyarrow"}
NEEDLESS |= {"pygments", "rich", "scipy", "vl_convert"}
OWN = {"tare.bench", "tare.bench.cli", "tare.bench.configuration", "tare.bench.errors", "tare.bench.interrupts"}
OWN |= {"tare.bench.readable"}


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["image", "--help"]])
def test_help_imports_typer_and_what_it_prints(arguments):
    ended = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout.startswith("Usage: ")
    modules = ended.stderr.split()
    assert not NEEDLESS & {name.partition(".")[0] for name in modules}
    commands = {
        f"tare.bench.cli.{name}"
        for name in (
            "main",
            "completion",
            "fleet",
            "fleet_report",
            "gate",
            "guard",
            "history",
            "image",
            "streams",
            "suite",
            "tune",
        )
    }
    assert {name for name in modules if name.startswith("tare.")} == OWN | commands
