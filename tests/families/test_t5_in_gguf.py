"""T5 encoders in GGUF files have the names of llama.cpp, and adapters bake into these."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.families import FAMILIES
from loramerge.families.llama_cpp import t5_stem
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
from tests.builders.deltas import adapter, low_rank
from tests.builders.gguf import data_of, values_of, write_gguf
from tests.builders.samples import relative

ENCODERS = {
    "flux1": "text_encoder_2", "sd3": "text_encoder_3", "chroma": "text_encoder",
    "pixart": "text_encoder", "hidream-i1": "text_encoder_3", "wan": "text_encoder",
}  # fmt: skip
LAYERS = ("0.SelfAttention.q", "1.DenseReluDense.wi_0", "1.DenseReluDense.wo")


def shrunk(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(min(axis, 8 + axis // 2048) for axis in shape)


@pytest.mark.parametrize(
    "family", ["flux1", "wan", pytest.param("pixart", marks=pytest.mark.long_tail)]
)
def test_adapters_of_the_encoder_bake_into_it(family: str, tmp_path: Path) -> None:
    component = next(c for c in FAMILIES[family].components if c.name == ENCODERS[family])
    random = np.random.default_rng(0)
    tensors = {
        f"{t5_stem(module.path)}.weight":
            (random.standard_normal(shrunk(module.shape)), "F32", shrunk(module.shape))
        for module in component.modules
    }  # fmt: skip
    base = write_gguf(tmp_path / "t5.gguf", tensors, {"general.architecture": "t5encoder"})
    checkpoint = open_checkpoint(base)
    assert family in {one.name for one in checkpoint.candidates}
    paths = {f"{component.name}.encoder.block.3.layer.{layer}" for layer in LAYERS}
    shapes = {path: shrunk(FAMILIES[family].find(path).shape) for path in paths}
    deltas = {path: low_rank(shape, 2, seed=len(path)) for path, shape in shapes.items()}
    made = adapter(deltas, families=[family])
    bake(plan_bake(checkpoint, [(made, Weight())]), tmp_path / "out.gguf")
    before, after = data_of(base), data_of(tmp_path / "out.gguf")
    changed = {}
    for name, (kind, shape, raw) in after.items():
        if raw != before[name][2]:
            old = values_of(kind, before[name][2])
            changed[name] = (values_of(kind, raw) - old).reshape(shape)
    assert changed.keys() == {
        f"{t5_stem(path.removeprefix(f'{component.name}.'))}.weight" for path in paths
    }
    for path, delta in deltas.items():
        name = f"{t5_stem(path.removeprefix(f'{component.name}.'))}.weight"
        assert relative(changed[name], delta.dense()) < 1e-5


def test_all_families_of_the_encoder_know_the_names() -> None:
    """Every family with T5 has the layout, and no two layers share a tensor."""
    for name, component in ENCODERS.items():
        family = FAMILIES[name]
        (spelling,) = (s for s in family.spellings[component] if s.layout == "llama.cpp")
        found = next(c for c in family.components if c.name == component)
        tensors = spelling.tensors(found)
        assert len(set(tensors)) == len(tensors) == len(found.modules)
        assert family.occurs_in("\n".join(tensors))
