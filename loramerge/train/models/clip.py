"""Texts as CLIP reads them: in windows of 75 tokens, each with a beginning and an end of its own.

The states of all windows stand one behind the other, between the beginning of the first and the end of
the last, as kohya's sd-scripts has them (`max_token_length`). With one window nothing is special.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from loramerge.errors import UsageError

__all__ = ["clip_states", "clip_tokens", "require_layer"]


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


def clip_tokens(tokenizer: Any, encoder: Any, texts: Sequence[str], windows: int = 1) -> Any:
    """Return the tokens of texts, `(n · windows, tokens)`, on the encoder's device; the rest is cut."""
    room = tokenizer.model_max_length - 2
    found = tokenizer(
        list(texts), padding="max_length", max_length=windows * room + 2, truncation=True,
        return_tensors="pt",
    ).input_ids.to(encoder.device)  # fmt: skip
    if windows == 1:
        return found
    end, padding = tokenizer.eos_token_id, tokenizer.pad_token_id
    inner = found[:, 1:-1].reshape(-1, room)
    first, last = (found[:, [n]].repeat_interleave(windows, dim=0) for n in (0, -1))
    # words up to the end of a window are followed by an end, an empty window begins with one
    goes_on = (inner[:, -1:] != end) & (inner[:, -1:] != padding)
    last = torch.where(goes_on, end, last)
    begins = torch.where(inner[:, :1] == padding, end, inner[:, :1])
    return torch.cat([first, begins, inner[:, 1:], last], dim=1)


def clip_states(states: Any, windows: int) -> Any:
    """Return states of windows, `(n · windows, tokens, width)`, as states of whole texts."""
    if windows == 1:
        return states
    each = states.unflatten(0, (-1, windows))
    return torch.cat([each[:, 0, :1], each[:, :, 1:-1].flatten(1, 2), each[:, -1, -1:]], dim=1)
