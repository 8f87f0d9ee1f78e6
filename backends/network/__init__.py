"""Networks of tare's own: a namespace with a bridge, and ports of it for containers (veth) and guests (tap)."""
