"""Adapters for llama.cpp, written in GGUF; see `gguf_reading` for what such a file holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from loramerge.adapter.adapter import Adapter
from loramerge.adapter.encoded import Encoded
from loramerge.adapter.formats.container import Check, Container, Unwritten
from loramerge.adapter.kinds.bases.scale import scaled_tensor
from loramerge.errors import NotExpressible, Setting
from loramerge.families.llama_cpp import ARCHITECTURE, LANGUAGE_MODELS, StoredAs
from loramerge.files.dtypes import DTYPES
from loramerge.files.gguf_heads import build_gguf
from loramerge.files.header import TensorInfo
from loramerge.files.tensors import Tensor
from loramerge.files.views import Derived, transposed
from loramerge.files.writer import write_tensors

__all__ = ["CONTAINER"]

_ALPHA = "adapter.lora.alpha"
_ROLES = {
    ".lora_A.weight": ".weight.lora_a",
    ".lora_B.weight": ".weight.lora_b",
    ".lora_embedding_A": ".weight.lora_a",
    ".lora_embedding_B": ".weight.lora_b",
}
_TABLE, _LAST = "token_embd", "output"
_FLOATS = ("F32", "F16", "BF16")  # llama.cpp multiplies by these


class _LlamaCpp(Container):
    def complete(self, content: Unwritten) -> None:
        stored = _stored_as(content.adapter)
        alphas = _alphas(content)
        common = _common(alphas)
        pairs: dict[str, Tensor] = {}
        for key, tensor in content.pairs.items():
            name, changed = _entry(key, tensor, stored, content.adapter)
            if name.endswith("lora_b"):
                alpha = alphas[_stem_of(key)[0]]
                changed = scaled_tensor(changed, alpha / common, None, name)
            if changed.dtype not in _FLOATS:
                raise NotExpressible(
                    "llama.cpp cannot compute with factors of this type",
                    module=name,
                    found=DTYPES[changed.dtype].word,
                    hint=("write another type: ", Setting("dtype", "float32")),
                )
            pairs[name] = changed
        content.pairs.clear()
        content.pairs.update(pairs)

    def metadata(self, content: Unwritten, kept: Mapping[str, str]) -> dict[str, str]:
        told = {key: str(value) for key, value in content.adapter.info.llama_cpp.items()}
        return {
            "general.type": "adapter",
            **told,
            "adapter.type": "lora",
            _ALPHA: repr(_common(_alphas(content))),
        }

    def write(self, encoded: Encoded, place: Path, force: bool, check: Check | None) -> int:
        return write_tensors(
            place,
            encoded.tensors,
            encoded.metadata,
            force=force,
            check=check,
            late=encoded.late,
            build=_build,
        )


CONTAINER = _LlamaCpp()


def _build(
    entries: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, TensorInfo]]:
    """Build the head of the file: what llama.cpp reads first, then the rest of the metadata as texts."""
    kind = metadata[ARCHITECTURE]
    fields: dict[str, str | int | float] = {}
    for key, value in metadata.items():
        if key == _ALPHA:
            fields[key] = float(value)
        elif key.startswith(f"{kind}.attention."):
            fields[key] = int(value)
        elif key in ("general.type", ARCHITECTURE, "adapter.type"):
            fields[key] = value
    others = {key: value for key, value in metadata.items() if key != "format"}  # of safetensors
    return build_gguf(entries, others, fields=fields)


def _alphas(content: Unwritten) -> dict[str, float]:
    """Return module → the alpha that gives its factors their scale."""
    found: dict[str, float] = {}
    for site, delta in content.deltas.items():
        core = delta.core
        if delta.kind not in ("lora", "lora-embedding") or core is None or len(site.modules) != 1:
            raise NotExpressible(
                "an adapter for llama.cpp holds ordinary LoRA alone",
                module=site.name,
                found=f"{delta.kind} of the {site.parameter}",
                hint=("make it ordinary LoRA with convert and ", Setting("to_lora", True)),
            )
        found[site.modules[0]] = abs(core.factor) * (core.dim or 1)
    return found


def _common(alphas: Mapping[str, float]) -> float:
    """Return the alpha to state for all; never 0, which llama.cpp takes for none."""
    counts = Counter(alpha for alpha in alphas.values() if alpha)
    return min(counts, key=lambda alpha: (-counts[alpha], alpha)) if counts else 1.0


def _stored_as(adapter: Adapter) -> Mapping[str, StoredAs]:
    """Return module → the tensor of llama.cpp that holds it.

    Raises:
        NotExpressible: if the architecture is not known.
    """
    told = adapter.info.llama_cpp
    model = LANGUAGE_MODELS.get(str(told.get(ARCHITECTURE)))
    names = [site.modules[0] for site in adapter.deltas]
    if model is None and (not told or not all(name.startswith("blk.") for name in names)):
        raise NotExpressible(
            "a file for llama.cpp states the architecture of its model, which is not known here",
            file=adapter.info.path,
            expected=", ".join(LANGUAGE_MODELS),
            hint=("give the model that it is for as ", Setting("base")),
        )
    if model is None:
        return {}
    blocks = [int(found[1]) for name in names if (found := re.search(r"layers\.(\d+)\.", name))]
    fields = {**told, f"{told[ARCHITECTURE]}.block_count": max(blocks, default=-1) + 1}
    return dict(model.modules(fields))


def _stem_of(key: str) -> tuple[str, str]:
    """Return the module of a key in PEFT's words, and its end in those of llama.cpp, `''` for none."""
    stem = key.removeprefix("base_model.model.")
    end = next((end for end in _ROLES if stem.endswith(end)), "")
    return stem.removesuffix(end), _ROLES.get(end, "")


def _entry(
    key: str, tensor: Tensor, stored: Mapping[str, StoredAs], adapter: Adapter
) -> tuple[str, Tensor]:
    """Return name and values of a tensor as llama.cpp stores it.

    Raises:
        NotExpressible: if it has no such tensor, or the order of its rows is not known.
    """
    module, end = _stem_of(key)
    where = StoredAs(module) if module.startswith("blk.") else stored.get(module)
    if where is None or not end or (where.stem == _TABLE) != ("embedding" in key):
        raise NotExpressible(
            "llama.cpp has no tensor for this part of the adapter",
            file=adapter.info.path,
            module=key,
        )
    model = LANGUAGE_MODELS.get(str(adapter.info.llama_cpp.get(ARCHITECTURE)))
    if model is not None and not module.startswith("blk.") and model.lacks_heads(where):
        raise NotExpressible(
            "llama.cpp orders the rows of this module by its heads, whose number is not known",
            file=adapter.info.path,
            module=module,
            hint=("give the model that it is for as ", Setting("base")),
        )
    name = where.stem + end
    if where.stem == _TABLE and end.endswith("a"):
        return name, transposed(tensor)
    if where.heads and end.endswith("b"):
        return name, _alternating(tensor, where.heads)
    return name, tensor


def _alternating(tensor: Tensor, heads: int) -> Tensor:
    """Return rows with the halves of each head alternating; see `gguf_reading`."""
    columns = tensor.shape[1]
    return Derived(
        tensor.dtype,
        tensor.shape,
        lambda: tensor.numpy().reshape(heads, 2, -1, columns).swapaxes(1, 2).copy(),
    )
