"""tare: measures what isolation costs. One import name for the four folders beside this one, which are linked here."""
