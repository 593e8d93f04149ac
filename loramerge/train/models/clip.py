"""Texts as CLIP reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["clip_tokens"]


def clip_tokens(tokenizer: Any, encoder: Any, texts: Sequence[str]) -> Any:
    """Return the tokens of texts, `(n, tokens)`, on the encoder's device; long texts are cut."""
    return tokenizer(
        list(texts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True,
        return_tensors="pt",
    ).input_ids.to(encoder.device)  # fmt: skip
