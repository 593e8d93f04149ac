"""Texts as CLIP reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loramerge.errors import UsageError

__all__ = ["clip_tokens", "require_layer"]


def require_layer(encoder: Any, skip: int | None) -> None:
    """Refuse a layer that a text encoder does not have.

    Args:
        skip: counted from the last layer, which is 1; None: the usual one.

    Raises:
        UsageError: saying how many there are.
    """
    count = int(encoder.config.num_hidden_layers)
    if skip is not None and not 1 <= skip <= count:
        raise UsageError(
            "the text encoder has no such layer",
            expected=f"a CLIP skip of 1 to {count}",
            found=skip,
        )


def clip_tokens(tokenizer: Any, encoder: Any, texts: Sequence[str]) -> Any:
    """Return the tokens of texts, `(n, tokens)`, on the encoder's device; long texts are cut."""
    return tokenizer(
        list(texts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True,
        return_tensors="pt",
    ).input_ids.to(encoder.device)  # fmt: skip
