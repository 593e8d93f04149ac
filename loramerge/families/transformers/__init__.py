"""Families whose denoiser is a diffusion transformer, one file each, found by its name."""
