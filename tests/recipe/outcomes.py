"""A recipe of four steps, and what a run did and wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHAIN = """
version: 1
vars: {w: 0.5, r: 3}
inputs: {a: a.safetensors, b: b.safetensors, base: base.safetensors}
steps:
  blend: {mix: {adapters: ["a:${w}", b]}, save: blend.safetensors}
  small: {resize: {adapter: blend, rank: "${r}"}, save: small.safetensors}
  other: {resize: {adapter: b, rank: 2}, save: other.safetensors}
  model: {bake: {base: base, adapters: [small]}, save: model.safetensors}
"""


def statuses(result: Any) -> dict[str, str]:
    return {name: outcome.status for name, outcome in result.outcomes.items()}


def done(result: Any) -> set[str]:
    return {name for name, status in statuses(result).items() if status == "done"}


def files(folder: Path) -> dict[str, bytes]:
    """The outputs in a folder, as bytes."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*.safetensors"))
    }
