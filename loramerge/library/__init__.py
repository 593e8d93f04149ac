"""Named bases, folders of adapters, and the lookup of names."""
