"""Suffixes for the tensors of kinds, which the kinds provide to the dialects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from loramerge.records import record

__all__ = ["NO_WORDS", "Words"]


@record(eq=False)
class Words:
    """Suffixes of kinds, beside a dialect's own.

    Args:
        suffixes: container → role → accepted suffixes, separator included; the first is written.
    """

    suffixes: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)


NO_WORDS = Words()
