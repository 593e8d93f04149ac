"""Qwen3, a language model that serves as a text encoder, with transformers' names.

A model with a head (`Qwen3ForCausalLM`) keeps the same layers in `model`, as ComfyUI's files do.
Both spellings are accepted.
"""

from __future__ import annotations

from collections.abc import Iterator

from loramerge.families.spec import Module, Parameter, Slot, Spelling, plain_slot

__all__ = ["qwen3_modules", "qwen3_spellings"]

_WITH_HEAD = "model."


def qwen3_modules(
    width: int = 1024,
    layers: int = 28,
    hidden: int = 3072,
    heads: tuple[int, int] = (16, 8),
    vocabulary: int = 151936,
) -> Iterator[Module]:
    """Yield every layer with its path in `Qwen3Model` and full-width shape; the sizes are those of 0.6B.

    Args:
        width, layers, hidden: hidden size, number of blocks, and width of the feed-forward.
        heads: of queries, and of keys and values; each is 128 wide.
    """
    w, head = width, 128
    queries, keys = (number * head for number in heads)
    yield Module("embed_tokens", "embedding", (vocabulary, w), False)
    for i in range(layers):
        layer = f"layers.{i}"
        for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            yield Module(f"{layer}.self_attn.{name}", "linear", (rows, w), False)
        yield Module(f"{layer}.self_attn.o_proj", "linear", (w, queries), False)
        yield Module(f"{layer}.self_attn.q_norm", "norm", (head,), False)
        yield Module(f"{layer}.self_attn.k_norm", "norm", (head,), False)
        yield Module(f"{layer}.mlp.gate_proj", "linear", (hidden, w), False)
        yield Module(f"{layer}.mlp.up_proj", "linear", (hidden, w), False)
        yield Module(f"{layer}.mlp.down_proj", "linear", (w, hidden), False)
        yield Module(f"{layer}.input_layernorm", "norm", (w,), False)
        yield Module(f"{layer}.post_attention_layernorm", "norm", (w,), False)
    yield Module("norm", "norm", (w,), False)


def _with_head(module: Module, parameter: Parameter) -> Slot:
    return Slot(f"{_WITH_HEAD}{module.path}.{parameter}")


def qwen3_spellings(prefix: str) -> tuple[Spelling, ...]:
    """Return the spellings of the model; `prefix` is the one in a single file."""
    return (
        Spelling("comfyui", prefix, _with_head),
        Spelling("diffusers", "", plain_slot),
        Spelling("diffusers", "", _with_head),
    )
