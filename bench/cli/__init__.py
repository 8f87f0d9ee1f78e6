"""The command line. Only here is anything printed and any exit code chosen.

Importing this package imports typer and nothing heavier: each command imports what it needs when it runs.
"""

from tare.bench.cli.main import app, main

__all__ = ["app", "main"]
