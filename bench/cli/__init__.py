"""The command line. Only here is anything printed and any exit code chosen.

Importing this package imports nothing; each command imports what it needs when it runs.
"""


def main() -> None:
    """Entry point of the ``tare`` program. Signals are noted before anything is imported that takes time."""
    from tare.bench.interrupts import heed

    with heed():
        from tare.bench.cli.main import run_app

        run_app()
