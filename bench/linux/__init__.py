"""The kernel's files: each format is read in one place, below roots that tests inject."""
