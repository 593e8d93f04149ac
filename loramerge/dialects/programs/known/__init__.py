"""The programs, one file each, found by its name."""
