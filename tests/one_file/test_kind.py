"""A kind is one file: made-up ones from outside the package work in every verb."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapter import kinds
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.dialects import DIALECTS
from loramerge.errors import AdapterError, FormatError, NotExpressible
from tests.builders.bases import read_safetensors, single
from tests.builders.samples import relative, safetensors_bytes
from tests.docs import reference, support

Array = np.ndarray[Any, Any]

# two kinds: one of factors, and one that multiplies the weight it changes
FILE = '''
"""ΔW = scale · x yᵀ + c, and ΔW = W ⊙ (x yᵀ)."""

from dataclasses import dataclass, replace
from typing import ClassVar

from loramerge.adapter.delta import Facts
from loramerge.adapter.floats import cast, put, times, values
from loramerge.adapter.kinds.bases.dependent import Dependent
from loramerge.adapter.kinds.bases.scale import Scale
from loramerge.adapter.kinds.bases.scaled import Scaled
from loramerge.adapter.kinds.declaration import Kind, MadeDelta


@dataclass(frozen=True, eq=False)
class Outer(Scaled):
    x: object
    y: object
    shape: tuple
    scale: Scale = Scale()
    kind: ClassVar[str] = "outer"
    rank: ClassVar[int] = 1
    carriers: ClassVar[tuple] = ("outer_x",)

    def factors(self, dtype="float32"):
        x, y = values(self.x, dtype), values(self.y, dtype)
        return times(x[:, None], self.factor), y[None]

    def dense(self, base=None, dtype="float64"):
        up, down = self.factors(dtype)
        return up @ down

    def stored(self):
        return {"outer_x": self.x, "outer_y": self.y}

    def row_adder(self, dtype="float32", read=None):
        up, down = self.factors(dtype)
        return lambda start, stop, base, out, fresh: put(up[start:stop] @ down, out, fresh)


@dataclass(frozen=True, eq=False)
class Gate(Dependent):
    x: object
    y: object
    shape: tuple
    weight: float = 1.0
    kind: ClassVar[str] = "gate"

    def stored(self):
        return {"gate_x": self.x, "gate_y": self.y}

    def scaled(self, weight):
        return replace(self, weight=self.weight * weight)

    def encoded(self, dtype, *, alpha):
        self.require_whole()
        found = self.stored()
        return {r: cast(values(t, "float64"), dtype or t.dtype, r) for r, t in found.items()}

    def changer(self, dtype, read):
        x, y = values(self.x, dtype), self.weight * values(self.y, dtype)
        return lambda start, stop, base: base * x[start:stop, None] * y


def outer(stored):
    found = stored.only("outer_x", "outer_y")
    if len(found) < 2:
        return None
    x, y = found["outer_x"], found["outer_y"]
    return MadeDelta(Outer(x, y, (x.size, y.size), stored.scale()), (*found, "alpha"))


def gate(stored):
    found = stored.only("gate_x", "gate_y")
    if len(found) < 2:
        return None
    x, y = found["gate_x"], found["gate_y"]
    return MadeDelta(Gate(x, y, (x.size, y.size)), tuple(found))


KINDS = (
    Kind(
        "outer",
        roles=("outer_x", "outer_y"),
        make=outer,
        suffixes={"lycoris": {"outer_x": (".outer_x",), "outer_y": (".outer_y",)}},
        always=("outer_x",),
        example={"outer_x": (16,), "outer_y": (16,)},
    ),
    Kind(
        "gate",
        roles=("gate_x", "gate_y"),
        make=gate,
        suffixes={"lycoris": {"gate_x": (".gate_x",), "gate_y": (".gate_y",)}},
        always=("gate_x",),
        example={"gate_x": (16,), "gate_y": (16,)},
    ),
)
'''

STEM = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
MODULE = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def offer(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a package of one file with an entry point."""
    (folder / f"{name}.py").write_text(text, "utf-8")
    described = folder / f"{name}-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(f"[{kinds.ENTRY_POINTS}]\n{name} = {name}\n")
    monkeypatch.syspath_prepend(folder)
    kinds.known_kinds.cache_clear()
    kinds.all_words.cache_clear()


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "outside"
    folder.mkdir()
    offer(folder, "kinds_from_outside", FILE, monkeypatch)
    yield
    kinds.known_kinds.cache_clear()
    kinds.all_words.cache_clear()


def vector(size: int, seed: int) -> Array:
    return np.random.default_rng([seed, size]).standard_normal(size).astype(np.float32)


def file_of(path: Path, kind: str, shape: tuple[int, ...], alpha: float | None = None) -> Path:
    tensors = {f"{STEM}.{kind}_x": vector(shape[0], 1), f"{STEM}.{kind}_y": vector(shape[1], 2)}
    if alpha is not None:
        tensors[f"{STEM}.alpha"] = np.array(alpha, np.float32)
    metadata = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
    path.write_bytes(safetensors_bytes(tensors, metadata))
    return path


def change(shape: tuple[int, ...], scale: float = 1.0) -> Array:
    x, y = (vector(n, seed).astype(np.float64) for n, seed in zip(shape, (1, 2), strict=True))
    return scale * np.outer(x, y)


