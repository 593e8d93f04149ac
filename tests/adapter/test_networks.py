"""Files of one network of two, in words that do not say which: the header does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapter import Adapter
from loramerge.adapter.load import load
from loramerge.adapter.metadata import NETWORK
from loramerge.adapter.readers import readings
from loramerge.errors import NotExpressible
from tests.adapter.test_no_module_is_lost import tensors_of, write
from tests.builders.bases import write_safetensors
from tests.builders.commands import Runner
from tests.builders.samples import read_safetensors

NETWORKS = ("transformer", "transformer_2")
WORDS = {
    "comfyui": "diffusion_model.blocks.0.self_attn.q",
    "kohya": "lora_unet_blocks_0_self_attn_q",
}


def _both(folder: Path) -> Path:
    stems = {f"{n}.blocks.{i}.attn1.to_q": (5120, 5120) for n in NETWORKS for i in (0, 39)}
    return write(folder / "both.safetensors", tensors_of(stems))


def _half(run: Runner, network: str, dialect: str) -> Path:
    if not (run.folder / "both.safetensors").exists():
        _both(run.folder)
    out = f"{network}-{dialect}.safetensors"
    run.ok("convert", "both.safetensors", "--keep", network, "--to", dialect, "-o", out)
    return run.folder / out


def _same(found: Adapter, expected: Adapter) -> bool:
    return set(found) == set(expected) and all(
        np.array_equal(stored.numpy(), expected[name].stored()[role].numpy())
        for name in found
        for role, stored in found[name].stored().items()
    )


@pytest.mark.parametrize("dialect", WORDS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_half_is_written_with_plain_names_and_comes_back(
    network: str, dialect: str, run: Runner
) -> None:
    half = _half(run, network, dialect)
    tensors, metadata = read_safetensors(half)
    stems = {key.partition(".lora")[0].partition(".alpha")[0] for key in tensors}
    assert stems == {WORDS[dialect].replace("0", i) for i in ("0", "39")}
    assert metadata[NETWORK] == network
    assert set(load(half).components()) == {network}
    run.ok("convert", half.name, "--to", "diffusers", "-o", "back.safetensors")
    run.ok("convert", "both.safetensors", "--keep", network, "-o", "kept.safetensors")
    assert _same(load("back.safetensors"), load("kept.safetensors"))
    assert NETWORK not in read_safetensors(Path("back.safetensors"))[1]
    run.ok("resize", half.name, "--rank", "1", "-o", "small.safetensors")
    assert set(load("small.safetensors").components()) == {network}
    assert read_safetensors(Path("small.safetensors"))[1][NETWORK] == network


def test_programs_are_told_to_read_it_by_its_plain_names(run: Runner) -> None:
    for network in NETWORKS:
        found = {r.program.name: r.whole for r in readings(load(_half(run, network, "comfyui")))}
        assert found["comfyui"]
        found = {r.program.name: r.whole for r in readings(load(_half(run, network, "kohya")))}
        assert found["musubi"]


def test_halves_are_mixed_with_their_own_and_not_with_each_other(run: Runner) -> None:
    low, flat = _half(run, "transformer_2", "comfyui"), _half(run, "transformer_2", "kohya")
    high = _half(run, "transformer", "comfyui")
    for names, network in (((low, flat), "transformer_2"), ((high, high), "transformer")):
        lm.save(
            lm.mix([(str(name), 0.5) for name in names]), "mixed.safetensors", dialect="comfyui"
        )
        assert read_safetensors(Path("mixed.safetensors"))[1][NETWORK] == network
        Path("mixed.safetensors").unlink()
    both = lm.mix([(str(low), 1.0), (str(high), 1.0)])
    with pytest.raises(NotExpressible, match="comfyui files cannot store") as caught:
        lm.save(both, "mixed.safetensors", dialect="comfyui")
    assert "diffusers" in str(caught.value) and "for one network" in str(caught.value)
    lm.save(both, "mixed.safetensors")  # in a dialect that has words for both
    assert load("mixed.safetensors").info.dialect == "diffusers"
    assert _same(load("mixed.safetensors"), load("both.safetensors"))


def test_an_entry_about_keys_that_say_it_themselves_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    stems = {
        "transformer.blocks.0.attn1.to_q": (16, 16),
        "transformer.blocks.1.attn1.to_q": (16, 16),
    }
    write_safetensors(path, tensors_of(stems), {NETWORK: "transformer_2"})
    assert set(load(path).components()) == {"transformer"}
    write_safetensors(path, tensors_of({"lora_unet_x": (4, 4)}), {NETWORK: "transformer_2"})
    load(path)
