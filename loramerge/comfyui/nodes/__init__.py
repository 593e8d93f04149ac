"""One file per node, which defines `NODE`."""
