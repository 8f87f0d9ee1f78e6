"""The files of one side of TLS."""

from pathlib import Path

import msgspec


class Credentials(msgspec.Struct, frozen=True):
    """Files of one side of TLS: whom it trusts, and who it is."""

    authority: Path
    certificate: Path
    key: Path
