"""Random numbers that follow from the seed of a run and the number of a step, and nothing else."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

__all__ = ["generator_of", "seed_of"]


def seed_of(seed: int, what: str, number: int) -> int:
    """Return the seed of something that belongs to a number: all differ, and none needs the last."""
    digest = hashlib.blake2b(f"{seed}:{what}:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_of(seed: int, what: str, number: int) -> Any:
    """Return a generator on the CPU, so that a seed gives the same numbers on every device."""
    return torch.Generator().manual_seed(seed_of(seed, what, number))
