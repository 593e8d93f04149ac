"""The dialects, one file each. A file's `DIALECT` is found by its name."""
