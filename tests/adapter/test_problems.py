"""What is wrong with a file is listed on reading, and refused on computing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from loramerge.adapter import Adapter
from loramerge.adapter.load import load
from loramerge.algebra.health import examine
from loramerge.errors import AdapterError
from loramerge.files.tensors import ArrayTensor
from loramerge.files.writer import write_tensors
from tests.builders.samples import (
    Array,
    Sample,
    adaptable,
    attention,
    make,
    safetensors_bytes,
    stem_of,
    write,
)

Spoil = Callable[[dict[str, Array], str], None]
NAME = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k"
STEM = stem_of("kohya", "sd15", NAME)


def few(alpha: float | None = 2.0) -> Sample:
    modules = {n: m for n, m in attention("sd15").items() if "mid_block" in n}
    return make("sd15", "kohya", modules, alpha=alpha)


def loaded(sample: Sample, folder: Path) -> Adapter:
    return load(write(sample, folder / "a.safetensors"))


def drop(end: str) -> Spoil:
    def spoil(tensors: dict[str, Array], stem: str) -> None:
        del tensors[stem + end]

    return spoil


def put(end: str, value: Array) -> Spoil:
    def spoil(tensors: dict[str, Array], stem: str) -> None:
        tensors[stem + end] = value

    return spoil


SPOILED: dict[str, tuple[Spoil, str, str]] = {
    "no up": (drop(".lora_up.weight"), "missing-partner", "alpha, down without"),
    "no down": (drop(".lora_down.weight"), "missing-partner", "alpha, up without"),
    "a core that does not fit": (
        put(".lora_mid.weight", np.zeros((3, 2, 3, 3))),
        "shape",
        "up, mid and down",
    ),
    "ranks differ": (
        put(".lora_down.weight", np.zeros((2, 24))),
        "shape",
        "up [24, 3] and down [2, 24]",
    ),
    "alpha is no number": (
        put(".alpha", np.array(np.nan)),
        "alpha-not-finite",
        "not a finite number",
    ),
    "alpha is infinite": (
        put(".alpha", np.array(np.inf)),
        "alpha-not-finite",
        "not a finite number",
    ),
    "two alphas": (put(".alpha", np.ones(2)), "shape", "alpha [2]"),
    "factors of whole numbers": (
        put(".lora_down.weight", np.ones((3, 24), np.int8)),
        "shape",
        "down is of type int8",
    ),
    "factors of truths": (
        put(".lora_up.weight", np.ones((24, 3), np.bool_)),
        "shape",
        "up is of type bool",
    ),
    "complex factors": (
        put(".lora_up.weight", np.ones((24, 3), np.complex64)),
        "shape",
        "up is of type complex64",
    ),
    "a factor of whole numbers among those of LoHa": (
        put(".hada_w1_a", np.ones((24, 3), np.int64)),
        "shape",
        "is of type int64",
    ),
    "factors and a difference": (
        put(".diff", np.zeros((24, 24))),
        "missing-partner",
        "diff without",
    ),
}


@pytest.mark.long_tail(keep=6)
@pytest.mark.parametrize("case", SPOILED)
def test_a_broken_module_is_a_problem_and_then_an_error(case: str, tmp_path: Path) -> None:
    spoil, code, words = SPOILED[case]
    sample = few()
    spoil(sample.tensors, STEM)
    adapter = loaded(sample, tmp_path)
    (problem,) = adapter.info.problems
    assert (problem.severity, problem.code, problem.module) == ("error", code, NAME)
    assert words in problem.message
    assert problem.remedy
    with pytest.raises(AdapterError) as caught:
        adapter.require_sound()
    assert caught.value.exit_code == 5
    assert NAME in str(caught.value) and str(tmp_path / "a.safetensors") in str(caught.value)
    account = adapter.info.account
    assert sorted([*account.used, *account.unknown]) == sorted(sample.tensors)


def test_a_whole_adapter_has_no_problems(tmp_path: Path) -> None:
    adapter = loaded(few(), tmp_path)
    assert not adapter.info.problems
    assert adapter.require_sound() is adapter


def test_alpha_zero_is_a_warning(tmp_path: Path) -> None:
    adapter = loaded(few(alpha=0.0), tmp_path).require_sound()
    assert {(p.severity, p.code) for p in adapter.info.problems} == {("warning", "alpha-zero")}
    assert not any(delta.dense().any() for delta in adapter.deltas.values())


def test_an_unknown_key_comes_with_the_nearest(tmp_path: Path) -> None:
    sample = few()
    wrong = STEM.replace("attn1_to_k", "attn1_to_kk")
    sample.tensors |= {f"{wrong}.lora_up.weight": np.zeros((1, 1))}
    sample.tensors["stranger"] = np.zeros(3)
    adapter = loaded(sample, tmp_path).require_sound()
    unknown = adapter.info.account.unknown
    assert unknown[f"{wrong}.lora_up.weight"] == STEM
    assert set(unknown) == {f"{wrong}.lora_up.weight", "stranger"}
    assert unknown["stranger"] is None


def test_a_module_spelled_twice_is_not_guessed(tmp_path: Path) -> None:
    sample = few()
    twin = make("sd15", "diffusers", {NAME: adaptable("sd15")[NAME]}, seed=1)
    sample.tensors |= twin.tensors
    adapter = loaded(sample, tmp_path)
    assert "spelled-twice" in {p.code for p in adapter.info.problems}
    assert set(adapter.info.account.unknown) == set(twin.tensors)
    with pytest.raises(AdapterError, match="occurs twice"):
        adapter.require_sound()


def both_ways(name: str) -> tuple[Sample, Sample]:
    """An SDXL module in kohya's two namings, of other values."""
    stem, other = SDXL_STEMS[name]
    sample = make("sdxl", "kohya", {name: adaptable("sdxl")[name]}, seed=1)
    assert all(key.startswith(stem) for key in sample.tensors)
    twin = Sample("sdxl", "kohya", {
        other + key.removeprefix(stem): value for key, value in sample.tensors.items()
    })  # fmt: skip
    return sample, twin


