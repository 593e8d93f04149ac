"""Texts as T5 reads them; it stays frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["t5_states"]


@torch.no_grad()
def t5_states(tokenizer: Any, encoder: Any, texts: Sequence[str], length: int) -> Any:
    """Return the states of texts, `(n, length, width)`; padding is read like words, as in diffusers."""
    tokens = tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids.to(encoder.device)
    return encoder(tokens)[0]
