"""Kinds that only PEFT has: read alone, and in every verb with a base that agrees by names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapter import Site
from loramerge.adapter.formats.peft_fields import FIELDS
from loramerge.adapter.formats.peft_types import OTHERS, REFUSED
from loramerge.adapter.kinds.bases.draws import first_of_permutation
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.errors import AdapterError, FormatError, LoramergeError
from loramerge.files.reader import TensorFile
from loramerge.files.views import same_bytes
from tests.builders.bases import read_safetensors, write_safetensors
from tests.builders.kinds import values
from tests.builders.peft_kinds import IN, OUT, SAMPLES, PeftSample, write
from tests.builders.samples import data_section, relative, safetensors_bytes

STEM = "model.layers.0.mlp.up_proj"
BASE = values(OUT, IN, seed=9)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}), "utf-8")
    tensors = {f"{STEM}.weight": BASE, "model.norm.weight": values(IN)}
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.mark.parametrize("name", SAMPLES)
def test_it_means_what_peft_says(name: str, tmp_path: Path) -> None:
    sample = SAMPLES[name]
    adapter = load(write(tmp_path / "a", sample, STEM)).require_sound()
    (delta,) = (d for site, d in adapter.deltas.items() if site.parameter == "weight")
    assert not adapter.info.account.unknown and delta.kind == sample.kind
    assert delta.needs_base == (sample.needs_base or sample.shapeless)
    if not delta.needs_base:
        assert delta.shape == (OUT, IN)
    else:
        with pytest.raises(AdapterError, match=r"depends on the base|is not known"):
            delta.dense()
    expected = sample.expected(BASE)
    assert relative(delta.dense(BASE if delta.needs_base else None), expected) < 1e-6
    placed = delta.at((OUT, IN))
    assert placed.needs_base == sample.needs_base
    if placed.rank is not None:
        up, down = placed.factors("float64")
        assert relative(up @ down, expected) < 1e-6
    out = np.ones((5, IN))
    rows = placed.row_adder("float64", lambda start, stop: BASE[start:stop].astype(np.float64))
    rows(7, 12, BASE[7:12].astype(np.float64), out, False)
    assert relative(out - 1, expected[7:12]) < 1e-6
    half = delta.scaled(0.5)
    assert relative(half.dense(BASE if half.needs_base else None), expected / 2) < 1e-6


@pytest.mark.parametrize("name", SAMPLES)
def test_it_works_in_every_verb(name: str, base: Path, tmp_path: Path) -> None:
    sample = SAMPLES[name]
    folder = write(tmp_path / "a", sample, STEM)
    expected = sample.expected(BASE)
    # bake
    lm.bake(base, [(folder, 0.5)], tmp_path / "baked")
    after = read_safetensors(tmp_path / "baked" / "model.safetensors")[0][f"{STEM}.weight"]
    assert relative(after.astype(np.float64) - BASE, expected / 2) < 1e-4
    # mix, resize and convert
    against = {"base": base} if sample.needs_base or sample.shapeless else {}
    (mixed,) = weights(lm.mix([(folder, 0.5), (folder, 0.25)], **against))
    assert relative(mixed.dense(), 0.75 * expected) < 1e-5
    (cut,) = weights(lm.resize(folder, rank=1, **against))
    sizes = np.linalg.svd(expected, compute_uv=False)
    error = np.linalg.norm(cut.dense() - expected)
    assert cut.kind == "lora" and error < 1.0001 * np.linalg.norm(sizes[1:]) + 1e-5
    (plain,) = weights(lm.convert(folder, to_lora=True, rank=IN, **against))
    assert plain.kind == "lora" and relative(plain.dense(), expected) < 1e-5


def weights(adapter: Any) -> list[Any]:
    return [delta for site, delta in adapter.deltas.items() if site.parameter == "weight"]


@pytest.mark.parametrize("name", SAMPLES)
def test_a_folder_is_written_again_as_it_was(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", SAMPLES[name], STEM)
    save(load(folder), tmp_path / "b", to="peft")
    first, again = (
        TensorFile(f / "adapter_model.safetensors").tensors for f in (folder, tmp_path / "b")
    )
    extra = {f"base_model.model.{STEM}.{n}" for n in SAMPLES[name].shared if name == "randlora"}
    assert again.keys() - extra == first.keys()
    for key, value in first.items():
        assert same_bytes(again[key], value), key
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text("utf-8"))
    assert SAMPLES[name].config.items() <= config.items() and config["target_modules"] == [STEM]


def test_a_shape_that_the_base_contradicts_is_refused(tmp_path: Path) -> None:
    delta = next(iter(load(write(tmp_path / "a", SAMPLES["vera"], STEM)).deltas.values()))
    with pytest.raises(LoramergeError, match="does not have the shape"):
        delta.at((OUT + 1, IN))


SEEDED = ("fourierft", "waveft")


@pytest.mark.parametrize("name", SEEDED)
def test_a_seeded_kind_without_its_configuration_is_refused(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", SAMPLES[name], STEM)
    (folder / "adapter_config.json").unlink()
    found = load(folder / "adapter_model.safetensors")
    assert not found.deltas and any("adapter_config.json" in p.message for p in found.info.problems)


def without(sample: PeftSample, *names: str) -> PeftSample:
    rest = {key: value for key, value in sample.tensors.items() if key not in names}
    return PeftSample(sample.kind, sample.config, rest, sample.change)


@pytest.mark.parametrize(
    ("name", "left_out", "remedy"),
    [
        ("vera", (), "save_projection=True"),
        ("pvera", (), "save_projection=True"),
        ("randlora", (), "save_projection=True"),
        ("tinylora", ("tinylora_P",), "save_projection=True"),
        ("supertuning", ("supertuning_indices",), "save_precomputed_indices=True"),
        ("delora", ("delora_w_norm",), "with its base"),
        ("vblora", (), "again in PEFT"),
        ("unilora", (), "again in PEFT"),
    ],
)
def test_what_peft_draws_or_finds_again_is_named(
    name: str, left_out: tuple[str, ...], remedy: str, tmp_path: Path
) -> None:
    found = load(write(tmp_path / "a", without(SAMPLES[name], *left_out), STEM))
    assert not found.deltas
    assert any("lacks" in p.message and remedy in p.remedy for p in found.info.problems)


@pytest.mark.parametrize("name", REFUSED)
def test_a_type_that_is_no_change_of_weights_is_refused_with_the_reason(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": name}), "utf-8")
    (tmp_path / "adapter_model.safetensors").write_bytes(safetensors_bytes({}))
    with pytest.raises(FormatError) as caught:
        lm.load(tmp_path)
    assert REFUSED[name].reason in str(caught.value)


def test_every_type_has_a_sample() -> None:
    tried = {sample.config["peft_type"] for sample in SAMPLES.values()}
    beside = {"BEFT", "LN_TUNING", "TRAINABLE_TOKENS"}  # of biases, norms and embeddings
    assert tried | beside == OTHERS.keys() and not FIELDS.keys() & REFUSED.keys()


def test_several_vectors_of_a_tinylora_are_told_by_the_projections_they_drew(
    tmp_path: Path,
) -> None:
    # the first 8 of torch.normal(0, 1, (32,)) after manual_seed(42) and manual_seed(43)
    found = {}
    for number, layer in enumerate(("b", "a")):
        uniform = np.random.RandomState(42 + number)
        raw = uniform.randint(0, 2**32, 16, dtype=np.uint32) & 0xFFFFFF
        u = raw / 2.0**24
        first = np.sqrt(-2 * np.log(1 - u[:8])) * np.cos(2 * np.pi * u[8:])
        p = (
            np.concatenate([first, np.zeros(24)]).reshape(8, 2, 2).astype(np.float32)
            / np.float32(2) ** 0.5
        )
        stem = f"base_model.model.{layer}"
        found |= {
            f"{stem}.tinylora_P": p,
            f"{stem}.tinylora_A": values(2, IN),
            f"{stem}.tinylora_B": values(OUT, 2),
        }
        found[f"base_model.tinylora_v.{number}"] = values(8, seed=number)
    sample = SAMPLES["tinylora"]
    folder = write(tmp_path / "a", sample, STEM)
    write_safetensors(folder / "adapter_model.safetensors", found)
    adapter = load(folder).require_sound()
    for number, layer in enumerate(("b", "a")):
        delta = adapter.deltas[Site((layer,))]
        assert np.array_equal(delta.stored()["tinylora_v"].numpy(), values(8, seed=number))
    save(adapter, tmp_path / "b", to="peft")
    weights_file = "adapter_model.safetensors"
    assert data_section(tmp_path / "b" / weights_file) == data_section(folder / weights_file)
    with pytest.raises(LoramergeError, match="counts the layers"):
        save(
            adapter.with_deltas({Site(("a",)): adapter.deltas[Site(("a",))]}),
            tmp_path / "c",
            to="peft",
        )


def test_draws_are_those_of_torch() -> None:
    # torch.randperm(384, generator=torch.Generator().manual_seed(777))[:6]
    assert first_of_permutation(384, 6, 777).tolist() == [359, 192, 99, 0, 159, 189]
    whole = first_of_permutation(10, 10, 5)
    assert sorted(whole) == list(range(10)) and first_of_permutation(1, 1, 0).tolist() == [0]
