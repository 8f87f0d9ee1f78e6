"""A container runtime in Python: namespaces, cgroups, overlay root, a slim zygote that starts it all."""
