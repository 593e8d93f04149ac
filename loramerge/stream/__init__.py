"""Walks over checkpoints: `bake` adds adapters, `drift` compares bases where an adapter acts."""
