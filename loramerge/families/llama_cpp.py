"""Names of language models in the GGUF files of llama.cpp, for those that take adapters.

Source: `convert_hf_to_gguf.py` and `tensor_mapping.py` of llama.cpp. It stores the queries and keys of
Llama with the two halves of each head alternating, and the norms of Gemma with one added; these are not
listed, so that an adapter which changes them is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

__all__ = ["ARCHITECTURE", "LANGUAGE_MODELS", "LanguageModel", "StoredAs", "t5_stem"]

ARCHITECTURE = "general.architecture"  # the field that names it

_TOP = {"token_embd": "model.embed_tokens", "output": "lm_head"}
_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NORM = {"output_norm": "model.norm"}
_NORMS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}


_T5_TOP = {"shared": "token_embd", "encoder.final_layer_norm": "enc.output_norm"}
_T5_BLOCK = {
    "0.SelfAttention.q": "attn_q",
    "0.SelfAttention.k": "attn_k",
    "0.SelfAttention.v": "attn_v",
    "0.SelfAttention.o": "attn_o",
    "0.SelfAttention.relative_attention_bias": "attn_rel_b",
    "0.layer_norm": "attn_norm",
    "1.DenseReluDense.wi_0": "ffn_gate",
    "1.DenseReluDense.wi_1": "ffn_up",
    "1.DenseReluDense.wo": "ffn_down",
    "1.layer_norm": "ffn_norm",
}


def t5_stem(path: str) -> str:
    """Return the name, without its end, of the tensor that holds a layer of a T5 encoder.

    Args:
        path: as transformers has it, `encoder.block.0.layer.0.SelfAttention.q`.
    """
    if path in _T5_TOP:
        return _T5_TOP[path]
    number, layer = path.removeprefix("encoder.block.").split(".layer.")
    return f"enc.blk.{number}.{_T5_BLOCK[layer]}"


class StoredAs(NamedTuple):
    """A tensor of a file: its name without `.weight`, and the heads whose halves alternate in it."""

    stem: str
    heads: int = 0


class LanguageModel(NamedTuple):
    """An architecture: names of the layers of a block and of those outside.

    Args:
        alternating: whether the halves of the heads of queries and keys alternate.
    """

    top: Mapping[str, str]
    layer: Mapping[str, str]
    alternating: bool = False

    @staticmethod
    def fields_of(kind: str, heads: object, keys: object) -> dict[str, str | int]:
        """Return the fields of an architecture, and of its numbers of heads as far as known."""
        found: dict[str, str | int] = {ARCHITECTURE: kind}
        for name, value in (("head_count", heads), ("head_count_kv", keys)):
            if isinstance(value, int):
                found[f"{kind}.attention.{name}"] = value
        return found

    def lacks_heads(self, stored: StoredAs) -> bool:
        """Return whether the heads of a tensor's rows alternate, and their number is not known."""
        ordered = stored.stem.endswith((".attn_q", ".attn_k"))
        return self.alternating and ordered and not stored.heads

    def modules(self, fields: Mapping[str, object]) -> Iterator[tuple[str, StoredAs]]:
        """Yield the modules as transformers names them, with the tensors that hold them.

        Args:
            fields: of the file.
        """
        kind = fields[ARCHITECTURE]
        for stem, module in self.top.items():
            yield module, StoredAs(stem)
        heads = fields.get(f"{kind}.attention.head_count")
        keys = fields.get(f"{kind}.attention.head_count_kv", heads)
        count = fields.get(f"{kind}.block_count")
        for number in range(count if isinstance(count, int) else 0):
            for stem, module in self.layer.items():
                own = {"attn_q": heads, "attn_k": keys}.get(stem) if self.alternating else 0
                stored = StoredAs(f"blk.{number}.{stem}", own if isinstance(own, int) else 0)
                yield f"model.layers.{number}.{module}", stored


_WITH_NORMS = LanguageModel(_TOP | _TOP_NORM, _LAYER | _NORMS)

LANGUAGE_MODELS: Mapping[str, LanguageModel] = {
    "llama": _WITH_NORMS._replace(alternating=True),
    "qwen2": _WITH_NORMS,
    "qwen3": _WITH_NORMS,
    "gemma": LanguageModel(_TOP, _LAYER),
    "gemma2": LanguageModel(_TOP, _LAYER),
    "gemma3": LanguageModel(_TOP, _LAYER),
}
