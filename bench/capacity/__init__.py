"""What instances cost a host, from the ramps that ``density`` measured."""
