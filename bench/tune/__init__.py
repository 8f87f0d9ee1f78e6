"""``tare tune``: a host made quieter, and put back exactly as it was.

``settings`` knows what there is, ``journal`` keeps the originals on disk, ``tuning`` changes and restores.
"""
