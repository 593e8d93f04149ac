"""What walks checkpoints: `bake` adds adapters, `drift` compares two bases where an adapter acts."""
