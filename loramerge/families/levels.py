"""Levels in the names of text encoders that some versions of transformers have, and others have not.

Files come in both spellings, and both are accepted everywhere.
"""

from __future__ import annotations

__all__ = ["LEVELS", "without_language_model", "without_text_model"]

_CLIP = "text_model."
_QWEN_VL = (("model.language_model.", "model."), ("model.visual.", "visual."))
LEVELS = (_CLIP, *(head for head, _ in _QWEN_VL))  # beginnings of paths that have such a level


def without_text_model(path: str) -> str:
    """Return the spelling of CLIP in transformers 5, without the `text_model.` level."""
    return path[len(_CLIP) :] if path.startswith(_CLIP) else path


def without_language_model(path: str) -> str:
    """Return the spelling of Qwen2.5-VL before transformers 4.52, whose halves lay a level higher."""
    for head, older in _QWEN_VL:
        if path.startswith(head):
            return older + path[len(head) :]
    return path
