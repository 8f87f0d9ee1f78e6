"""Removes what killed runs left behind: for ``tare clean``, and first in every command that starts instances."""

from tare.bench.ledger import Cleaned, clean
from tare.bench.locations import ledger_directory
from tare.bench.registry import find_backends


def clean_up() -> Cleaned:
    """Clean this user's ledger; what a backend entered is given back to the backend installed under that name."""
    return clean(ledger_directory(), lambda name: find_backends().get(name).reclaim)