SDXL_STEMS = {
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
    ),
    "unet.mid_block.attentions.0.transformer_blocks.3.attn2.to_k": (
        "lora_unet_middle_block_1_transformer_blocks_3_attn2_to_k",
        "lora_unet_mid_block_attentions_0_transformer_blocks_3_attn2_to_k",
    ),
}


def test_some_modules_in_one_naming_of_sdxl_and_others_in_the_other(tmp_path: Path) -> None:
    (first, _), (_, second) = map(both_ways, SDXL_STEMS)
    sample = Sample("sdxl", "kohya", {**first.tensors, **second.tensors})
    adapter = loaded(sample, tmp_path).require_sound()
    assert [site.name for site in adapter.deltas] == list(SDXL_STEMS)
    assert not adapter.info.account.unknown and not adapter.info.problems


def test_a_module_in_both_namings_with_equal_values_is_read_once(tmp_path: Path) -> None:
    first, second = both_ways(next(iter(SDXL_STEMS)))
    sample = Sample("sdxl", "kohya", {**first.tensors, **second.tensors})
    adapter = loaded(sample, tmp_path).require_sound()
    (tmp_path / "alone").mkdir()
    alone = loaded(first, tmp_path / "alone")
    assert adapter.deltas.keys() == alone.deltas.keys() and adapter.info.dialects == {"kohya": 1}
    assert not adapter.info.account.unknown
    assert sorted(adapter.info.account.used) == sorted(sample.tensors)
    assert adapter.info.spelling == alone.info.spelling  # the first
    (problem,) = adapter.info.problems
    assert (problem.severity, problem.code) == ("warning", "spelled-twice-alike")
    ((_, delta),), ((_, expected),) = adapter.modules(), alone.modules()
    assert np.array_equal(delta.dense(), expected.dense())  # once, not twice
    for key in second.tensors:  # any value or alpha that differs
        changed = {**second.tensors, key: second.tensors[key] * 1.5}
        other = loaded(Sample("sdxl", "kohya", {**first.tensors, **changed}), tmp_path)
        with pytest.raises(AdapterError, match="occurs twice") as caught:
            other.require_sound()
        for stem in SDXL_STEMS[next(iter(SDXL_STEMS))]:
            assert stem in str(caught.value)


def test_another_dialects_spelling_of_equal_values_is_read_once(tmp_path: Path) -> None:
    sample = few()
    roles = {"lora_up.weight": "lora.up.weight", "lora_down.weight": "lora.down.weight"}
    stem = STEM
    twin = {f"{NAME}.{new}": sample.tensors[f"{stem}.{old}"]
            for old, new in roles.items()}  # fmt: skip
    rank = len(sample.tensors[f"{stem}.lora_down.weight"])
    sample.tensors[f"{stem}.alpha"] = np.array(rank, np.float32)  # the twin has none
    sample.tensors |= twin
    adapter = loaded(sample, tmp_path).require_sound()
    assert {p.code for p in adapter.info.problems} == {"spelled-twice-alike"}
    assert set(adapter.info.dialects) == {"kohya"}


def test_one_role_in_two_spellings(tmp_path: Path) -> None:
    stem = "diffusion_model.double_blocks.0.img_attn.proj"
    tensors = {
        f"{stem}.lora_A.weight": np.ones((2, 32), np.float32),
        f"{stem}.lora_down.weight": np.ones((2, 32), np.float32),
        f"{stem}.lora_B.weight": np.ones((32, 2), np.float32),
    }
    adapter = loaded(Sample("flux1", "comfyui", tensors), tmp_path).require_sound()
    assert [p.code for p in adapter.info.problems] == ["spelled-twice-alike"]
    assert sorted(adapter.info.account.used) == sorted(tensors)
    tensors[f"{stem}.lora_down.weight"] *= 2
    with pytest.raises(AdapterError, match="occurs twice with different values") as caught:
        loaded(Sample("flux1", "comfyui", tensors), tmp_path).require_sound()
    assert "lora_A" in str(caught.value) and "lora_down" in str(caught.value)


