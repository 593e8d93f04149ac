"""GGUF as the gguf package and transformers read and write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.checkpoint.ggml import BLOCK_TYPES
from loramerge.checkpoint.ggml_k import K_TYPES
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
from tests.builders.deltas import adapter, low_rank
from tests.builders.gguf import write_gguf

gguf = pytest.importorskip("gguf", reason="needs the package gguf: pip install gguf")


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_blocks_are_made_and_read_bit_for_bit(name: str) -> None:
    kind, other = BLOCK_TYPES[name], gguf.GGMLQuantizationType[name]
    random = np.random.default_rng(5)
    values = random.standard_normal((2000, kind.elements)).astype("float32")
    values[0], values[1, 3], values[3] = 0, 1e-9, 0.25
    values[2] = np.round(values[2] * 4) / 4  # halves between codes
    ours = kind.fresh(values.copy())
    assert np.array_equal(ours, gguf.quants.quantize(values, other))
    theirs = gguf.quants.dequantize(ours.reshape(1, -1), other)
    assert np.array_equal(kind.values(ours).reshape(-1), theirs.reshape(-1))


@pytest.mark.parametrize("name", K_TYPES)
def test_k_types_are_read_bit_for_bit(name: str) -> None:
    kind, other = K_TYPES[name], gguf.GGMLQuantizationType[name]
    random = np.random.default_rng(5)
    values = random.standard_normal((200, kind.elements)).astype("float32")
    raw = random.integers(0, 256, (200, kind.size), dtype=np.uint8)
    fresh = kind.fresh(values)
    for blocks in (fresh, raw):
        with np.errstate(all="ignore"):
            ours = kind.values(blocks).reshape(-1)
            theirs = gguf.quants.dequantize(blocks.reshape(1, -1), other).reshape(-1)
        assert np.array_equal(ours, theirs, equal_nan=True)
    assert np.array_equal(kind.changed(fresh, kind.values(fresh)), fresh)


def language(path: Path) -> Path:
    random, width = np.random.default_rng(2), 64
    shapes = {"attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64),
              "ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96)}  # fmt: skip
    tensors: dict[str, Any] = {
        "token_embd.weight": (random.standard_normal((32, width)), "F32", (32, width)),
        "output.weight": (random.standard_normal((32, width)), "F32", (32, width)),
        "output_norm.weight": (np.ones(width), "F32", (width,)),
    }
    for number in range(2):
        for name, shape in shapes.items():
            values = random.standard_normal(shape) / 8
            tensors[f"blk.{number}.{name}.weight"] = values, "F32", shape
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{number}.{name}.weight"] = np.ones(width), "F32", (width,)
    fields = {
        "general.architecture": "llama", "llama.block_count": 2, "llama.context_length": 64,
        "llama.embedding_length": width, "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 16, "llama.vocab_size": 32,
    }  # fmt: skip
    return write_gguf(path, tensors, fields)


def logits(path: Path, deltas: Any = None) -> Any:
    """The logits of a file as transformers loads it, with changes of its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    )
    for site, delta in (deltas or {}).items():
        weight = model.get_submodule(site.modules[0]).weight
        weight.data += torch.from_numpy(delta.dense().astype("float32"))
    return model(torch.arange(12)[None]).logits.detach().numpy()


@pytest.mark.slow
def test_transformers_finds_the_adapter_in_the_file(tmp_path: Path) -> None:
    path = language(tmp_path / "base.gguf")
    a = adapter(
        {
            f"model.layers.{number}.{name}": low_rank(shape, 2, seed=number)
            for number in range(2)
            for name, shape in {
                "self_attn.q_proj": (64, 64),
                "self_attn.k_proj": (32, 64),
                "mlp.down_proj": (64, 96),
            }.items()
        }
    )
    out = tmp_path / "out" / "out.gguf"
    bake(plan_bake(open_checkpoint(path), [(a, Weight())]), out)
    wanted, found = logits(path, a.deltas), logits(out)
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert np.abs(found - logits(path)).max() > 0.1


def test_the_package_reads_what_is_written(tmp_path: Path) -> None:
    path = language(tmp_path / "base.gguf")
    a = adapter({"model.layers.0.self_attn.v_proj": low_rank((32, 64), 1)})
    out = tmp_path / "out.gguf"
    bake(plan_bake(open_checkpoint(path), [(a, Weight())]), out, metadata={"made": json.dumps([1])})
    before, after = (gguf.GGUFReader(p) for p in (path, out))
    assert [t.name for t in before.tensors] == [t.name for t in after.tensors]
    assert set(after.fields) - set(before.fields) == {"made"}
    assert after.fields["made"].contents() == "[1]"


def test_t5_has_the_names_of_the_package() -> None:
    from loramerge.families.llama_cpp import t5_stem
    from loramerge.families.t5 import T5, t5_modules

    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 24)
    for module in t5_modules(T5(biased=True)):
        assert t5_stem(module.path) == table.get_name(module.path)
