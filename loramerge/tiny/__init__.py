"""The tiny Stable Diffusion model: sprites it learns from, its making, its pictures and scores."""
