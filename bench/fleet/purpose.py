"""What the hosts of a fleet are asked for."""

from enum import StrEnum


class Purpose(StrEnum):
    """To measure and come back with it, to come back with what is measured, or to stop."""

    RUN = "run"
    COLLECT = "collect"
    STOP = "stop"
