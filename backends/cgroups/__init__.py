"""Control groups: one small interface, one class for each version, for every backend that runs on the host's kernel."""
