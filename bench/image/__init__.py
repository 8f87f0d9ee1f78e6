"""Images: the one root file system, kernel and disk from which every backend runs."""

from tare.bench.image.recipe import Recipe
from tare.bench.image.store import ImageStore, Listed
from tare.bench.image.tar import ArchiveLimits

__all__ = ["ArchiveLimits", "ImageStore", "Listed", "Recipe"]
