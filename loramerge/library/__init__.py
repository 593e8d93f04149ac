"""Named bases, folders of adapters, the lookup of names, and the index of files."""
