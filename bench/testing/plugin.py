"""The options of the contract tests, for pytest's entry point: in the runs of others it adds them and nothing else."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare what to test."""
    group = parser.getgroup("tare", "contract of tare's backends (tare.bench.testing.contract)")
    group.addoption(
        "--tare-backend",
        action="append",
        default=[],
        metavar="NAME",
        help="Test this backend: a registered name, or MODULE:CLASS. Repeatable.",
    )
    group.addoption(
        "--tare-option", action="append", default=[], metavar="NAME=VALUE", help="An option of the backend. Repeatable."
    )
    group.addoption(
        "--tare-image", default="", metavar="IMAGE", help="Digest prefix or name; the newest image unless given."
    )
