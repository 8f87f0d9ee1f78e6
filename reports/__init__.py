"""Reports of a run: frames, comparisons, charts, and their written forms."""