def shape_at(base: Any) -> tuple[int, ...]:
    return tuple(base.weights[f"{MODULE}.weight"].shape)


@pytest.mark.usefixtures("made_up")
def test_a_kind_of_factors_works_in_every_verb(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sdxl")
    shape = shape_at(base)
    path = file_of(tmp_path / "a.safetensors", "outer", shape, alpha=0.5)
    a = lm.load(path)
    assert a.kinds() == {"outer": 1} and not a.info.account.unknown and a.ranks() == {1: 1}
    assert lm.inspect(a).kinds == {"outer": 1}
    (delta,) = a.deltas.values()
    assert relative(delta.dense(), change(shape, 0.5)) < 1e-7
    # mix, resize
    (doubled,) = lm.mix([(a, 2.0)]).deltas.values()
    assert relative(doubled.dense(), change(shape)) < 1e-6
    (both,) = lm.mix([(a, 2.0), (a, -1.0)]).deltas.values()
    assert both.kind == "lora" and relative(both.dense(), change(shape, 0.5)) < 1e-6
    (small,) = lm.resize(lm.mix([(a, 1.0), (a, 1.0)]), rank=1).deltas.values()
    assert relative(small.dense(), change(shape)) < 1e-6
    (plain,) = lm.convert(a, to_lora=True).deltas.values()
    assert plain.kind == "lora" and relative(plain.dense(), change(shape, 0.5)) < 1e-6
    # bake
    lm.bake(base.path, [(a, 0.7)], tmp_path / "baked.safetensors")
    name, before = next((n, w) for n, w in read_safetensors(base.path)[0].items() if _is_q(n))
    after = read_safetensors(tmp_path / "baked.safetensors")[0][name]
    moved = after.astype(np.float64) - before.astype(np.float64)
    assert relative(moved, change(shape, 0.35)) < 1e-5


def _is_q(name: str) -> bool:
    return name.endswith("input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight")


@pytest.mark.usefixtures("made_up")
def test_it_converts_among_the_dialects_that_hold_it(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.safetensors", "outer", (640, 640), alpha=0.5)
    held = [
        d.name for d in DIALECTS.values() if "lycoris" in {c for f in d.forms for c in f.containers}
    ]
    assert "kohya" in held and "diffusers" not in held
    save(load(path), tmp_path / "lycoris.safetensors", to="lycoris")
    back = load(tmp_path / "lycoris.safetensors")
    assert back.kinds() == {"outer": 1} and back.info.dialect == "lycoris"
    save(back, tmp_path / "b.safetensors", to="kohya")
    (delta,) = load(tmp_path / "b.safetensors").deltas.values()
    assert relative(delta.dense(), change((640, 640), 0.5)) < 1e-7
    with pytest.raises(NotExpressible):
        save(load(path), tmp_path / "c.safetensors", to="diffusers")


@pytest.mark.usefixtures("made_up")
def test_a_kind_that_needs_the_base_is_baked_and_else_refused(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sdxl")
    shape = shape_at(base)
    a = lm.load(file_of(tmp_path / "a.safetensors", "gate", shape))
    assert a.kinds() == {"gate": 1}
    with pytest.raises(AdapterError, match="depends on the base"):
        lm.resize(a, rank=1)
    lm.bake(base.path, [(a, 0.5)], tmp_path / "baked.safetensors")
    name, before = next((n, w) for n, w in read_safetensors(base.path)[0].items() if _is_q(n))
    after = read_safetensors(tmp_path / "baked.safetensors")[0][name]
    moved = after.astype(np.float64) - before.astype(np.float64)
    assert relative(moved, 0.5 * before.astype(np.float64) * change(shape)) < 1e-4


@pytest.mark.usefixtures("made_up")
def test_the_documents_have_a_row_of_it() -> None:
    support.samples.cache_clear()
    try:
        row = next(line for line in reference.table("kinds").splitlines() if "`outer`" in line)
    finally:
        support.samples.cache_clear()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == "`outer`" and cells[1 + list(DIALECTS).index("kohya")] == "yes"
    assert cells[1 + list(DIALECTS).index("diffusers")] == "–" and cells[-1] == "formula"


def test_two_kinds_of_one_suffix_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = FILE.replace('".outer_x"', '".hada_w1_a"')
    offer(tmp_path, "clashing_kind", text, monkeypatch)
    try:
        with pytest.raises(FormatError, match="two kinds of deltas have one suffix") as caught:
            kinds.known_kinds()
        assert "hada_w1_a" in str(caught.value) and "loha and outer" in str(caught.value)
    finally:
        kinds.known_kinds.cache_clear()


def test_without_it_the_tensors_are_unknown(tmp_path: Path) -> None:
    found = load(file_of(tmp_path / "a.safetensors", "outer", (8, 8)))
    assert json.dumps(sorted(found.info.account.unknown)) == json.dumps(
        [f"{STEM}.outer_x", f"{STEM}.outer_y"]
    )
