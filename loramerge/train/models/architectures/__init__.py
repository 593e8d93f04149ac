"""The architectures of this package: one file each, which gives `ARCHITECTURE`."""
