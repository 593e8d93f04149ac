"""Where single files store what: against diffusers' own conversion, and against the rule."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from loramerge.families import FAMILIES, Module, Slot, Spelling
from loramerge.families.clip import Clip, clip_modules, openclip_slot
from tests.builders.samples import STABLE_DIFFUSION, sgm_path
from tests.builders.single_file import ldm_vae_name

EVERY = list(STABLE_DIFFUSION)


def single(name: str, component: str) -> Spelling:
    return FAMILIES[name].spellings[component][0]


def modules_of(name: str, component: str) -> tuple[Module, ...]:
    return next(c.modules for c in FAMILIES[name].components if c.name == component)


def in_file_order(name: str, component: str) -> list[tuple[Module, str, Slot]]:
    owner = next(c for c in FAMILIES[name].components if c.name == component)
    return list(single(name, component).slots(owner))


@pytest.mark.parametrize("name", EVERY)
def test_unet_names_follow_the_rule(name: str) -> None:
    for module, parameter, slot in in_file_order(name, "unet"):
        expected = f"model.diffusion_model.{sgm_path(module.path, name)}.{parameter}"
        assert slot == Slot(expected)


@pytest.mark.parametrize("name", EVERY)
def test_no_two_parameters_share_a_place(name: str) -> None:
    for component in FAMILIES[name].components:
        for spelling in FAMILIES[name].spellings[component.name]:
            slots = [slot for _, _, slot in spelling.slots(component)]
            assert len(slots) == len(set(slots))
            parts = Counter(slot.tensor for slot in slots)
            assert all(parts[slot.tensor] == slot.parts for slot in slots)


def test_counting_two_output_blocks_a_resolution_would_be_seen() -> None:
    """Up blocks have one resnet more than down blocks; forgetting it names two layers alike."""

    def miscounted(path: str) -> str:
        up = re.match(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.", path)
        right = sgm_path(path, "sd15")
        return (
            re.sub(r"^output_blocks\.\d+", f"output_blocks.{2 * int(up[1]) + int(up[3])}", right)
            if up
            else right
        )

    names = [miscounted(m.path) for m in modules_of("sd15", "unet")]
    assert len(set(names)) < len(names)


# diffusers converts by the configuration's block counts only
CONFIGS: dict[str, dict[str, Any]] = {
    "sd15": {"layers_per_block": 2, "down_block_types": [""] * 4, "up_block_types": [""] * 4},
    "sd21": {"layers_per_block": 2, "down_block_types": [""] * 4, "up_block_types": [""] * 4},
    "sdxl": {
        "layers_per_block": 2, "down_block_types": [""] * 3, "up_block_types": [""] * 3,
        "addition_embed_type": "text_time", "class_embed_type": None,
    },
    "sdxl-refiner": {
        "layers_per_block": 2, "down_block_types": [""] * 4, "up_block_types": [""] * 4,
        "addition_embed_type": "text_time", "class_embed_type": None,
    },
    "tiny": {"layers_per_block": 1, "down_block_types": [""] * 2, "up_block_types": [""] * 2},
}  # fmt: skip


@pytest.mark.parametrize("name", [*EVERY, "tiny"])
def test_diffusers_converts_to_the_same_modules(name: str) -> None:
    utils: Any = pytest.importorskip("diffusers.loaders.single_file_utils")
    torch: Any = pytest.importorskip("torch")
    stored = in_file_order(name, "unet")
    file = {slot.tensor: torch.full((1,), float(i)) for i, (_, _, slot) in enumerate(stored)}
    converted = utils.convert_ldm_unet_checkpoint(file, config=CONFIGS[name])
    expected = {f"{m.path}.{p}": float(i) for i, (m, p, _) in enumerate(stored)}
    assert {key: value.item() for key, value in converted.items()} == expected


@pytest.mark.parametrize("resolutions", [3, 4])
def test_diffusers_converts_the_vae_to_the_same_layers(resolutions: int) -> None:
    diffusers: Any = pytest.importorskip("diffusers")
    utils: Any = pytest.importorskip("diffusers.loaders.single_file_utils")
    torch: Any = pytest.importorskip("torch")
    with torch.device("meta"):
        vae = diffusers.AutoencoderKL(
            block_out_channels=tuple(8 * i for i in range(1, resolutions + 1)),
            layers_per_block=2,
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * resolutions,
            up_block_types=("UpDecoderBlock2D",) * resolutions,
        )
    names = list(vae.state_dict())

    def file(resolutions: int) -> dict[str, Any]:
        paths = ((n, *n.rpartition(".")[::2]) for n in names)
        return {
            f"first_stage_model.{ldm_vae_name(path, resolutions)}.{parameter}": torch.full(
                (1, 1, 1), float(names.index(name))
            )
            for name, path, parameter in paths
        }

    def converted(file: dict[str, Any]) -> dict[str, float]:
        found = utils.convert_ldm_vae_checkpoint(file, config=vae.config)
        return {key: value.item() for key, value in found.items()}

    assert len(file(resolutions)) == len(names)
    assert converted(file(resolutions)) == {n: float(i) for i, n in enumerate(names)}
    with pytest.raises((AssertionError, KeyError)):  # the decoder counted from the wrong end
        assert converted(file(resolutions + 1)) == {n: float(i) for i, n in enumerate(names)}


# --- OpenCLIP ----------------------------------------------------------------------------------


def tower(clip: Clip, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """An OpenCLIP text tower of small width with random values."""
    rng = np.random.default_rng(seed)
    w = clip.width

    def values(*shape: int) -> np.ndarray[Any, Any]:
        return rng.standard_normal(shape).astype(np.float32)

    file = {
        "positional_embedding": values(clip.positions, w),
        "token_embedding.weight": values(clip.vocabulary, w),
        "ln_final.weight": values(w),
        "ln_final.bias": values(w),
        "text_projection": values(w, clip.projection or w),
    }
    for i in range(clip.layers):
        block = f"transformer.resblocks.{i}"
        for leaf, shape in {
            "ln_1.weight": (w,), "ln_1.bias": (w,), "ln_2.weight": (w,), "ln_2.bias": (w,),
            "attn.in_proj_weight": (3 * w, w), "attn.in_proj_bias": (3 * w,),
            "attn.out_proj.weight": (w, w), "attn.out_proj.bias": (w,),
            "mlp.c_fc.weight": (4 * w, w), "mlp.c_fc.bias": (4 * w,),
            "mlp.c_proj.weight": (w, 4 * w), "mlp.c_proj.bias": (w,),
        }.items():  # fmt: skip
            file[f"{block}.{leaf}"] = values(*shape)
    return file


def taken(
    file: dict[str, np.ndarray[Any, Any]], clip: Clip, thirds: tuple[int, int, int] = (0, 1, 2)
) -> dict[str, np.ndarray[Any, Any]]:
    """Every parameter of the encoder, cut out of the tower as the slots say."""
    found = {}
    for module in clip_modules(clip):
        for parameter in ("weight", "bias") if module.bias else ("weight",):
            slot = openclip_slot(module, parameter)  # type: ignore[arg-type]
            assert slot is not None
            whole = file[slot.tensor]
            rows = whole.shape[0] // slot.parts
            part = thirds[slot.part] if slot.parts == 3 else slot.part
            value = whole[part * rows : (part + 1) * rows]
            found[f"{module.path}.{parameter}"] = value.T if slot.transposed else value
    return found


def converted_by_diffusers(
    file: dict[str, np.ndarray[Any, Any]], clip: Clip
) -> dict[str, np.ndarray[Any, Any]]:
    utils: Any = pytest.importorskip("diffusers.loaders.single_file_utils")
    torch: Any = pytest.importorskip("torch")
    checkpoint = {f"cond.{key}": torch.from_numpy(value) for key, value in file.items()}
    converted = utils.convert_open_clip_checkpoint(None, checkpoint, prefix="cond.")
    return {key: value.numpy() for key, value in converted.items()}


SMALL = Clip(width=6, layers=3, projection=6, vocabulary=11, positions=5)


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether both name the same parameters, `text_model.` aside, with the same values."""
    short = {k.removeprefix("text_model."): v for k, v in second.items()}
    ours = {k.removeprefix("text_model."): v for k, v in first.items()}
    return ours.keys() == short.keys() and all(np.array_equal(ours[k], short[k]) for k in ours)


