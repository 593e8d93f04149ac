"""Adapters of llama.cpp, in GGUF: what they mean, and what is written for it."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.cli.main import main
from loramerge.errors import AdapterError, FormatError, NotExpressible
from loramerge.files.gguf import GgufFile
from loramerge.library.patterns import expand
from loramerge.stream.against import against
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
from tests.builders.gguf import data_of, values_of, write_gguf
from tests.builders.kinds import values
from tests.builders.samples import relative, safetensors_bytes

WIDTH, HEADS, KEYS, RANK, ALPHA, WORDS = 32, 4, 2, 3, 6.0, 20
ROWS = {"attn_q": WIDTH, "attn_k": WIDTH // 2, "ffn_down": WIDTH}
NAMES = {
    "attn_q": "model.layers.0.self_attn.q_proj",
    "attn_k": "model.layers.0.self_attn.k_proj",
    "ffn_down": "model.layers.0.mlp.down_proj",
}
HEAD_COUNTS = {"llama.attention.head_count": HEADS, "llama.attention.head_count_kv": KEYS}
FIELDS = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": ALPHA}
Array = np.ndarray[Any, Any]


def alternating(rows: Array, stem: str) -> Array:
    """Rows of transformers as llama.cpp's converter orders them."""
    heads = {"attn_q": HEADS, "attn_k": KEYS}.get(stem)
    if heads is None:
        return rows
    found = [
        rows[head * len(rows) // heads + half * (len(rows) // heads // 2) + i]
        for head in range(heads)
        for i in range(len(rows) // heads // 2)
        for half in range(2)
    ]
    return np.array(found)


def factors(stem: str) -> tuple[Array, Array]:
    return values(RANK, WIDTH, seed=len(stem)), values(ROWS[stem], RANK, seed=7)


def in_gguf(
    path: Path, kind: str = "llama", *, fields: Mapping[str, Any] = FIELDS, swapped: bool = True
) -> Path:
    """An adapter as llama.cpp's converter writes it."""
    tensors: dict[str, Any] = {}
    for stem in ROWS:
        down, up = factors(stem)
        up = alternating(up, stem) if swapped else up
        tensors[f"blk.0.{stem}.weight.lora_a"] = down, "F32", down.shape
        tensors[f"blk.0.{stem}.weight.lora_b"] = up, "F32", up.shape
    return write_gguf(path, tensors, {"general.architecture": kind, **fields})


def expected() -> dict[str, Array]:
    found = {}
    for stem, module in NAMES.items():
        down, up = (one.astype(np.float64) for one in factors(stem))
        found[module] = ALPHA / RANK * up @ down
    return found


def base(path: Path) -> Path:
    shapes = {f"blk.0.{stem}.weight": (rows, WIDTH) for stem, rows in ROWS.items()}
    shapes |= {"token_embd.weight": (WORDS, WIDTH), "output.weight": (WORDS, WIDTH)}
    tensors = {n: (values(*s, seed=3), "F32", s) for n, s in shapes.items()}
    fields = {"general.architecture": "llama", "llama.block_count": 1, **HEAD_COUNTS}
    return write_gguf(path, tensors, fields)


def transformers_base(folder: Path) -> Path:
    folder.mkdir()
    tensors = {f"{m}.weight": values(ROWS[s], WIDTH, seed=3) for s, m in NAMES.items()}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"],
        "num_attention_heads": HEADS, "num_key_value_heads": KEYS,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def changes(adapter: Any) -> dict[str, Array]:
    return {site.name: delta.dense() for site, delta in adapter.deltas.items()}


def same(found: Mapping[str, Array], wanted: Mapping[str, Array]) -> bool:
    return found.keys() == wanted.keys() and all(
        relative(found[name], wanted[name]) < 1e-6 for name in wanted
    )


@pytest.mark.parametrize("kind", ["qwen2", "gemma3"])
def test_modules_have_the_names_of_transformers(kind: str, tmp_path: Path) -> None:
    adapter = load(in_gguf(tmp_path / "a.gguf", kind, swapped=False)).require_sound()
    assert same(changes(adapter), expected())
    assert adapter.info.translated == "llama.cpp" and not adapter.info.detection.candidates


def test_the_heads_of_llama_are_put_in_order_by_a_base_or_by_the_file(tmp_path: Path) -> None:
    bare = load(in_gguf(tmp_path / "a.gguf")).require_sound()
    assert set(changes(bare)) == {"blk.0.attn_q", "blk.0.attn_k", NAMES["ffn_down"]}
    for place in (base(tmp_path / "base.gguf"), transformers_base(tmp_path / "base")):
        assert same(changes(against(bare, open_checkpoint(place))), expected())
    told = in_gguf(tmp_path / "b.gguf", fields=FIELDS | HEAD_COUNTS)
    assert same(changes(load(told).require_sound()), expected())
    wrong = in_gguf(tmp_path / "c.gguf", fields=FIELDS | HEAD_COUNTS, swapped=False)
    assert not same(changes(load(wrong)), expected())  # the order matters


def test_an_alpha_of_zero_leaves_the_factors_as_they_are(tmp_path: Path) -> None:
    for fields in (
        FIELDS | {"adapter.lora.alpha": 0.0},
        {"general.type": "adapter", "adapter.type": "lora"},
    ):
        adapter = load(in_gguf(tmp_path / "a.gguf", "qwen2", fields=fields, swapped=False))
        wanted = {name: change * RANK / ALPHA for name, change in expected().items()}
        assert same(changes(adapter), wanted)


def test_words_and_eight_bits(tmp_path: Path) -> None:
    """Llama.cpp looks the first factor of the words up, so that it is not transposed."""
    scale, codes = np.float16(0.01), np.arange(-32, 32, dtype=np.int8)
    raw = b"".join(struct.pack("<e", scale) + row.tobytes() for row in codes.reshape(2, 32))
    down, up = values(WORDS, RANK), values(WIDTH, RANK, seed=1)
    tensors = {
        "token_embd.weight.lora_a": (down, "F32", down.shape),
        "token_embd.weight.lora_b": (up, "F32", up.shape),
        "blk.0.ffn_up.weight.lora_a": (raw, "Q8_0", (2, 32)),
        "blk.0.ffn_up.weight.lora_b": (values(5, 2), "F32", (5, 2)),
    }
    path = write_gguf(tmp_path / "a.gguf", tensors, {"general.architecture": "qwen3", **FIELDS})
    found = changes(load(path).require_sound())
    wide = (down.astype(np.float64), up.astype(np.float64))
    assert relative(found["model.embed_tokens"], ALPHA / RANK * wide[0] @ wide[1].T) < 1e-6
    eight = ALPHA / 2 * values(5, 2).astype(np.float64) @ (codes.reshape(2, 32) * np.float64(scale))
    assert relative(found["model.layers.0.mlp.up_proj"], eight) < 1e-6


def test_of_other_architectures_the_names_of_llama_cpp_stay(tmp_path: Path) -> None:
    path = in_gguf(tmp_path / "a.gguf", "olmo2", swapped=False)
    adapter = load(path).require_sound()
    assert set(changes(adapter)) == {f"blk.0.{stem}" for stem in ROWS}
    with pytest.raises(NotExpressible, match="have the names"):
        save(adapter, tmp_path / "out", to="peft")
    save(adapter, tmp_path / "again.gguf")
    assert same(changes(load(tmp_path / "again.gguf")), changes(adapter))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"general.type": "model"}, "holds no adapter"),
        ({"general.type": "adapter", "adapter.type": "control"}, "of this type is not known"),
    ],
)
def test_other_files_are_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        load(in_gguf(tmp_path / "a.gguf", fields=fields))


