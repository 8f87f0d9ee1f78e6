"""``tare tune``: a host made quieter, and put back exactly as it was.

``settings`` knows what there is, ``journal`` keeps the originals on disk, ``tuning`` changes and restores.
"""

from tare.bench.tune.journal import JournalFile, boot_id, journal_file, tuned_facts
from tare.bench.tune.settings import SETTINGS, Setting
from tare.bench.tune.tuning import Applied, Restored, Tuning, Wish

__all__ = [
    "SETTINGS",
    "Applied",
    "JournalFile",
    "Restored",
    "Setting",
    "Tuning",
    "Wish",
    "boot_id",
    "journal_file",
    "tuned_facts",
]
