"""What executes the guests of tests: KVM where it works, else TCG; ``TARE_TEST_ACCEL=kvm`` insists (``nox -s kvm``)."""

import os

ACCEL = os.environ.get("TARE_TEST_ACCEL", "auto")
