"""``python -m bench`` is ``tare``."""

from bench.cli import main

main()
