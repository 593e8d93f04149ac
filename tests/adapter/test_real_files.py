"""Files that people trained: nothing lost on reading, nothing changed on writing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loramerge.adapter import Adapter, Full, LowRank
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from tests.builders.samples import data_section, dense, read_safetensors, relative

REAL = {
    "analog_svd_rank4.safetensors": ("lora_diffusion", "sd15", {4: 192}),
    "lora_disney.safetensors": ("lora_diffusion", "sd15", {1: 192}),
    "hf_catundchat.safetensors": ("diffusers-legacy", "sd15", {4: 128}),
    "hf_timoha.safetensors": ("diffusers-legacy", "sd15", {4: 128}),
    "peft_gpt2": ("peft", None, None),
}


def weights(path: Path) -> Path:
    return path / "adapter_model.safetensors" if path.is_dir() else path


def bytes_known(adapter: Adapter) -> int:
    """Bytes of all tensors that are used or carried; alphas among them."""
    total = sum(tensor.nbytes for tensor in adapter.embeddings.values())
    for delta in adapter.deltas.values():
        total += sum(tensor.nbytes for tensor in delta.stored().values())
        scale = getattr(delta, "scale", None)
        if scale is not None and scale.stored is not None:
            total += scale.stored.nbytes
    return total


@pytest.mark.parametrize("name", REAL)
def test_every_tensor_and_byte_is_accounted_for(shared_data: Path, name: str) -> None:
    path = shared_data / "adapters" / name
    adapter = load(path).require_sound()
    account = adapter.info.account
    arrays, metadata = read_safetensors(weights(path))
    assert sorted([*account.used, *account.carried, *account.unknown]) == sorted(arrays)
    assert not account.unknown
    assert not adapter.info.problems
    assert bytes_known(adapter) == len(data_section(weights(path)))
    assert adapter.info.metadata == metadata
    assert adapter.info.size == sum(
        file.stat().st_size for file in ([path] if path.is_file() else path.iterdir())
    )


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_recognised(shared_data: Path, name: str) -> None:
    dialect, family, ranks = REAL[name]
    adapter = load(shared_data / "adapters" / name)
    assert adapter.info.dialect == dialect
    assert (adapter.family.name if adapter.family else None) == family
    assert set(adapter.kinds()) == {"lora"}
    if ranks is not None:
        assert adapter.ranks() == ranks


@pytest.mark.parametrize("name", REAL)
def test_reading_and_writing_changes_no_byte_of_the_data(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    path = shared_data / "adapters" / name
    again = tmp_path / name
    save(load(path), again)
    assert data_section(weights(again)) == data_section(weights(path))
    assert list(read_safetensors(weights(again))[0]) == list(read_safetensors(weights(path))[0])


@pytest.mark.long_tail(keep=2)
@pytest.mark.parametrize("name", [n for n in REAL if n != "peft_gpt2"])
def test_a_tour_through_kohya_and_back_changes_no_value(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    path = shared_data / "adapters" / name
    save(load(path), tmp_path / "kohya.safetensors", to="kohya")
    kohya = load(tmp_path / "kohya.safetensors")
    assert not kohya.info.account.unknown
    save(kohya, tmp_path / "back.safetensors", to=REAL[name][0])
    before, _ = read_safetensors(path)
    after, _ = read_safetensors(tmp_path / "back.safetensors")
    assert len(after) == len(before)
    first, second = load(path), load(tmp_path / "back.safetensors")
    assert first.deltas.keys() == second.deltas.keys()
    for site in list(first.deltas)[::29]:
        assert np.array_equal(first.deltas[site].dense(), second.deltas[site].dense())
    assert set(first.embeddings) == set(second.embeddings)


def test_a_positional_file_means_up_times_down(shared_data: Path) -> None:
    path = shared_data / "adapters" / "analog_svd_rank4.safetensors"
    arrays, _ = read_safetensors(path)
    delta = {s.name: d for s, d in load(path).deltas.items()}
    # the first block's places: attn1 q k v out, feed-forward, attn2 q k v out
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    expected = dense(arrays["unet:4:up"], arrays["unet:4:down"], 1.0)
    assert relative(delta[f"{name}.ff.net.0.proj"].dense(), expected) < 1e-12
    wrong = dense(arrays["unet:0:up"], arrays["unet:0:down"], 1.0)
    assert relative(delta[f"{name}.attn1.to_k"].dense(), wrong) > 0.5


def test_embeddings_travel_with_the_adapter(shared_data: Path, tmp_path: Path) -> None:
    adapter = load(shared_data / "adapters" / "lora_disney.safetensors")
    assert set(adapter.embeddings) == {"<s1>", "<s2>"} == set(adapter.info.account.carried)
    save(adapter, tmp_path / "kohya.safetensors", to="kohya")
    kohya = load(tmp_path / "kohya.safetensors")
    assert {t.shape for t in kohya.embeddings.values()} == {(1, 768)}
    save(kohya, tmp_path / "back.safetensors", to="lora_diffusion")
    back = load(tmp_path / "back.safetensors")
    for token, tensor in adapter.embeddings.items():
        assert bytes(back.embeddings[token].raw()) == bytes(tensor.raw())
        assert back.embeddings[token].shape == tensor.shape
    assert back.info.metadata["<s1>"] == "<embed>"


def test_a_peft_folder_of_a_foreign_model_is_opaque_but_whole(
    shared_data: Path, tmp_path: Path
) -> None:
    path = shared_data / "adapters" / "peft_gpt2"
    config = json.loads((path / "adapter_config.json").read_text("utf-8"))
    adapter = load(path)
    arrays, _ = read_safetensors(weights(path))
    site, delta = next(iter(adapter.deltas.items()))
    stem = f"base_model.model.{site.name}"
    scale = config["lora_alpha"] / config["r"]
    expected = dense(arrays[f"{stem}.lora_B.weight"], arrays[f"{stem}.lora_A.weight"], scale)
    assert relative(delta.dense(), expected) < 1e-12
    assert config["fan_in_fan_out"] is True
    save(adapter, tmp_path / "again")
    again = json.loads((tmp_path / "again" / "adapter_config.json").read_text("utf-8"))
    kept = (
        "fan_in_fan_out",
        "target_modules",
        "base_model_name_or_path",
        "task_type",
        "r",
        "lora_alpha",
    )
    assert {k: again.get(k) for k in kept} == {k: config.get(k) for k in kept}
    assert isinstance(delta, LowRank) and not isinstance(delta, Full)
