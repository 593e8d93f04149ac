"""Bases in GGUF: results are the float64 definition, in the types of the file."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapter import Adapter
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.errors import AdapterError, FormatError
from loramerge.files.gguf import GgufFile
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
from loramerge.stream.survival import Survival
from tests.builders.bases import adapter_for, read_safetensors, unet_alone
from tests.builders.deltas import adapter, low_rank
from tests.builders.gguf import KINDS, Array, data_of, quantised, values_of, write_gguf

WIDTH, HEADS, KEYS, HIDDEN = 256, 4, 2, 256
ROWS = {
    "attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH // 2, WIDTH), "attn_v": (WIDTH // 2, WIDTH),
    "attn_output": (WIDTH, WIDTH), "ffn_gate": (HIDDEN, WIDTH), "ffn_up": (HIDDEN, WIDTH),
    "ffn_down": (WIDTH, HIDDEN),
}  # fmt: skip
NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "ffn_down": "mlp.down_proj",
    "attn_v": "self_attn.v_proj",
}  # fmt: skip
FIELDS = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KEYS,
}
MISS = {"Q8_0": 0.6, "Q2_K": 4.0, "Q3_K": 3.0}  # largest errors, in steps of the old grid


def language(path: Path, kind: str, *, fields: dict[str, Any] = FIELDS, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    tensors: dict[str, Any] = {
        "token_embd.weight": (random.standard_normal((16, WIDTH)), "F16", (16, WIDTH)),
        "output_norm.weight": (np.ones(WIDTH), "F32", (WIDTH,)),
    }
    for number in range(1):
        for name, shape in ROWS.items():
            values = random.standard_normal(shape) * 0.05
            tensors[f"blk.{number}.{name}.weight"] = values, kind, shape
    return write_gguf(path, tensors, fields)


def sample(size: float = 0.02, modules: tuple[str, ...] = tuple(NAMES)) -> Adapter:
    deltas = {
        f"model.layers.0.{NAMES[name]}": low_rank(ROWS[name], 2, seed=i).scaled(size)
        for i, name in enumerate(modules)
    }
    return adapter(deltas)


def stored_rows(name: str, dense: Array) -> Array:
    """The rows of a matrix of transformers as llama.cpp stores them."""
    heads = {"attn_q": HEADS, "attn_k": KEYS}.get(name)
    if heads is None:
        return dense
    order = np.arange(len(dense)).reshape(heads, 2, -1).transpose(0, 2, 1).reshape(-1)
    return dense[order]


def run(path: Path, a: Adapter, out: Path, **options: Any) -> list[Survival]:
    return bake(plan_bake(open_checkpoint(path), [(a, Weight())]), out, **options)


@pytest.mark.long_tail(keep=4)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_bake_is_the_sum_in_the_types_of_the_file(tmp_path: Path, kind: str) -> None:
    path, out = language(tmp_path / "base.gguf", kind), tmp_path / "out.gguf"
    a = sample()
    found = {s.tensor: s for s in run(path, a, out, threads=1)}
    before, after = data_of(path), data_of(out)
    assert list(before) == list(after)
    assert (
        out.read_bytes()[: GgufFile(path).header.data_start]
        == path.read_bytes()[: GgufFile(path).header.data_start]
    )
    deltas = {site.modules[0]: delta.dense() for site, delta in a.deltas.items()}
    for name, (dtype, shape, raw) in before.items():
        module = NAMES.get(name.split(".")[2]) if name.startswith("blk.0") else None
        if module is None:
            assert after[name][2] == raw, name
            continue
        delta = stored_rows(name.split(".")[2], deltas[f"model.layers.0.{module}"]).reshape(-1)
        old, new = values_of(dtype, raw), values_of(dtype, after[name][2])
        grid = KINDS[kind].grid(np.frombuffer(raw, np.uint8).reshape(-1, KINDS[kind].size))
        step = grid.steps().astype("float64").reshape(-1)
        wide = np.abs(delta).max()
        assert (np.abs(new - old - delta) <= MISS.get(kind, 2.0) * step + wide / 4 + 1e-6).all()
        survival = found[name]
        assert survival.asked == pytest.approx(float(delta @ delta), rel=1e-4)
        assert survival.error == pytest.approx(float(((new - old - delta) ** 2).sum()), rel=1e-3)
        rule = quantised((old + delta).reshape(shape), kind)
        fresh = ((values_of(kind, rule) - old - delta) ** 2).sum()
        if kind.endswith("_K"):  # never worse than new scales alone
            assert survival.error <= fresh * 1.001
        else:
            assert np.mean(np.frombuffer(rule, "u1") != np.frombuffer(after[name][2], "u1")) < 1e-3


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("kind", ["Q8_0", "Q5_1", "Q4_K"])
def test_weights_that_do_not_change_keep_their_codes(tmp_path: Path, kind: str) -> None:
    path, out = language(tmp_path / "base.gguf", kind), tmp_path / "out.gguf"
    delta = low_rank(ROWS["attn_v"], 2)
    up = delta.up.numpy()
    up[5:] = 0  # most rows of a touched tensor stay
    a = adapter({"model.layers.0.self_attn.v_proj": delta})
    run(path, a, out, threads=1)
    before, after = (data_of(p)["blk.0.attn_v.weight"][2] for p in (path, out))
    size = len(before) // ROWS["attn_v"][0]
    assert before[5 * size :] == after[5 * size :] and before[: 5 * size] != after[: 5 * size]


def test_threads_and_seeds(tmp_path: Path) -> None:
    path = language(tmp_path / "base.gguf", "Q4_0")
    outs = [tmp_path / f"{i}.gguf" for i in range(3)]
    for out, threads in zip(outs, (1, 3), strict=False):
        run(path, sample(0.05), out, threads=threads, seed=4)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    found = run(path, sample(0.003), outs[2], seed=1)
    kept = sum(s.along for s in found) / sum(s.asked for s in found)
    assert 0.9 < kept < 1.1  # on average; to nearest it would be lost
    lost = run(path, sample(0.003), tmp_path / "n.gguf")
    assert sum(s.along for s in lost) / sum(s.asked for s in lost) < kept


def test_heads_of_other_architectures_are_in_order(tmp_path: Path) -> None:
    fields = {key.replace("llama", "qwen3"): value for key, value in FIELDS.items()}
    fields["general.architecture"] = "qwen3"
    path = language(tmp_path / "base.gguf", "Q8_0", fields=fields)
    a = sample(modules=("attn_q",))
    run(path, a, tmp_path / "out.gguf")
    ((_, delta),) = a.deltas.items()
    before, after = (values_of("Q8_0", data_of(p)["blk.0.attn_q.weight"][2])
                     for p in (path, tmp_path / "out.gguf"))  # fmt: skip
    change = (after - before).reshape(WIDTH, WIDTH)
    assert np.abs(change - delta.dense()).max() < 0.01


def test_an_extract_finds_the_adapter_again(tmp_path: Path) -> None:
    path, out = language(tmp_path / "base.gguf", "Q8_0"), tmp_path / "out.gguf"
    a = sample(0.5, ("attn_q", "attn_v"))
    run(path, a, out)
    found = lm.extract(out, path, rank=2)
    for site, delta in a.deltas.items():
        wide = delta.dense()
        again = found.deltas[site].dense()
        assert np.linalg.norm(again - wide) < 0.05 * np.linalg.norm(wide)


def test_a_merge_has_the_types_of_the_first(tmp_path: Path) -> None:
    first = language(tmp_path / "a.gguf", "Q8_0")
    other = language(tmp_path / "b.gguf", "Q4_K", seed=1)
    lm.merge([(first, 0.5), (other, 0.5)], tmp_path / "out.gguf")
    found = [data_of(tmp_path / f"{name}.gguf") for name in ("a", "b", "out")]
    for name, (dtype, _, raw) in found[2].items():
        a, b = (values_of(f[name][0], f[name][2]) for f in found[:2])
        near = np.abs(values_of(dtype, raw) - (a + b) / 2).max()
        assert near <= 0.6 * np.abs(a + b).max() / 2 / 127 + 1e-3 * (dtype == "F16"), name


def diffusion(path: Path) -> tuple[Path, dict[str, Array]]:
    """A UNet of SD1 as city96's converter stores it: in rows of 256 values, whatever the shapes."""
    base = unet_alone(path.with_suffix(".safetensors"), "sd15", "")
    tensors: dict[str, Any] = {}
    fields: dict[str, Any] = {"general.architecture": "sd1"}
    for name, array in read_safetensors(base.path)[0].items():
        if array.ndim > 1 and array.size % 256 == 0:
            fields[f"comfy.gguf.orig_shape.{name}"] = list(array.shape)
            tensors[name] = array, "Q8_0", (array.size // 256, 256)
        else:
            tensors[name] = array, "F32", array.shape
    return write_gguf(path, tensors, fields), read_safetensors(base.path)[0]


def test_blocks_that_hold_several_rows(tmp_path: Path) -> None:
    path, weights = diffusion(tmp_path / "unet.gguf")
    out = tmp_path / "out.gguf"
    whole = adapter_for("sd15", only=lambda n: n.endswith(("attn1.to_q", "conv1")))
    a = whole.with_deltas({s: d for s, d in whole.deltas.items() if s.component == "unet"})
    found = run(path, a, out)
    assert len(found) == len(a.deltas)
    before, after = data_of(path), data_of(out)
    changed = {s.tensor for s in found}
    assert any(before[name][0] == "Q8_0" and weights[name].shape[-1] % 32 for name in changed)
    for s in found:
        old, new = (values_of(*(d[s.tensor][i] for i in (0, 2))) for d in (before, after))
        assert s.error == pytest.approx(
            s.asked - 2 * s.along + float(((new - old) ** 2).sum()), rel=1e-2, abs=1e-4
        )
        assert s.along > 0.9 * s.asked
    same = [name for name in before if name not in changed]
    assert all(before[name] == after[name] for name in same)


REFUSALS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "types": (
        lambda p: write_gguf(
            p,
            {f"blk.0.{name}.weight": (bytes(math.prod(shape) // 256 * 136), "IQ4_XS", shape)
             for name, shape in ROWS.items()},
            FIELDS,
        ),
        "IQ4_XS",
    ),
    "heads": (
        lambda p: language(p, "Q8_0", fields=FIELDS | {"llama.attention.head_count": 7}),
        "7 heads",
    ),
    "no heads": (
        lambda p: language(
            p, "Q8_0", fields={k: v for k, v in FIELDS.items() if not k.endswith("head_count")}
        ),
        "number of attention heads",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_name_the_reason(tmp_path: Path, case: str) -> None:
    make, says = REFUSALS[case]
    with pytest.raises(FormatError, match=says):
        run(make(tmp_path / "base.gguf"), sample(), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_modules_that_the_file_lacks_are_named(tmp_path: Path) -> None:
    path = language(tmp_path / "base.gguf", "Q8_0")
    a = adapter({"model.layers.9.self_attn.q_proj": low_rank(ROWS["attn_q"], 1)})
    with pytest.raises(AdapterError, match=r"model\.layers\.9"):
        run(path, a, tmp_path / "out.gguf")


def test_the_name_of_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loramerge.cli.main import main

    monkeypatch.chdir(tmp_path)
    language(tmp_path / "base.gguf", "Q8_0")
    lm.save(sample(0.5), tmp_path / "a.safetensors", dialect="kohya")
    assert main(["bake", "--base", "base.gguf", "a.safetensors"]) == 0
    assert (tmp_path / "base+a.gguf").is_file()
    assert "loramerge.recipe" in GgufFile(tmp_path / "base+a.gguf").metadata
    assert main(["bake", "--base", "base.gguf", "a.safetensors", "-o", "x.safetensors"]) == 2
    assert main(["inspect", "base+a.gguf"]) == 0


class Sent(Executor):
    """Runs what is sent to it in this process: all that it needs is pickled."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


def test_the_parts_of_a_bake_can_be_sent_to_other_processes(tmp_path: Path) -> None:
    path = language(tmp_path / "base.gguf", "Q8_0")
    run(path, sample(0.1), tmp_path / "here.gguf")
    run(path, sample(0.1), tmp_path / "there.gguf", executor=Sent())
    here, there = (tmp_path / f"{name}.gguf" for name in ("here", "there"))
    assert here.read_bytes() == there.read_bytes()
