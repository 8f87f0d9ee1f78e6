"""What a run says: computed once, and used by everything that prints, compares or plans."""
