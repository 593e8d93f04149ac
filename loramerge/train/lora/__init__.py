"""The trainable part of a model: LoRA beside layers, or weights themselves; saved, loaded, audited."""
