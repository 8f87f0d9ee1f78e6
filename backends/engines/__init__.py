"""Backends that drive the engines of others: runc, crun, bubblewrap and their like, over one core (``core.Engine``)."""
