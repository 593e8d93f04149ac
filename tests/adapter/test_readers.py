"""Claims about programs: only what a test has seen, and what is amiss."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import loramerge as lm
from loramerge.adapter import Adapter
from loramerge.adapter.encode import choose_dialect
from loramerge.adapter.load import load
from loramerge.adapter.readers import readings
from loramerge.dialects import PROGRAMS
from loramerge.dialects.programs import READERS
from loramerge.dialects.programs.spec import ANY
from loramerge.errors import NotExpressible
from loramerge.events import Note, Warn
from loramerge.families import FAMILIES
from loramerge.steps.program import check_program
from tests.builders.samples import Array

BLOCK = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0"
Z = "lora_unet_layers_0_attention"
SD15 = {"modelspec.architecture": "stable-diffusion-v1/lora"}
FLUX = {"modelspec.architecture": "flux-1-dev/lora"}


def _normal(*shape: int) -> Array:
    return np.ones(shape, np.float32)


def _lora(stem: str, out: int, inner: int, up: str = "lora_up", down: str = "lora_down") -> Any:
    return {f"{stem}.{up}.weight": _normal(out, 1), f"{stem}.{down}.weight": _normal(1, inner)}


def _adapter(folder: Path, tensors: Mapping[str, Array], metadata: Any = None) -> Adapter:
    path = folder / "a.safetensors"
    save_file(dict(tensors), path, metadata)
    return load(path)


def _said(adapter: Adapter) -> dict[str, str]:
    return {found.program.name: found.words(len(adapter.deltas)) for found in readings(adapter)}


USUAL = _lora(f"{BLOCK}_attn1_to_q", 640, 640) | _lora(f"{BLOCK}_attn1_to_k", 640, 640)


def test_a_usual_file(tmp_path: Path) -> None:
    found = _said(_adapter(tmp_path, USUAL, SD15))
    assert found["comfyui"] == found["a1111"] == found["forge"] == ""


@pytest.mark.parametrize(
    "tensors",
    [
        {k: v for i in range(3) for k, v in _lora(f"{Z}_to_{'qkv'[i]}", 3840, 3840).items()},
        _lora("lora_unet_double_blocks_0_img_mlp_fc1", 12288, 3072)
        | _lora("lora_unet_double_blocks_19_img_attn_qkv", 9216, 3072),
        _lora("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", 640, 640,
              "lora_B", "lora_A"),
        _lora("something_else", 8, 8),
    ],
    ids=["z-image, split", "hunyuan-video, fc1", "sdxl, PEFT's keys", "no family"],
)  # fmt: skip
def test_untested_programs_get_no_claim(tmp_path: Path, tensors: dict[str, Array]) -> None:
    assert not _said(_adapter(tmp_path, tensors)).keys() & {"comfyui", "a1111", "forge"}


@pytest.mark.parametrize("name", ["", ".default_0", ".default"])
def test_keys_with_the_name_of_an_adapter_get_no_claim(name: str, tmp_path: Path) -> None:
    """Diffusers puts its own name into the keys of a file, and finds no module for two names.

    One of `default` leaves the model as it was; `default_0` is read if it is the first adapter.
    """
    stems = [f"transformer.single_transformer_blocks.{i}.attn.to_q" for i in range(3)]
    tensors: dict[str, Array] = {}
    for stem in stems:
        tensors |= _lora(stem, 3072, 3072, f"lora_B{name}", f"lora_A{name}")
    assert bool(_said(_adapter(tmp_path, tensors))) == (not name)


PEFT = ("lora_B", "lora_A")
ANIMA = _lora("lora_unet_blocks_0_self_attn_q_proj", 2048, 2048) | _lora(
    "lora_unet_blocks_0_mlp_layer1", 8192, 2048
)
LTX = {"attn1.to_q": (2048, 2048), "ff.net.0.proj": (8192, 2048), "attn2.to_k": (2048, 2048)}
WAN = {"attn1.to_q": (5120, 5120), "ffn.net.0.proj": (13824, 5120), "attn2.to_k": (5120, 5120)}


def _several(head: str, shapes: Mapping[str, tuple[int, int]], *words: str) -> dict[str, Array]:
    return {k: v for m, shape in shapes.items() for k, v in _lora(head + m, *shape, *words).items()}


_SD = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
_SINGLE = "transformer.single_transformer_blocks.37.attn.to_q"
_BLOCK = "transformer.transformer_blocks.0"
_WEIGHTS = (".lora_magnitude_vector", ".dora_scale")
# family, program, dialect → an adapter that the program reads in part, not at all, or with other results
UNREAD: dict[tuple[str, str, str], dict[str, Array]] = {
    ("anima", "a1111", "kohya"): ANIMA,
    ("anima", "forge", "kohya"): ANIMA,
    ("anima", "diffusers", "kohya"): ANIMA,
    ("sd35-medium", "diffusers", "kohya"): _lora(
        "lora_unet_joint_blocks_12_x_block_attn2_qkv", 4608, 1536
    ),
    ("lumina2", "diffusers", "kohya"): _lora("lora_unet_layers_25_attention_qkv", 3840, 2304),
    ("cosmos2-14b", "diffusers", "kohya"): _lora("lora_unet_blocks_35_mlp_layer1", 20480, 5120),
    ("z-image", "comfyui", "kohya"): _lora("lora_unet_layers_29_attention_qkv", 11520, 3840),
    ("sd15", "diffusers", "kohya"): _lora(f"{BLOCK}_attn2_to_k", 640, 768)
    | {f"{BLOCK}_attn2_to_k{_WEIGHTS[1]}": _normal(640, 1)},
    ("sdxl", "comfyui", "diffusers-legacy"): _lora(_SD, 640, 2048, "lora.up", "lora.down"),
    ("sdxl", "comfyui", "diffusers"): _lora(_SD, 640, 2048, *PEFT),
    ("sd15", "comfyui", "diffusers"): _lora(_SD, 640, 768, *PEFT),
    ("ltx-video", "comfyui", "diffusers"): _several("transformer.transformer_blocks.0.", LTX, *PEFT),
    ("wan", "comfyui", "diffusers"): _several("transformer.blocks.0.", WAN, *PEFT),
    ("lumina2", "comfyui", "diffusers"): _lora("transformer.layers.0.attn.to_q", 2304, 2304, *PEFT),
    ("anima", "comfyui", "diffusers"): _lora(f"{_BLOCK}.norm1.linear_1", 256, 2048, *PEFT),
    ("cosmos2-14b", "comfyui", "diffusers"): _lora(f"{_BLOCK}.attn1.to_q", 5120, 5120, *PEFT),
    ("flux1", "comfyui", "diffusers"): _lora(_SINGLE, 3072, 3072, *PEFT)
    | {f"{_SINGLE}{_WEIGHTS[0]}": _normal(3072)},
    ("flux1", "comfyui", "onetrainer"): _lora(f"lora_{_SINGLE.replace('.', '_')}", 3072, 3072),
    ("flux1", "comfyui", "bare"): _lora("single_blocks.37.linear2", 3072, 15360, *PEFT),
    ("flux1", "diffusers", "bare"): _lora("double_blocks.0.img_attn.qkv", 9216, 3072, *PEFT)
    | _lora("single_blocks.37.linear2", 3072, 15360, *PEFT),
}  # fmt: skip


@pytest.mark.parametrize(("family", "program", "dialect"), UNREAD)
def test_what_a_program_leaves_out_is_not_said_to_load_in_it(
    family: str, program: str, dialect: str, tmp_path: Path
) -> None:
    """Tests saw the program leave modules out, or did not try."""
    adapter = _adapter(tmp_path, UNREAD[family, program, dialect])
    assert adapter.info.dialect == dialect
    assert family in {found.name for found in adapter.info.detection.candidates}
    assert _said(adapter).get(program) != ""


def test_a_lone_difference_of_a_vector_makes_a1111_refuse(tmp_path: Path) -> None:
    lone = {f"{BLOCK}_attn1_to_out_0.diff_b": _normal(640)}
    adapter = _adapter(tmp_path, USUAL | lone, SD15)
    assert _said(adapter)["a1111"].startswith("refuses the file")
    assert _said(adapter)["comfyui"] == ""
    with pytest.raises(NotExpressible, match="A1111"):
        check_program(adapter, "a1111", choose_dialect("a1111", [adapter]), lambda event: None)


_IA3 = {"weight": _normal(640), "on_input": np.array(False)}


@pytest.mark.parametrize(
    ("family", "dialect", "tensors", "left"),
    [
        ("sd15", "kohya", {f"{BLOCK}_attn2_to_k.{end}": v for end, v in _IA3.items()}
         | _lora(f"{BLOCK}_attn2_to_v", 640, 768), 1),
        ("sdxl-refiner", "kohya", _lora("lora_te2_text_projection", 1280, 1280)
         | _lora("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", 768, 1280), 1),
        ("wan", "kohya", _lora("lora_te_blocks_0_attn_q", 4096, 4096)
         | _lora("lora_unet_blocks_39_self_attn_q", 5120, 5120), None),
    ],
    ids=["(IA)³", "the projection of the refiner", "the text encoder of Wan"],
)  # fmt: skip
def test_modules_that_comfyui_has_no_place_for_are_not_said_to_load(
    family: str, dialect: str, tensors: dict[str, Array], left: int | None, tmp_path: Path
) -> None:
    """None: no test has given it such files, and nothing is said."""
    metadata = {"modelspec.architecture": "stable-diffusion-v1/lora"} if family == "sd15" else None
    adapter = _adapter(tmp_path, tensors, metadata)
    assert adapter.info.dialect == dialect and not adapter.info.account.unknown
    assert family in {found.name for found in adapter.info.detection.candidates}
    said = _said(adapter).get("comfyui")
    assert said == (None if left is None else f"leaves {left} of {len(adapter.deltas)} modules out")


def test_many_tensors_without_a_place_make_forge_refuse(tmp_path: Path) -> None:
    stem = "lora_te_text_model_encoder_layers_{}_layer_norm1"
    norms = {f"{stem.format(i)}.{w}_norm": _normal(768) for i in range(7) for w in "wb"}
    few = dict(list(norms.items())[:4])
    said = _said(_adapter(tmp_path, USUAL | few, SD15))
    assert said["forge"] == said["comfyui"] == "leaves 4 of 6 modules out"
    assert _said(_adapter(tmp_path, USUAL | norms, SD15))["forge"].startswith("refuses the file")


def test_a_program_that_cannot_tell_a_file_gets_no_claim(tmp_path: Path) -> None:
    """InvokeAI knows SD1 by its cross-attention or its text encoder."""
    assert "invokeai" not in _said(_adapter(tmp_path, USUAL, SD15))
    cross = _lora(f"{BLOCK}_attn2_to_k", 640, 768)
    assert _said(_adapter(tmp_path, USUAL | cross, SD15))["invokeai"] == ""


def test_a_module_without_a_place_makes_invokeai_refuse(tmp_path: Path) -> None:
    block = _lora("lora_unet_single_blocks_37_linear2", 3072, 15360)
    assert _said(_adapter(tmp_path, block, FLUX))["invokeai"] == ""
    end = _lora("lora_unet_final_layer_linear", 64, 3072)
    said = _said(_adapter(tmp_path, block | end, FLUX))
    assert said["invokeai"] == "leaves 1 of 2 modules out"
    adapter = _adapter(tmp_path, block | _lora("lora_unet_img_in", 3072, 64), FLUX)
    assert _said(adapter)["invokeai"].endswith("does not know: transformer.x_embedder")
    with pytest.raises(NotExpressible, match="InvokeAI"):
        check_program(
            adapter, "invokeai", choose_dialect("invokeai", [adapter]), lambda event: None
        )


def test_modules_computed_differently_are_reported(tmp_path: Path) -> None:
    stem = f"{BLOCK}_attn1_to_q"
    adapter = _adapter(tmp_path, USUAL | {f"{stem}.dora_scale": _normal(640, 1)}, SD15)
    assert "DoRA" in _said(adapter)["comfyui"] and "DoRA" in _said(adapter)["a1111"]
    told: list[Any] = []
    check_program(adapter, "comfyui", choose_dialect("comfyui", [adapter]), told.append)
    assert len(told) == 1 and isinstance(told[0], Warn)


def test_diffusers_takes_one_alpha_for_all(tmp_path: Path) -> None:
    alphas = {
        f"{BLOCK}_attn1_to_{x}.alpha": np.array(v, np.float32) for x, v in (("q", 1), ("k", 1))
    }
    assert _said(_adapter(tmp_path, USUAL | alphas, SD15))["diffusers"] == ""
    alphas[f"{BLOCK}_attn1_to_k.alpha"] = np.array(0.5, np.float32)
    adapter = _adapter(tmp_path, USUAL | alphas, SD15)
    assert "one alpha" in _said(adapter)["diffusers"] and _said(adapter)["comfyui"] == ""
    lm.save(adapter, tmp_path / "b.safetensors", dialect="kohya")
    assert _said(lm.load(tmp_path / "b.safetensors"))["diffusers"] != ""


# modules of files in ComfyUI's and diffusers' dialects, which have no alphas when loramerge writes them
ALPHAS = {
    "z-image": {"diffusion_model.layers.0.attention.qkv": (11520, 3840)},
    "qwen-image": {"diffusion_model.transformer_blocks.59.img_mlp.net.2": (3072, 12288)},
    "anima": {"diffusion_model.blocks.27.mlp.layer1": (8192, 2048)},
    "sd15": {"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (640, 768)},
}


@pytest.mark.parametrize("family", ALPHAS)
def test_alphas_where_a_dialect_has_none_are_what_few_programs_read(
    family: str, tmp_path: Path
) -> None:
    """ComfyUI reads them, diffusers those of two families; InvokeAI leaves them out."""
    plain = _several("", ALPHAS[family], *PEFT)
    (stem,) = ALPHAS[family]
    equal, other = (plain | {f"{stem}.alpha": np.array(v, np.float32)} for v in (1.0, 0.5))
    before = _said(_adapter(tmp_path, plain))
    assert before["diffusers"] == "" and before == _said(_adapter(tmp_path, equal))
    adapter = _adapter(tmp_path, other)
    assert adapter.info.detection.name == family and adapter[next(iter(adapter))].alpha == 0.5
    said = _said(adapter)
    assert said.get("comfyui", "") == ""
    refuses = "refuses the file: alphas beside factors (1 of them)"
    expected = {"z-image": "", "qwen-image": "", "anima": refuses}
    assert said.get("diffusers") == expected.get(family)
    doubled = "alphas beside factors are left out (1 modules)"
    assert said.get("invokeai") == {"z-image": doubled, "anima": doubled}.get(family)
    if family != "sd15":  # and they are folded where loramerge writes such a file
        lm.save(adapter, tmp_path / "b.safetensors")
        assert _said(lm.load(tmp_path / "b.safetensors")) == before


def test_a_third_of_the_strength_is_told_and_not_mended(tmp_path: Path) -> None:
    stem = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    tensors = _lora(stem, 4608, 1536) | {f"{stem}.alpha": np.array(1, np.float32)}
    split = {"ss_network_module": "networks.lora_sd3", "ss_network_args": '{"split_qkv": "True"}'}
    told, plain = _adapter(tmp_path, tensors, split), _adapter(tmp_path, tensors)
    assert [p.code for p in told.info.problems] == ["third-of-strength"]
    assert not plain.info.problems
    assert all(np.array_equal(told[name].dense(), plain[name].dense()) for name in plain)


@pytest.mark.parametrize(("network", "words"), [("lora_flux", "fourth"), ("lora_lumina", "third")])
def test_so_is_that_of_the_other_networks_that_split(
    network: str, words: str, tmp_path: Path
) -> None:
    split = {"ss_network_module": f"networks.{network}", "ss_network_args": '{"split_qkv":"True"}'}
    (problem,) = _adapter(tmp_path, _lora("lora_unet_x", 8, 8), split).info.problems
    assert problem.code == "third-of-strength" and words in problem.message


def test_without_a_program_it_is_said_once_with_the_way_out(tmp_path: Path) -> None:
    from loramerge.verbs.inspect import inspect_adapter

    stem = f"{BLOCK}_attn1_to_q"
    adapter = _adapter(tmp_path, USUAL | {f"{stem}.dora_scale": _normal(640, 1)}, SD15)
    told: list[Any] = []
    check_program(adapter, None, choose_dialect("kohya", [adapter]), told.append)
    (note,) = told
    words = "".join(str(part) for part in note.text)
    assert isinstance(note, Note) and "A1111" in words and "ComfyUI" in words
    (finding,) = [f for f in inspect_adapter(adapter).findings if f.code == "computed-otherwise"]
    assert "--to-lora --base B" in finding.remedy and "Forge" in finding.message
    plain = _adapter(tmp_path, USUAL, SD15)
    check_program(plain, None, choose_dialect("kohya", [plain]), told.append)
    assert len(told) == 1 and not inspect_adapter(plain).findings


def test_an_unknown_family_gives_a_warning(tmp_path: Path) -> None:
    adapter = _adapter(tmp_path, _lora("diffusion_model.something", 8, 8, "lora_B", "lora_A"))
    told: list[Any] = []
    check_program(adapter, "comfyui", choose_dialect("comfyui", [adapter]), told.append)
    assert [event.text for event in told] == [
        "it is not tested that ComfyUI reads files for an unknown family in the dialect comfyui"
    ]


def test_a_folder_of_peft_is_read_by_its_names_and_a_lone_file_is_not(tmp_path: Path) -> None:
    tensors = _lora("base_model.model.something.here", 8, 8, "lora_B", "lora_A")
    assert not _said(_adapter(tmp_path, tensors))
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["here"]}
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    assert _said(load(folder)) == {"peft": ""}


@pytest.mark.parametrize("program", [p for p in READERS if p in PROGRAMS])
def test_a_program_is_given_what_it_reads(program: str) -> None:
    """`--for` never chooses a dialect that the program does not read."""
    from loramerge.adapter.info import Info
    from loramerge.dialects.detection import Detection

    reader = READERS[program]
    known = {family for reads in reader.reads for family in reads.families} - {ANY}
    assert known <= set(FAMILIES)
    for name in known:
        adapter = Adapter({}, {}, Info(detection=Detection((FAMILIES[name],), "")))
        assert reader.knows(name, choose_dialect(program, [adapter]).name), name
