"""The dialects, one file each, found by its name."""
