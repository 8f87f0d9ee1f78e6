"""``python -m tare`` is ``tare``."""

from tare.bench.cli import main

main()
