"""What walks checkpoints: `bake` adds adapters, `drift` compares bases where an adapter acts."""
