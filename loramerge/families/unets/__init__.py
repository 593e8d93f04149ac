"""Families whose denoiser is a UNet, one file each, found by its name."""