def test_a_mixed_file_is_read_whole(tmp_path: Path) -> None:
    sample = few()
    other = "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    sample.tensors |= make("sd15", "diffusers", {other: adaptable("sd15")[other]}).tensors
    adapter = loaded(sample, tmp_path).require_sound()
    assert adapter.info.dialects == {"kohya": 10, "diffusers": 1}
    assert adapter.info.dialect == "kohya"
    assert not adapter.info.account.unknown


def test_a_file_that_is_no_adapter_says_so(tmp_path: Path) -> None:
    sample = Sample("sd15", "kohya", {"model.diffusion_model.out.2.bias": np.zeros(4)})
    adapter = loaded(sample, tmp_path)
    assert not adapter.deltas
    assert list(adapter.info.account.unknown) == ["model.diffusion_model.out.2.bias"]
    with pytest.raises(AdapterError, match="no tensor of this file belongs to an adapter"):
        adapter.require_sound()
    empty = loaded(Sample("sd15", "kohya", {}), tmp_path)
    with pytest.raises(AdapterError, match="an empty file"):
        empty.require_sound()


def test_an_unknown_family_is_opaque_but_usable(tmp_path: Path) -> None:
    from loramerge.adapter.save import save
    from loramerge.errors import NotExpressible
    from tests.builders.samples import data_section

    stem = "lora_unet_some_blocks_0_img_attn_qkv"
    sample = Sample("sd15", "kohya", {
        f"{stem}.lora_down.weight": np.ones((2, 6), np.float32),
        f"{stem}.lora_up.weight": np.ones((9, 2), np.float32),
        f"{stem}.alpha": np.array(1.0, np.float32),
    })  # fmt: skip
    adapter = loaded(sample, tmp_path).require_sound()
    assert adapter.family is None
    ((name, delta),) = adapter.modules()
    assert name == "unet.some_blocks_0_img_attn_qkv"
    assert np.array_equal(delta.dense(), np.ones((9, 6)))
    save(adapter, tmp_path / "b.safetensors")
    assert data_section(tmp_path / "b.safetensors") == data_section(tmp_path / "a.safetensors")
    with pytest.raises(NotExpressible, match="the family is unknown"):
        save(adapter, tmp_path / "c", to="diffusers")


def test_small_factors_that_ask_for_much_memory_are_refused(tmp_path: Path) -> None:
    ones = ArrayTensor(np.ones((400, 400), np.float16))
    pairs = [("lora_unet_x.lokr_w1", ones), ("lora_unet_x.lokr_w2", ones)]
    write_tensors(tmp_path / "a.safetensors", pairs, {})
    adapter = load(tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match="160000 × 160000 would take 205 GB"):
        adapter.require_sound()
    examine(adapter, spectra=True)  # and looking at it takes no memory either


def test_an_adapter_of_mlx_is_named(tmp_path: Path) -> None:
    stem = "model.layers.0.self_attn.q_proj"
    tensors = {f"{stem}.lora_a": np.zeros((32, 4), "f4"), f"{stem}.lora_b": np.zeros((4, 32), "f4")}
    (tmp_path / "adapters.safetensors").write_bytes(safetensors_bytes(tensors))
    adapter = load(tmp_path / "adapters.safetensors")
    assert [p.code for p in adapter.info.problems] == ["other-program"]
    with pytest.raises(AdapterError, match="MLX-LM"):
        adapter.require_sound()


def test_the_bias_of_fused_factors_keeps_its_spelling(tmp_path: Path) -> None:
    """Control adapters of Black Forest Labs have `lora_B.bias` beside every pair of factors."""
    import loramerge as lm

    tensors = {}
    for stem, rows in {
        "double_blocks.0.img_attn.qkv": 96,
        "double_blocks.0.img_attn.proj": 32,
    }.items():
        tensors[f"{stem}.lora_A.weight"] = np.ones((1, 32), "f4")
        tensors[f"{stem}.lora_B.weight"] = np.ones((rows, 1), "f4")
        tensors[f"{stem}.lora_B.bias"] = np.ones(rows, "f4")
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes(tensors))
    lm.save(lm.mix([(load(tmp_path / "a.safetensors"), 0.5)]), tmp_path / "b.safetensors")
    written = load(tmp_path / "b.safetensors")
    assert {key for key in written.info.order if not key.endswith("alpha")} == tensors.keys()
    assert all(np.allclose(delta.dense(), 0.5) for delta in written.values())
