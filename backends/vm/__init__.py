"""Guests through libvirt: domain XML, connection, guest agent, proof of acceleration."""
