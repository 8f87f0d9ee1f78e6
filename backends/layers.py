"""Layers of an image: how deep below the writable layer of a root its files lie, as images of many layers have them.

tare's own root file system is one layer. ``layers = N`` puts N - 1 empty ones above it, so that a look-up passes
through all of them and a first write copies from the lowest: the content is the same, the difference is the layers'.
"""

from pathlib import Path
from typing import Annotated

from msgspec import Meta

MOST_LAYERS = 32
"""Their paths have to fit into the options of one mount, which are a page long."""
Layers = Annotated[int, Meta(ge=1, le=MOST_LAYERS)]


def names_of_layers(layers: int) -> tuple[str, ...]:
    """The folders of the empty layers, the uppermost first."""
    return tuple(f"l{number}" for number in range(1, layers))


def make_layers(folder: Path, layers: int) -> None:
    """Make the empty layers in ``folder``, once for all instances. Raises OSError."""
    for name in names_of_layers(layers):
        (folder / name).mkdir(mode=0o755)
