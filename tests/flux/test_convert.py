"""convert between dialects that store modules fused and those that do not, proven through the file."""

from __future__ import annotations

import numpy as np
import pytest

from loramerge.adapter.load import load
from loramerge.algebra.proof import prove
from loramerge.cli.main import main
from loramerge.errors import NumericsError
from tests.builders.flux import dense, worst, write
from tests.builders.samples import read_safetensors, safetensors_bytes
from tests.tail import first

RANK, WIDTH = 4, 3072
STEM = "lora_unet_double_blocks_{}_img_attn_qkv"


@pytest.fixture
def fused(tmp_path):
    """A kohya file of two fused sites: one of one down for all parts, one with a part of zeros."""
    random = np.random.default_rng(5)
    tensors = {}
    for block in (0, 1):
        up = random.normal(0, 0.1, (3 * WIDTH, RANK)).astype(np.float16)
        if block:
            up[WIDTH : 2 * WIDTH] = 0
        stem = STEM.format(block)
        tensors[f"{stem}.lora_up.weight"] = up
        tensors[f"{stem}.lora_down.weight"] = random.normal(0, 0.1, (RANK, WIDTH)).astype(
            np.float16
        )
        tensors[f"{stem}.alpha"] = np.array(2.0, np.float16)
    return write(tensors, tmp_path / "fused.safetensors")


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("to", first(3, ["diffusers", "comfyui", "onetrainer", "xlabs", "kohya"]))
def test_there_and_back_is_proven_and_the_same(fused, to, tmp_path, capsys):
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    assert main(["convert", str(fused), "--to", to, "-o", str(there)]) == 0
    assert main(["convert", str(there), "--to", "kohya", "-o", str(back)]) == 0
    assert worst(dense(load(there)), dense(load(fused))) < 1e-3
    assert worst(dense(load(back)), dense(load(fused))) < 1e-3
    capsys.readouterr()


def _swapped(tensors):
    """The same file with the rows of q and v exchanged: the field's real mistake."""
    wrong = {}
    for key, value in tensors.items():
        other = key.replace("to_q", "#").replace("to_v", "to_q").replace("#", "to_v")
        wrong[other] = value
    return wrong


def _weaker(tensors):
    return {k: v / 3 if ".lora_B" in k else v for k, v in tensors.items()}


def _without_one(tensors):
    return {k: v for k, v in tensors.items() if "blocks.0.attn.to_k" not in k}


@pytest.mark.parametrize("wrong", [_swapped, _weaker, _without_one])
def test_a_wrong_split_is_refused(fused, wrong, tmp_path, capsys):
    there = tmp_path / "there.safetensors"
    assert main(["convert", str(fused), "--to", "diffusers", "-o", str(there)]) == 0
    capsys.readouterr()
    prove(load(fused), load(there))
    arrays, _ = read_safetensors(there)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(safetensors_bytes(wrong({k: np.array(v) for k, v in arrays.items()})))
    with pytest.raises(NumericsError):
        prove(load(fused), load(bad))
