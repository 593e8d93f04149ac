"""Adapters in GGUF, as llama.cpp loads them, read as the PEFT adapters of the same change.

A tensor of the base, `blk.0.attn_v.weight`, has the factors `blk.0.attn_v.weight.lora_a (r, in)` and
`.lora_b (out, r)`; those of `token_embd.weight` are `(vocabulary, r)` and `(width, r)`. One alpha is for
all, and 0 means that the factors are taken as they are. The rows of Llama's queries and keys lie in
llama.cpp's order. The file need not tell how many heads there are; then these modules keep llama.cpp's
names until a base tells it.

Source: `convert_lora_to_gguf.py`, `llama-adapter.cpp` and `llama-adapter.h` of llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loramerge.adapter.formats.source import AdapterSource
from loramerge.errors import FormatError, LoramergeError
from loramerge.families.llama_cpp import ARCHITECTURE, LANGUAGE_MODELS, LanguageModel
from loramerge.files.forms import is_gguf
from loramerge.files.gguf import GgufFile
from loramerge.files.tensors import Tensor
from loramerge.files.views import Derived, transposed

__all__ = ["is_gguf_adapter", "open_gguf"]

_TYPE = "general.type"
_KIND, _ALPHA = "adapter.type", "adapter.lora.alpha"
_TOKENS = "adapter.alora.invocation_tokens"
# fields that say how the tensors are stored, which the tensors that are read no longer are
_OF_THE_FILE = frozenset(
    {_TYPE, _KIND, _ALPHA, "general.alignment", "general.file_type", "general.quantization_version"}
)
_HEAD = "base_model.model."
_FACTOR = r"^(?P<stem>.+)\.weight\.lora_(?P<which>[ab])$"
_ENDS = {"a": "lora_A.weight", "b": "lora_B.weight"}
_TABLE_ENDS = {"a": "lora_embedding_A", "b": "lora_embedding_B"}
_WORDS = "token_embd"
_FLOATS = ("F16", "BF16", "F32", "F64")


def is_gguf_adapter(path: Path) -> bool:
    """Return whether a file is a GGUF file that says it holds an adapter."""
    if not is_gguf(path):
        return False
    try:
        return GgufFile(path).fields.get(_TYPE) == "adapter"
    except LoramergeError:
        return False


def open_gguf(path: Path) -> AdapterSource:
    """Open an adapter in GGUF as the PEFT adapter of the same change.

    Modules have the names of transformers, where the architecture is known; else those of llama.cpp.

    Raises:
        FormatError: if it holds no adapter, or one of another type than LoRA.
    """
    file = GgufFile(path)
    if file.fields.get(_TYPE) != "adapter":
        raise FormatError(
            "this GGUF file holds no adapter",
            file=path,
            expected=f"{_TYPE} adapter",
            found=f"{_TYPE} {file.fields.get(_TYPE, 'is not there')}",
        )
    if file.fields.get(_KIND) != "lora":
        raise FormatError(
            "a GGUF adapter of this type is not known",
            file=path,
            expected=f"{_KIND} lora",
            found=str(file.fields.get(_KIND)),
        )
    modules = _modules(file)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, tensor in file.tensors.items():
        factor = re.match(_FACTOR, name)
        if factor is None or len(tensor.shape) != 2:
            tensors[name] = tensor  # reported as unknown
            continue
        stem, which = factor["stem"], factor["which"]
        module, heads = modules.get(stem, (stem, 0))
        values = _floats(tensor, name, path)
        if stem == _WORDS:
            tensors[f"{_HEAD}{module}.{_TABLE_ENDS[which]}"] = (
                transposed(values) if which == "a" else values
            )
        else:
            ordered = _together(values, heads, name, path) if which == "b" and heads else values
            tensors[f"{_HEAD}{module}.{_ENDS[which]}"] = ordered
        if which == "b":
            ranks[module] = tensor.shape[1]
    source = AdapterSource(
        str(path),
        tensors,
        {key: value for key, value in file.metadata.items() if key not in _OF_THE_FILE},
        files=[path],
        translated="llama.cpp",
        llama_cpp=_told(file.fields),
        model=f"the architecture {file.fields.get(ARCHITECTURE)} of llama.cpp",
    )
    source.configs[""] = {"peft_type": "LORA", **_scaled(file.fields, ranks, path)}
    return source


def _told(fields: Mapping[str, Any]) -> dict[str, str | int]:
    """Return the architecture, and the numbers of heads if the file tells them."""
    kind = str(fields.get(ARCHITECTURE))
    heads = fields.get(f"{kind}.attention.head_count")
    keys = fields.get(f"{kind}.attention.head_count_kv", heads)
    return LanguageModel.fields_of(kind, heads, keys)


def _modules(file: GgufFile) -> Mapping[str, tuple[str, int]]:
    """Return stem → module as transformers names it, and the heads whose halves alternate in it.

    Queries and keys whose heads are not told are left out.
    """
    kind = str(file.fields.get(ARCHITECTURE))
    model = LANGUAGE_MODELS.get(kind)
    if model is None:
        return {}
    blocks = [int(found[1]) for name in file.tensors if (found := re.match(r"blk\.(\d+)\.", name))]
    fields = {ARCHITECTURE: kind, **file.fields, f"{kind}.block_count": max(blocks, default=-1) + 1}
    return {
        stored.stem: (module, stored.heads)
        for module, stored in model.modules(fields)
        if not model.lacks_heads(stored)
    }


def _floats(tensor: Tensor, name: str, path: Path) -> Tensor:
    """Return a factor as plain floats.

    Raises:
        FormatError: if it is stored in another type than `convert_lora_to_gguf.py` writes.
    """
    if tensor.dtype in _FLOATS:
        return tensor
    if tensor.dtype != "Q8_0":
        raise FormatError(
            "a factor of this type cannot be read",
            file=path,
            module=name,
            expected="F32, F16, BF16 or Q8_0",
            found=tensor.dtype,
        )

    def make() -> Any:
        import numpy as np

        blocks = np.frombuffer(bytes(tensor.raw()), np.uint8).reshape(-1, 34)
        scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
        return blocks[:, 2:].view(np.int8).astype(np.float32) * scales

    return Derived("F32", tensor.shape, make)


def _together(tensor: Tensor, heads: int, name: str, path: Path) -> Tensor:
    """Return rows in which the halves of each head alternate with the halves together.

    Raises:
        FormatError: if the rows are not those of so many heads.
    """
    rows, columns = tensor.shape
    if rows % (2 * heads):
        raise FormatError(
            "the rows of this tensor cannot be those of its heads",
            file=path,
            module=name,
            found=f"{rows} rows, {heads} heads",
        )

    def make() -> Any:
        return tensor.numpy().reshape(heads, -1, 2, columns).swapaxes(1, 2).copy()

    return Derived(tensor.dtype, tensor.shape, make)


def _scaled(fields: Mapping[str, Any], ranks: Mapping[str, int], path: Path) -> dict[str, Any]:
    """Return PEFT's ranks and alpha for the scale that the file states."""
    alpha = fields.get(_ALPHA, 0.0)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise FormatError("the alpha of this adapter is not a number", file=path, found=alpha)
    rank = next(iter(ranks.values()), 1)
    others = {module: r for module, r in ranks.items() if r != rank}
    found: dict[str, Any] = {"r": rank, "rank_pattern": others}
    if alpha:
        found["lora_alpha"] = float(alpha)
    else:
        found |= {
            "lora_alpha": float(rank),
            "alpha_pattern": {m: float(r) for m, r in others.items()},
        }
    if _TOKENS in fields:
        tokens = fields[_TOKENS]
        found["alora_invocation_tokens"] = list(tokens) if tokens is not None else [0]
    return found