def test_norms_are_not_dropped_in_silence(tmp_path: Path) -> None:
    down, up = factors("ffn_down")
    tensors = {
        "blk.0.ffn_down.weight.lora_a": (down, "F32", down.shape),
        "blk.0.ffn_down.weight.lora_b": (up, "F32", up.shape),
        "blk.0.attn_norm.weight": (values(WIDTH), "F32", (WIDTH,)),
    }
    path = write_gguf(tmp_path / "a.gguf", tensors, {"general.architecture": "qwen2", **FIELDS})
    assert list(load(path).info.account.unknown) == ["blk.0.attn_norm.weight"]


def test_an_alora_is_refused(tmp_path: Path) -> None:
    fields = FIELDS | {"adapter.alora.invocation_tokens": [1, 2]}
    with pytest.raises(AdapterError, match="alora"):
        load(in_gguf(tmp_path / "a.gguf", "qwen2", fields=fields)).require_sound()


def test_a_bake_changes_the_weights_by_the_definition(tmp_path: Path) -> None:
    adapter = load(in_gguf(tmp_path / "a.gguf"))
    file, folder = base(tmp_path / "base.gguf"), transformers_base(tmp_path / "base")
    bake(plan_bake(open_checkpoint(file), [(adapter, Weight())]), tmp_path / "out.gguf")
    before, after = data_of(file), data_of(tmp_path / "out.gguf")
    for stem, module in NAMES.items():
        kind, shape, raw = after[f"blk.0.{stem}.weight"]
        old = values_of(kind, before[f"blk.0.{stem}.weight"][2]).reshape(shape)
        change = values_of(kind, raw).reshape(shape) - old
        assert relative(change, alternating(expected()[module], stem)) < 1e-5
    bake(plan_bake(open_checkpoint(folder), [(adapter, Weight())]), tmp_path / "out")
    for module, change in expected().items():
        tensors = [open_checkpoint(place).slots[module, "weight"][0].tensor.numpy().astype(np.float64)
                   for place in (folder, tmp_path / "out")]  # fmt: skip
        assert relative(tensors[1] - tensors[0], change) < 1e-5


