"""Texts as the denoiser reads them: states of the text encoders, encoded when asked or once for all."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from loramerge.errors import UsageError
from loramerge.events import Notify, Progress, ignore
from loramerge.train.dataset.cache import TensorCache
from loramerge.train.models.architecture import States
from loramerge.train.models.pipeline import Pipeline

__all__ = ["Texts", "count_tokens", "encode", "read_whole"]


def encode(pipeline: Pipeline, texts: Sequence[str], skip: int | None = None) -> States:
    """Return the states of texts; gradients flow where the encoders are trained.

    Args:
        skip: the layer of CLIP that is read, counted from the last, which is 1; None: the usual one.

    Raises:
        UsageError: if layers are to be skipped where none can be.
    """
    architecture = pipeline.architecture
    if skip and "clip_skip" in architecture.refused:
        raise UsageError(architecture.refused["clip_skip"], found=f"CLIP skip {skip}")
    return architecture.encode(pipeline, texts, skip)


def count_tokens(tokenizers: dict[str, Any], text: str) -> int:
    """Count the tokens of a text, its beginning and end included, before it is cut."""
    return max(
        (len(t(text, truncation=False, verbose=False).input_ids) for t in tokenizers.values()),
        default=0,
    )


def read_whole(pipeline: Pipeline, texts: Iterable[str]) -> int:
    """Let a pipeline read every text in as many windows as the longest needs, and return their number.

    More than its architecture reads are cut. All texts are read in the same number, because a batch has
    states of one length.
    """
    kind, found = pipeline.architecture, 1
    if kind.windows > 1:
        room = min(t.model_max_length for t in pipeline.tokenizers.values()) - 2
        longest = max((count_tokens(pipeline.tokenizers, text) for text in texts), default=2) - 2
        found = min(kind.windows, max(1, math.ceil(longest / room)))
    pipeline.windows = found
    return found


class Texts:
    """States of texts, from a cache if there is one.

    Args:
        cache: where states are kept by text and encoders; None encodes when asked.
        skip: see `encode`.
    """

    def __init__(
        self, pipeline: Pipeline, cache: TensorCache | None = None, skip: int | None = None
    ) -> None:
        self._pipeline, self._cache, self._skip = pipeline, cache, skip

    def _key(self, text: str) -> str:
        identity = self._pipeline.identity("encoders")
        # as older caches count: layers before the last that are not read
        skipped = None if self._skip in (None, 1) else self._skip - 1
        windows = self._pipeline.windows
        if windows > 1:
            identity += f" in {windows} windows"
        return hashlib.sha256(f"{identity}\0{skipped}\0{text}".encode()).hexdigest()[:32]

    @torch.no_grad()
    def prepare(self, texts: Iterable[str], notify: Notify = ignore) -> None:
        """Encode what is not in the cache yet, one by one, so that no text changes another's bits."""
        cache = self._cache
        assert cache is not None
        missing = [text for text in dict.fromkeys(texts) if self._key(text) not in cache]
        for index, text in enumerate(missing, 1):
            states = encode(self._pipeline, [text], self._skip)
            tensors = {"text": states.text[0].float()}
            if states.pooled is not None:
                tensors["pooled"] = states.pooled[0].float()
            cache.put(self._key(text), tensors)
            notify(Progress("encoding captions", index, len(missing), "captions"))
        cache.flush()

    def __call__(self, texts: Sequence[str]) -> States:
        """Return the states of texts."""
        if self._cache is None:
            return encode(self._pipeline, texts, self._skip)
        found = [self._cache.get(self._key(text)) for text in texts]
        pooled = torch.stack([f["pooled"] for f in found]) if "pooled" in found[0] else None
        return States(torch.stack([f["text"] for f in found]), pooled)

    def empty(self) -> States:
        """Return the states that guidance starts from."""
        states = self([""])
        if not self._pipeline.empty_is_zero:
            return states
        return States(*(None if part is None else torch.zeros_like(part) for part in states))
