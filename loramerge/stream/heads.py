"""Queries and keys of Llama that an adapter has in llama.cpp's order of rows, which a base resolves.

An adapter in GGUF does not tell how many heads there are (`adapter.formats.gguf_reading`); a base does.
"""

from __future__ import annotations

from collections.abc import Mapping

from loramerge.adapter import Adapter, Delta, Site
from loramerge.adapter.opaque import in_order_of_llama_cpp
from loramerge.checkpoint import Checkpoint
from loramerge.checkpoint.generic import model_config
from loramerge.errors import ShapeError
from loramerge.families.llama_cpp import LANGUAGE_MODELS

__all__ = ["with_heads"]

_HEADS = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}


def with_heads(adapter: Adapter, base: Checkpoint) -> Adapter:
    """Return an adapter in the order of rows and with the names of transformers, as a base has them.

    An adapter that is not in llama.cpp's order stays as it is, and so does one for a base that tells no
    number of heads.

    Raises:
        ShapeError: if rows cannot be those of the base's heads.
    """
    if adapter.info.detection.candidates or base.candidates:
        return adapter
    config = model_config(base.files)
    kind = str(config.get("model_type"))
    model = LANGUAGE_MODELS.get(kind)
    if model is None:
        return adapter
    told = model.fields_of(kind, _count(config, "attn_q"), _count(config, "attn_k"))
    adapter = adapter.with_deltas(adapter.deltas, llama_cpp=told)
    if not any(in_order_of_llama_cpp(site.modules[0]) for site in adapter.deltas):
        return adapter
    deltas: dict[Site, Delta] = {}
    for site, delta in adapter.deltas.items():
        module = site.modules[0]
        if not in_order_of_llama_cpp(module):
            deltas[site] = delta
            continue
        head, stem = module.rsplit(".", 1)
        heads = _count(config, stem)
        rows = delta.shape[0]
        if not heads or rows % (2 * heads):
            raise ShapeError(
                "the rows of this module cannot be those of the base's heads",
                module=module,
                expected=f"a multiple of 2 × {heads} heads",
                found=f"{rows} rows",
                hint="give the base that the adapter was trained on",
            )
        name = f"model.layers.{head.removeprefix('blk.')}.{model.layer[stem]}"
        deltas[site._replace(modules=(name,))] = delta.rows(_together(rows, heads))
    return adapter.with_deltas(deltas)


def _count(config: Mapping[str, object], stem: str) -> int:
    """Return how many heads a configuration states; keys have as many as queries where it does not."""
    found = config.get(_HEADS[stem])
    found = config.get(_HEADS["attn_q"]) if found is None else found
    return found if isinstance(found, int) else 0


def _together(rows: int, heads: int) -> list[tuple[int, int]]:
    """Return the rows in which the halves of heads alternate, so that the halves are together."""
    head = rows // heads
    return [
        (row, row + 1)
        for first in range(0, rows, head)
        for half in range(2)
        for row in range(first + half, first + head, 2)
    ]