def test_what_is_written_is_what_llama_cpp_reads(tmp_path: Path) -> None:
    """Names, order of rows and one alpha, with its factors; what came from a file stays bit for bit."""
    source, model = in_gguf(tmp_path / "a.gguf"), base(tmp_path / "base.gguf")
    adapter = against(load(source), open_checkpoint(model))
    save(adapter, tmp_path / "peft", to="peft")
    again = against(load(tmp_path / "peft"), open_checkpoint(model))
    save(again, tmp_path / "b.gguf")
    first, second = data_of(source), GgufFile(tmp_path / "b.gguf")
    assert {k: second.tensors[k].raw() for k in second.tensors} == {
        k: v[2] for k, v in first.items()
    }
    assert (
        second.fields["adapter.lora.alpha"] == ALPHA and second.fields["general.type"] == "adapter"
    )
    assert all(second.fields[key] == value for key, value in HEAD_COUNTS.items())
    assert same(changes(load(tmp_path / "b.gguf")), expected())


def test_modules_of_other_strengths_share_one_alpha(tmp_path: Path) -> None:
    adapter = load(in_gguf(tmp_path / "a.gguf", "qwen3", swapped=False))
    deltas = {
        site: delta.scaled(2.5) if site.name == NAMES["attn_q"] else delta
        for site, delta in adapter.deltas.items()
    }
    save(adapter.with_deltas(deltas), tmp_path / "b.gguf")
    wanted = expected() | {NAMES["attn_q"]: 2.5 * expected()[NAMES["attn_q"]]}
    assert same(changes(load(tmp_path / "b.gguf")), wanted)
    assert math.isclose(GgufFile(tmp_path / "b.gguf").fields["adapter.lora.alpha"], ALPHA)


def test_an_adapter_of_zeros_states_an_alpha(tmp_path: Path) -> None:
    """An alpha of 0 would mean a scale of 1."""
    adapter = load(in_gguf(tmp_path / "a.gguf", "qwen3", swapped=False))
    zero = adapter.with_deltas({s: d.scaled(0.0) for s, d in adapter.deltas.items()})
    save(zero, tmp_path / "b.gguf")
    assert all(not change.any() for change in changes(load(tmp_path / "b.gguf")).values())


def test_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    in_gguf(tmp_path / "a.gguf"), base(tmp_path / "base.gguf")
    assert main(["inspect", "a.gguf"]) == 0
    assert "adapter, llama.cpp" in capsys.readouterr().out
    assert main(["convert", "a.gguf", "--to", "peft", "-o", "p"]) != 0
    assert "--base" in capsys.readouterr().err
    assert main(["convert", "a.gguf", "--to", "peft", "-o", "p", "--base", "base.gguf"]) == 0
    assert main(["convert", "p", "-o", "q.gguf"]) != 0
    assert "--base" in capsys.readouterr().err
    assert main(["mix", "a.gguf", "a.gguf:0.5"]) == 0
    assert main(["resize", "a.gguf", "--rank", "2"]) == 0
    assert {path.name for path in tmp_path.glob("a*.gguf")} == {
        "a.gguf", "a+a@0.5.gguf", "a-r2.gguf"
    }  # fmt: skip
    assert main(["bake", "--base", "a.gguf", "p"]) != 0
    assert "this is an adapter" in capsys.readouterr().err


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    adapter = load(in_gguf(tmp_path / "a.gguf"))
    assert [(p.severity, p.code) for p in adapter.info.problems] == [("note", "heads-unknown")]
    assert "2 modules keep" in adapter.info.problems[0].message
    experts = {
        f"blk.0.ffn_up_exps.weight.lora_{x}": (values(2, 3, 4), "F32", (2, 3, 4)) for x in "ab"
    }
    path = write_gguf(tmp_path / "b.gguf", experts, {"general.architecture": "qwen3moe", **FIELDS})
    found = load(path).info
    assert len(found.account.unknown) == 2 and not found.problems


def test_folders_and_patterns_find_them_beside_models(tmp_path: Path) -> None:
    in_gguf(tmp_path / "a.gguf"), base(tmp_path / "base.gguf")
    assert [path.name for path, _ in expand([str(tmp_path)])] == ["a.gguf"]
    assert [path.name for path, _ in expand([str(tmp_path / "*.gguf")])] == ["a.gguf"]
