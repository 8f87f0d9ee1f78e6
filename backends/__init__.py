"""The built-in backends: bare metal, native containers, libvirt guests."""
