"""Families whose denoiser is a diffusion transformer, one file each. A file's `FAMILY` is found by its name."""
