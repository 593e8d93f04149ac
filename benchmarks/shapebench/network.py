"""The diffusion model: a small transformer over patches and words, and its flow from noise to picture.

Noise and picture lie on a straight way, `x_t = (1 − t) x₀ + t ε`. The network gives x₀, and the loss is
that of the velocity `(x_t − x₀) / t`. Source: flow matching (arXiv 2210.02747), with the prediction of
the clean picture (arXiv 2511.13720).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.shapebench.pictures import SIDE, WORDS, Picture, draw

__all__ = ["Network", "generate", "loss", "tensor_of", "words_of"]

_PATCH, _WIDTH, _HEADS, _BLOCKS = 6, 64, 4, 3
_MOST_WORDS = 5
_LEAST_TIME = 0.05  # t where the velocity is divided by it


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(_WIDTH, _WIDTH) for _ in range(4))

    def forward(self, x: Any) -> Any:
        def heads(values: Any) -> Any:
            return values.unflatten(2, (_HEADS, -1)).transpose(1, 2)

        q, k, v = heads(self.to_q(x)), heads(self.to_k(x)), heads(self.to_v(x))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(_WIDTH, 3 * _WIDTH), nn.Linear(3 * _WIDTH, _WIDTH)

    def forward(self, x: Any) -> Any:
        return self.down(functional.gelu(self.up(x)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(_WIDTH), Attention()
        self.norm2, self.ff = nn.LayerNorm(_WIDTH), FeedForward()

    def forward(self, x: Any) -> Any:
        x = x + self.attn(self.norm1(x))
        return x + self.ff(self.norm2(x))


class Network(nn.Module):
    """The denoiser, 0.2 million weights: picture, time and words in, clean picture out."""

    def __init__(self) -> None:
        super().__init__()
        patches = (SIDE // _PATCH) ** 2
        self.patch_in = nn.Linear(3 * _PATCH**2, _WIDTH)
        self.places = nn.Parameter(0.1 * torch.randn(patches, _WIDTH))
        self.words = nn.Embedding(len(WORDS) + 1, _WIDTH, padding_idx=0)
        self.time = nn.Sequential(nn.Linear(32, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, _WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(_BLOCKS))
        self.norm_out = nn.LayerNorm(_WIDTH)
        self.patch_out = nn.Linear(_WIDTH, 3 * _PATCH**2)

    def forward(self, x: Any, t: Any, words: Any) -> Any:
        """Return the clean pictures `(n, 3, 24, 24)` for noised ones, times `(n,)`, words `(n, 5)`."""
        patches = functional.pixel_unshuffle(x, _PATCH).flatten(2).transpose(1, 2)
        angles = t[:, None] * 2 ** torch.arange(0, 8, 0.5) * (math.pi / 8)
        when = self.time(torch.cat([angles.sin(), angles.cos()], 1))[:, None]
        tokens = torch.cat([self.patch_in(patches) + self.places, self.words(words)], 1) + when
        for block in self.blocks:
            tokens = block(tokens)
        out = self.patch_out(self.norm_out(tokens[:, : patches.shape[1]]))
        side = SIDE // _PATCH
        return functional.pixel_shuffle(out.transpose(1, 2).unflatten(2, (side, side)), _PATCH)


def tensor_of(pictures: Sequence[Picture]) -> Any:
    """Return drawings, `(n, 3, 24, 24)` in `[-1, 1]`."""
    return (
        torch.stack([torch.from_numpy(draw(one)) for one in pictures]).permute(0, 3, 1, 2) * 2 - 1
    )


def words_of(captions: Sequence[Sequence[str]]) -> Any:
    """Return the numbers of words, `(n, 5)`, filled with 0."""
    numbers = torch.zeros(len(captions), _MOST_WORDS, dtype=torch.long)
    for row, caption in zip(numbers, captions, strict=True):
        for place, word in enumerate(caption):
            row[place] = 1 + WORDS.index(word)
    return numbers


def loss(network: Network, clean: Any, words: Any, t: Any, noise: Any) -> Any:
    """Return the mean squared error of the velocity for each picture, `(n,)`."""
    when = t[:, None, None, None]
    found = network((1 - when) * clean + when * noise, t, words)
    return ((found - clean) ** 2).mean((1, 2, 3)) / t.clamp(min=_LEAST_TIME) ** 2


@torch.no_grad()
def generate(network: Network, words: Any, noise: Any, steps: int = 8) -> Any:
    """Return pictures `(n, 24, 24, 3)` in `[0, 1]`, by Euler's method, without guidance."""
    x = noise
    times = torch.linspace(1, 0, steps + 1)
    for now, following in pairwise(times):
        clean = network(x, now.repeat(len(x)), words)
        x = x + (following - now) * (x - clean) / now
    return ((x.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy()
