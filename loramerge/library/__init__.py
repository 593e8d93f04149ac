"""Named bases, folders of adapters, and how a name on the command line becomes a file."""
