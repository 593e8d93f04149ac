"""Families whose denoiser is a UNet, one file each. A file's `FAMILY` is found by its name."""
