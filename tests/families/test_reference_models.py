"""The tables against the models themselves, on the meta device: every name, every shape."""

from __future__ import annotations

from typing import Any

import pytest

from loramerge import families
from loramerge.errors import FamilyError
from loramerge.families import FAMILIES, Family, Module, Spelling, family, parameters

torch: Any = pytest.importorskip("torch")
diffusers: Any = pytest.importorskip("diffusers")
transformers: Any = pytest.importorskip("transformers")

# What the configuration files of the published repositories say.
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {
        "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "sdxl-refiner": {
        "block_out_channels": (384, 768, 1536, 1536),
        "down_block_types": (
            "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D",
        ),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": 4,
        "attention_head_dim": (6, 12, 24, 24),
        "cross_attention_dim": 1280,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2560,
    },
    "tiny": {
        "block_out_channels": (64, 88),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "attention_head_dim": (4, 4),
        "norm_num_groups": 8,
        "cross_attention_dim": 64,
        "use_linear_projection": True,
    },
}  # fmt: skip
_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "projection_dim": 768}
_H = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}
_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
_TINY = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "projection_dim": 64,
    "vocab_size": 615,
    "max_position_embeddings": 24,
}
ENCODERS: dict[tuple[str, str], tuple[str, dict[str, int]]] = {
    ("sd15", "text_encoder"): ("CLIPTextModel", _L),
    ("sd21", "text_encoder"): ("CLIPTextModel", _H),
    ("sdxl", "text_encoder"): ("CLIPTextModel", _L),
    ("sdxl", "text_encoder_2"): ("CLIPTextModelWithProjection", _G),
    ("sdxl-refiner", "text_encoder_2"): ("CLIPTextModelWithProjection", _G),
    ("tiny", "text_encoder"): ("CLIPTextModel", _TINY),
}

State = dict[str, tuple[int, ...]]


def state_of(model: Any) -> State:
    return {
        name: tuple(value.shape)
        for name, value in model.state_dict().items()
        if not name.endswith("position_ids")
    }


def reference(name: str, component: str) -> State:
    with torch.device("meta"):
        if component == "unet":
            return state_of(diffusers.UNet2DConditionModel(**UNETS[name]))
        sort, numbers = ENCODERS[name, component]
        usual = {"vocab_size": 49408, "num_attention_heads": 8}
        config = transformers.CLIPTextConfig(**(usual | numbers))
        return state_of(getattr(transformers, sort)(config))


def told(spelling: Spelling, modules: tuple[Module, ...]) -> State:
    """Names and shapes of a component's parameters in a spelling without fused tensors."""
    found: State = {}
    for module in modules:
        for parameter in parameters(module):
            slot = spelling.slot(module, parameter)
            assert slot is not None and slot.parts == 1
            assert slot.tensor not in found
            found[slot.tensor] = module.shape if parameter == "weight" else module.shape[:1]
    return found


def component_of(chosen: Family, name: str) -> tuple[Module, ...]:
    return next(c.modules for c in chosen.components if c.name == name)


@pytest.mark.parametrize("name", UNETS)
def test_the_unet_has_the_names_and_shapes_of_diffusers(name: str) -> None:
    chosen = FAMILIES[name]
    spelling = next(s for s in chosen.spellings["unet"] if s.layout == "diffusers" and not s.prefix)
    assert told(spelling, component_of(chosen, "unet")) == reference(name, "unet")


@pytest.mark.parametrize(("name", "component"), ENCODERS)
def test_the_text_encoder_has_the_names_and_shapes_of_transformers(
    name: str, component: str
) -> None:
    chosen, expected = FAMILIES[name], reference(name, component)
    modules = component_of(chosen, component)
    spelled = [told(s, modules) for s in chosen.spellings[component] if s.layout == "diffusers"]
    assert len(spelled) == 2
    assert expected in spelled


@pytest.mark.parametrize(("name", "component"), ENCODERS)
def test_both_spellings_of_the_text_encoder_are_known(name: str, component: str) -> None:
    """Before transformers 5 every name had `text_model.`; since then a plain model has none."""
    chosen = FAMILIES[name]
    modules = component_of(chosen, component)
    long, short = (told(s, modules) for s in chosen.spellings[component] if s.layout == "diffusers")
    assert all(key.startswith(("text_model.", "text_projection.")) for key in long)
    assert short == {key.removeprefix("text_model."): shape for key, shape in long.items()}


@pytest.mark.parametrize("wrong", ["a name", "a shape", "a layer"])
def test_a_wrong_table_would_be_seen(wrong: str) -> None:
    chosen, expected = FAMILIES["sd15"], reference("sd15", "unet")
    modules = list(component_of(chosen, "unet"))
    at = next(i for i, m in enumerate(modules) if m.path.endswith("attn2.to_k"))
    if wrong == "a name":
        modules[at] = modules[at]._replace(path=modules[at].path.replace("attn2", "attn1"))
    elif wrong == "a shape":
        modules[at] = modules[at]._replace(shape=modules[at].shape[::-1])
    else:
        del modules[at]
    spelling = next(s for s in chosen.spellings["unet"] if s.layout == "diffusers" and not s.prefix)
    try:
        assert told(spelling, tuple(modules)) != expected
    except AssertionError:
        assert wrong == "a name"  # `told` itself refuses two parameters of one name


def test_components_and_lookup() -> None:
    assert [c.name for c in FAMILIES["sdxl"].components] == [
        "unet",
        "text_encoder",
        "text_encoder_2",
    ]
    found = FAMILIES["sd21"].find("unet.conv_in")
    assert found is not None and found.shape == (320, 4, 3, 3)
    assert FAMILIES["sd21"].find("unet.nothing") is None
    assert FAMILIES["sdxl-refiner"].find("text_encoder.text_projection") is None


def test_the_list_agrees_with_the_literals() -> None:
    assert all(found.name == name for name, found in FAMILIES.items())
    shipped = {family.name for family in FAMILIES.shipped(families.UNETS)}
    assert {n for n, f in FAMILIES.items() if "unet" in f.spellings} == shipped


def test_an_unknown_family_names_the_nearest() -> None:
    with pytest.raises(FamilyError, match=r"did you mean sdxl\?") as caught:
        family("sdxI")
    assert caught.value.exit_code == 4
