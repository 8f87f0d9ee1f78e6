"""Estimates, intervals and verdicts for two-level data: iterations in instances in blocks.

The method in one paragraph. Each instance is reduced to the median of its iterations, each block to the median of its
instances, and a backend is compared with the baseline block by block: one log ratio a block. What the host did to a
block (drift, other load) falls on both sides of a ratio and cancels. The estimate is the centre of these log ratios,
and the interval comes from how they differ from block to block, which holds the variation of both levels at once
(Kalibera and Jones 2013: the top level decides). ``comparisons`` says which interval and why, and what follows,
``warmup`` which iterations do not count, ``noise`` what the host could have shown at all, ``precision`` how far a
cell is from the precision asked for.

Importing this package imports numpy; scipy is imported where it is used.
"""
