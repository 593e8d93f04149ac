"""Extraction from Flux: the same change out of the original single file and diffusers' folder.

Dialects that store queries, keys and values fused get one LoRA of them, of the rank that is asked for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from tests.builders.flux import dense, meaning, native_weights, worst
from tests.builders.samples import read_safetensors
from tests.flux.test_bake import fused_adapter, in_folder, single

RANK = 3  # of the adapter, for every tensor that the original stores


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base in two layouts, an adapter of every layer, and both with it baked in."""
    folder = tmp_path_factory.mktemp("flux")
    native = native_weights(16)
    found = {"file": single(folder, "", native), "folder": in_folder(folder, native)}
    found["adapter"] = fused_adapter(folder, native)
    for layout in ("file", "folder"):
        output = folder / f"tuned-{found[layout].name}"
        lm.bake(found[layout], found["adapter"], output)
        found[f"tuned {layout}"] = output
    return found


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize(
    ("tuned", "base"), [("file", "file"), ("folder", "folder"), ("folder", "file")]
)
def test_the_adapter_comes_back(checkpoints: dict[str, Path], tuned: str, base: str) -> None:
    found = lm.extract(checkpoints[f"tuned {tuned}"], checkpoints[base], rank=RANK, to="kohya")
    assert found.ranks() == {RANK: len(found)}
    assert any(len(site.modules) > 1 for site in found.deltas)
    asked = meaning(read_safetensors(checkpoints["adapter"])[0])
    assert worst(dense(found), asked) < 1e-3


def test_what_is_apart_in_the_dialect_is_cut_apart(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    tuned, base = checkpoints["tuned file"], checkpoints["file"]
    fused = lm.extract(tuned, base, rank=RANK, to="kohya")
    apart = lm.extract(tuned, base, rank=RANK, to="diffusers")
    assert all(len(site.modules) == 1 for site in apart.deltas) and len(apart) > len(fused)
    ours, theirs = dense(apart), dense(fused)
    assert ours.keys() == theirs.keys()
    assert all(np.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)
    lm.save(fused, tmp_path / "out.safetensors", dialect="kohya")
    assert lm.load(tmp_path / "out.safetensors").ranks() == {RANK: len(fused)}
