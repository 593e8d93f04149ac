"""Kinds beside LoRA on layers that a file stores fused: baked onto split bases, at a base, and cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter import Adapter
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.algebra.proof import prove
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.resize import resize
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.errors import AdapterError, UnsupportedKind
from loramerge.stream import rows as stream_rows
from loramerge.stream.against import against
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
from tests.builders.flux import (
    LAST,
    Tensors,
    diffusers_weights,
    native_weights,
    parts_of,
    write,
)
from tests.builders.kinds import Array, butterfly, decomposed, kron, product, rotated
from tests.builders.samples import relative
from tests.flux.test_bake import baked, distance, in_folder, single
from tests.tail import first

WIDTH = 16
QKV, LINEAR1 = "double_blocks.4.img_attn.qkv", "single_blocks.7.linear1"
PLACES = (QKV, LINEAR1, LAST)
EPS = float(np.finfo(np.float32).eps)
Made = tuple[Tensors, Callable[[Array], Array]]


def values(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def wide(array: Array) -> Array:
    return array.astype(np.float64)


def _loha(out: int, inside: int) -> Made:
    a1, b1, a2, b2 = (values(*s, seed=i) for i, s in enumerate([(out, 2), (2, inside)] * 2))
    step = 0.5 * product(a1, b1, (out, inside)) * product(a2, b2, (out, inside))
    tensors = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2}
    return tensors | {"alpha": np.float32(1.0)}, lambda base: step


def _lokr(blocks: int) -> Callable[[int, int], Made]:
    def make(out: int, inside: int) -> Made:
        w1, a, b = values(blocks, 2), values(out // blocks, 2), values(2, inside // 2)
        step = 0.5 * kron(wide(w1), wide(a) @ wide(b))
        tensors = {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": np.float32(1.0)}
        return tensors, lambda base: step

    return make


def _dora(axis: str) -> Callable[[int, int], Made]:
    def make(out: int, inside: int) -> Made:
        up, down = values(out, 2), values(2, inside)
        m = np.abs(values(out, 1) if axis == "out" else values(1, inside)) + 1
        step = 0.5 * product(up, down, (out, inside))
        tensors = {"lora_up.weight": up, "lora_down.weight": down, "alpha": np.float32(1.0)}
        return tensors | {"dora_scale": m}, lambda base: decomposed(base, step, m, axis, EPS)

    return make


def _ia3(axis: int) -> Callable[[int, int], Made]:
    def make(out: int, inside: int) -> Made:
        x = values(inside if axis else out)
        column = wide(x) if axis else wide(x)[:, None]
        return {"weight": x, "on_input": np.array(axis, np.int64)}, lambda base: base * column

    return make


def _oft(size: int) -> Callable[[int, int], Made]:
    def make(out: int, inside: int) -> Made:
        blocks = 0.3 * values(out // size, size, size)
        tensors = {"oft_blocks": blocks, "alpha": np.float32(0.0)}
        return tensors, lambda base: rotated(blocks, base, 0.0) - base

    return make


def _boft(out: int, inside: int) -> Made:
    blocks = 0.3 * values(3, out // 4, 4, 4)
    tensors = {"oft_blocks": blocks, "alpha": np.float32(0.0)}
    return tensors, lambda base: butterfly(blocks, base, 0.0) - base


def _glora(out: int, inside: int) -> Made:
    a1, a2, b1, b2 = values(inside, 2), values(2, inside), values(out, 2), values(2, inside, seed=4)
    names = {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2}
    mix, step = wide(a1) @ wide(a2), product(b1, b2, (out, inside))
    return names | {"alpha": np.float32(1.0)}, lambda base: 0.5 * (base @ mix + step)


KINDS: dict[str, Callable[[int, int], Made]] = {
    "loha": _loha,
    "lokr of whole blocks": _lokr(1),
    "lokr across the borders": _lokr(2),
    "dora of outputs": _dora("out"),
    "dora of inputs": _dora("in"),
    "ia3 of outputs": _ia3(0),
    "ia3 of inputs": _ia3(1),
    "oft of whole blocks": _oft(8),
    "oft across the borders": lambda out, inside: _oft(out // 2)(out, inside),
    "boft": _boft,
    "glora": _glora,
}
# kinds whose parts are such deltas themselves, on layers of three parts and of four
PARTS = (
    "loha",
    "dora of outputs",
    "ia3 of outputs",
    "ia3 of inputs",
    "oft of whole blocks",
    "glora",
)


def adapter_of(folder: Path, kind: str, native: Tensors, places: Any = PLACES) -> Path:
    """A kohya file of one kind on layers of the original network."""
    tensors: Tensors = {}
    for place in places:
        made, _ = KINDS[kind](*native[f"{place}.weight"].shape)
        stem = f"lora_unet_{place.replace('.', '_')}"
        tensors |= {f"{stem}.{end}": np.asarray(value) for end, value in made.items()}
    # of a few blocks whose shapes do not show, names alone could be of a Flux.2 as well
    return write(tensors, folder / "adapter.safetensors", {"ss_base_model_version": "flux1"})


def changes(kind: str, native: Tensors, places: Any = PLACES) -> dict[str, Array]:
    """What the file means for the original layers, each as a whole."""
    found = {}
    for place in places:
        base = wide(native[f"{place}.weight"])
        found[place] = KINDS[kind](*base.shape)[1](base)
    return found


def expected(kind: str, native: Tensors) -> Tensors:
    whole = {n: wide(v) for n, v in native.items()}
    for place, change in changes(kind, native).items():
        whole[f"{place}.weight"] = whole[f"{place}.weight"] + 0.5 * change
    return diffusers_weights(whole)


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_rows, "BLOCK_ELEMENTS", 100)  # borders that no block of rows heeds


@pytest.mark.long_tail(keep=5)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_layer_is_baked_into_either_layout(kind: str, tmp_path: Path) -> None:
    native = native_weights(WIDTH)
    adapter = adapter_of(tmp_path, kind, native)
    wanted = expected(kind, native)
    one = baked(single(tmp_path, "", native), adapter, tmp_path / "one.safetensors")
    assert distance(diffusers_weights(one), wanted) < 1e-4
    other = baked(in_folder(tmp_path, native), adapter, tmp_path / "other")
    assert distance(other, wanted) < 1e-4


def test_each_part_for_itself_would_be_seen() -> None:
    """Norms and rotations of parts, as where q, k and v are taken for three DoRAs."""
    native = native_weights(WIDTH)
    base = wide(native[f"{QKV}.weight"])
    for kind in ("dora of inputs", "oft across the borders", "boft"):
        change = KINDS[kind](*base.shape)[1]
        alone = np.concatenate([change(np.roll(base, -i * WIDTH, 0))[:WIDTH] for i in range(3)])
        assert relative(change(base), alone) > 1e-2
    tensors, change = KINDS["dora of inputs"](*base.shape)
    step = 0.5 * product(tensors["lora_up.weight"], tensors["lora_down.weight"], base.shape)
    rows = [slice(i * WIDTH, (i + 1) * WIDTH) for i in range(3)]
    parts = [decomposed(base[r], step[r], tensors["dora_scale"], "in", EPS) for r in rows]
    assert relative(change(base), np.concatenate(parts)) > 1e-2


@pytest.mark.long_tail(keep=3)
@pytest.mark.parametrize("kind", first(5, KINDS))
def test_at_a_base_of_either_layout_it_is_the_same(kind: str, tmp_path: Path) -> None:
    native = native_weights(WIDTH)
    adapter = load(adapter_of(tmp_path, kind, native)).require_sound()
    for base in (single(tmp_path, "", native), in_folder(tmp_path, native)):
        plain = against(adapter, open_checkpoint(base))
        save(plain, tmp_path / "split.safetensors", to="onetrainer", force=True)
        found = _dense(load(tmp_path / "split.safetensors"))
        for place, change in changes(kind, native).items():
            for module, rows in parts_of(place, change).items():
                assert relative(found[module], rows) < 1e-5, module
        small, _ = resize(plain, RankRule(rank=3), threads=1)
        assert max(small.ranks()) <= 3


def _dense(adapter: Adapter) -> dict[str, Array]:
    return {site.name: delta.dense() for site, delta in adapter.deltas.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_converted_it_stays_of_its_kind_or_is_refused(kind: str, tmp_path: Path) -> None:
    native = native_weights(WIDTH)
    adapter = load(adapter_of(tmp_path, kind, native, (QKV, LINEAR1))).require_sound()
    there = tmp_path / "there.safetensors"
    if not kind.startswith("lokr") and kind not in PARTS:
        with pytest.raises(UnsupportedKind, match="cannot be cut") as caught:
            save(adapter, there, to="onetrainer")
        assert "to_lora=True base=" in str(caught.value)
        return
    save(adapter, there, to="onetrainer")
    back = load(there).require_sound()
    prove(adapter, back)
    if kind in PARTS:
        assert back.kinds().keys() == adapter.kinds().keys()
    for place, change in changes(kind, native, (QKV, LINEAR1)).items():
        base = parts_of(place, wide(native[f"{place}.weight"]))
        for module, rows in parts_of(place, change).items():
            (delta,) = [d for s, d in back.deltas.items() if s.name == module]
            found = delta.dense(base[module] if delta.needs_base else None)
            assert relative(found, rows) < 1e-6, module


def test_parts_of_a_base_that_is_not_whole(tmp_path: Path) -> None:
    """A base without some of the modules cannot give the norms over all of them."""
    native = native_weights(WIDTH)
    folder = in_folder(tmp_path, native)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = diffusers_weights(native)
    del weights["transformer_blocks.4.attn.to_k.weight"]
    write(weights, file)
    adapter = load(adapter_of(tmp_path, "dora of inputs", native, (QKV,)))
    with pytest.raises(AdapterError, match="needs the weights of all of them") as caught:
        plan_bake(open_checkpoint(folder), [(adapter, Weight())], skip_missing=["all"])
    assert caught.value.module is not None and "to_q+to_k+to_v" in caught.value.module
    adapter = load(adapter_of(tmp_path, "dora of outputs", native, (QKV,)))
    plan = plan_bake(open_checkpoint(folder), [(adapter, Weight())], skip_missing=["all"])
    bake(plan, tmp_path / "out")
    assert plan.skipped == ["transformer.transformer_blocks.4.attn.to_k"]
