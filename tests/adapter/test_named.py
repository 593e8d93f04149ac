"""Adapters' own names inside keys: of one, and of several in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapter.load import load
from loramerge.errors import FormatError
from tests.builders.commands import Runner
from tests.builders.kinds import values
from tests.builders.samples import relative, safetensors_bytes

STEM = "transformer.single_transformer_blocks.3.attn.to_q"


def factors(name: str, seed: int) -> dict[str, Any]:
    return {
        f"{STEM}.lora_A.{name}.weight": values(2, 3072, seed=seed),
        f"{STEM}.lora_B.{name}.weight": values(3072, 2, seed=seed),
    }


def written(path: Path, *names: str) -> Path:
    tensors = {
        key: value for i, name in enumerate(names) for key, value in factors(name, i).items()
    }
    path.write_bytes(safetensors_bytes(tensors))
    return path


def test_one_name_needs_no_choice(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", "default_0")
    adapter = load(path).require_sound()
    assert adapter.info.detection.naming is not None and len(adapter.deltas) == 1
    (chosen,) = load(f"{path}#default_0").deltas.values()
    assert relative(chosen.dense(), next(iter(adapter.deltas.values())).dense()) == 0


def test_of_several_one_is_chosen(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", "style", "face")
    with pytest.raises(FormatError, match="holds 2 adapters") as caught:
        load(path)
    assert "style, face" in str(caught.value) and f"{path}#style" in str(caught.value)
    for seed, name in enumerate(("style", "face")):
        up, down = values(3072, 2, seed=seed), values(2, 3072, seed=seed)
        (delta,) = load(f"{path}#{name}").require_sound().deltas.values()
        assert np.array_equal(delta.stored()["up"].numpy(), up)
        assert np.array_equal(delta.stored()["down"].numpy(), down)
    with pytest.raises(FormatError, match="no adapter of the name 'fase'") as caught:
        load(f"{path}#fase")
    assert "face" in str(caught.value)


def test_it_is_mixed_by_its_reference(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", "style", "face")
    (both,) = lm.mix([(f"{path}#style", 0.5), (f"{path}#face", 1.0)]).deltas.values()
    first, second = (values(3072, 2, seed=s) @ values(2, 3072, seed=s) for s in (0, 1))
    assert relative(both.dense(dtype="float32"), 0.5 * first + second) < 1e-5


def test_a_header_says_which_was_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Runner(tmp_path, capsys)
    written(tmp_path / "a.safetensors", "style", "face")
    out = tmp_path / "small.safetensors"
    assert run("resize", tmp_path / "a.safetensors#face", "--rank", "1", "-o", out).code == 0
    assert run("run", out).code == 0


def test_a_file_whose_own_name_has_the_sign_is_that_file(tmp_path: Path) -> None:
    path = written(tmp_path / "a#b.safetensors", "style")
    assert load(path).deltas and load(f"{path}#style").deltas
