"""Texts as the UNet reads them: states of the text encoders, encoded when asked or once for all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from loramerge.errors import UsageError
from loramerge.events import Notify, Progress, ignore
from loramerge.train.cache import TensorCache
from loramerge.train.pipelines import Pipeline

__all__ = ["States", "Texts", "count_tokens", "encode"]


class States(NamedTuple):
    """States of texts, `(n, tokens, width)`, and SDXL's pooled ones, `(n, width)`."""

    text: Any
    pooled: Any = None


def encode(pipeline: Pipeline, texts: Sequence[str], skip: int | None = None) -> States:
    """Return the states of texts; gradients flow where the encoders are trained.

    SD1 and SD2 read the last layer (or, with `skip`, one so many before it, normed); SDXL the last
    but one of both encoders side by side, and the pooled text of the second.

    Raises:
        UsageError: if layers of SDXL's are to be skipped.
    """
    if skip and pipeline.kind == "sdxl":
        raise UsageError("SDXL always reads the last layer but one", found=f"CLIP skip {skip}")
    states, pooled = [], None
    for name, encoder in pipeline.encoders.items():
        tokenizer = pipeline.tokenizers[name]
        tokens = tokenizer(
            list(texts), padding="max_length", max_length=tokenizer.model_max_length,
            truncation=True, return_tensors="pt",
        ).input_ids.to(encoder.device)  # fmt: skip
        if pipeline.kind == "sdxl":
            found = encoder(tokens, output_hidden_states=True)
            states.append(found.hidden_states[-2])
            pooled = found[0] if name == "text_encoder_2" else None
        elif skip:
            found = encoder(tokens, output_hidden_states=True)
            inner = getattr(encoder, "text_model", encoder)
            states.append(inner.final_layer_norm(found.hidden_states[-(skip + 1)]))
        else:
            states.append(encoder(tokens)[0])
    return States(torch.cat(states, dim=-1), pooled)


def count_tokens(tokenizers: dict[str, Any], text: str) -> int:
    """Return how many tokens a text has, its beginning and end included, before it is cut."""
    return max((len(t(text, truncation=False).input_ids) for t in tokenizers.values()), default=0)


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
        return hashlib.sha256(f"{identity}\0{self._skip}\0{text}".encode()).hexdigest()[:32]

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