def test_openclip_is_cut_as_diffusers_cuts_it() -> None:
    file = tower(SMALL)
    assert same(taken(file, SMALL), converted_by_diffusers(file, SMALL))


@pytest.mark.parametrize("thirds", [(2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_swapped_thirds_would_be_seen(thirds: tuple[int, int, int]) -> None:
    file = tower(SMALL)
    assert not same(taken(file, SMALL, thirds), converted_by_diffusers(file, SMALL))


def test_every_part_of_the_tower_has_one_place() -> None:
    slots = [
        slot
        for module in clip_modules(SMALL)
        for parameter in (("weight", "bias") if module.bias else ("weight",))
        if (slot := openclip_slot(module, parameter)) is not None  # type: ignore[arg-type]
    ]
    assert {slot.tensor for slot in slots} == set(tower(SMALL))
    assert len(slots) == len(set(slots))


def test_other_tensors_in_the_file_of_sd21_are_left_alone() -> None:
    """The 24th block is never used, and the encoder of SD2 has no projection."""
    tensors = {slot.tensor for _, _, slot in in_file_order("sd21", "text_encoder")}
    head = "cond_stage_model.model."
    assert f"{head}transformer.resblocks.22.attn.in_proj_weight" in tensors
    assert f"{head}transformer.resblocks.23.attn.in_proj_weight" not in tensors
    assert f"{head}text_projection" not in tensors


@pytest.mark.parametrize(
    ("name", "component", "key"),
    [
        ("sd15", "text_encoder", "cond_stage_model.transformer.text_model.final_layer_norm.bias"),
        (
            "sdxl",
            "text_encoder",
            "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.bias",
        ),
        ("sdxl", "text_encoder_2", "conditioner.embedders.1.model.text_projection"),
        ("sdxl-refiner", "text_encoder_2", "conditioner.embedders.0.model.ln_final.weight"),
        ("sdxl", "unet", "model.diffusion_model.label_emb.0.2.weight"),
    ],
)
def test_known_keys_are_there(name: str, component: str, key: str) -> None:
    assert key in {slot.tensor for _, _, slot in in_file_order(name, component)}
