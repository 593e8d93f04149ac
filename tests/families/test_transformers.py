"""Diffusion transformers against diffusers: every name and shape, and how the single file is cut."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytest

from loramerge.dialects import DIALECTS, stem_table
from loramerge.dialects.classify import classify
from loramerge.families import FAMILIES, Component, Family, Spelling, parameters
from loramerge.families.levels import without_text_model
from loramerge.families.spec import plain_slot
from tests.builders.samples import Array
from tests.tail import tail

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd3": ("SD3Transformer2DModel", {
        "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536,
        "joint_attention_dim": 4096, "pooled_projection_dim": 2048, "attention_head_dim": 64,
        "in_channels": 16, "out_channels": 16, "patch_size": 2,
    }),
    "qwen-image": ("QwenImageTransformer2DModel", {}),
    "wan": ("WanTransformer3DModel", {
        "image_dim": 1280, "added_kv_proj_dim": 5120, "in_channels": 36,
    }),
}  # fmt: skip
MODELS["sd35-medium"] = (
    MODELS["sd3"][0],
    MODELS["sd3"][1] | {"dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"},
)
MODELS["sd35-large"] = (
    MODELS["sd3"][0],
    MODELS["sd3"][1]
    | {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432,
       "qk_norm": "rms_norm"},
)  # fmt: skip
MODELS["flux2-dev"] = ("Flux2Transformer2DModel", {})
MODELS["flux2-klein-4b"] = ("Flux2Transformer2DModel", {
    "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24,
    "joint_attention_dim": 7680, "guidance_embeds": False,
})  # fmt: skip
MODELS["flux2-klein-9b"] = ("Flux2Transformer2DModel", {
    "num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32,
    "joint_attention_dim": 12288, "guidance_embeds": False,
})  # fmt: skip
MODELS["z-image"] = ("ZImageTransformer2DModel", {})
MODELS["lumina2"] = ("Lumina2Transformer2DModel", {"cap_feat_dim": 2304})
MODELS["hunyuan-video"] = ("HunyuanVideoTransformer3DModel", {})
MODELS["ltx-video"] = ("LTXVideoTransformer3DModel", {})
MODELS["ltx-video-13b"] = ("LTXVideoTransformer3DModel", {
    "num_layers": 48, "attention_head_dim": 128, "cross_attention_dim": 4096,
})  # fmt: skip
MODELS["anima"] = ("CosmosTransformer3DModel", {
    "num_attention_heads": 16, "extra_pos_embed_type": None,
})  # fmt: skip
MODELS["cosmos2-14b"] = ("CosmosTransformer3DModel", {
    "num_attention_heads": 40, "num_layers": 36, "extra_pos_embed_type": None,
})  # fmt: skip
MODELS["mochi"] = ("MochiTransformer3DModel", {})
_USUAL = tuple(MODELS)
MODELS |= {
    "ltx-2": ("LTX2VideoTransformer3DModel", {
        "gated_attn": True, "cross_attn_mod": True, "audio_gated_attn": True,
        "audio_cross_attn_mod": True, "use_prompt_embeddings": True,
    }),
    "krea2": ("Krea2Transformer2DModel", {}),
    "qwen-image-21": ("QwenImage21Transformer2DModel", {}),
    "chroma": ("ChromaTransformer2DModel", {}),
    "ideogram4": ("Ideogram4Transformer2DModel", {}),
    "minimax-h3": ("MiniMaxH3Transformer3DModel", {}),
    "ernie-image": ("ErnieImageTransformer2DModel", {}),
    "hidream-i1": ("HiDreamImageTransformer2DModel", {
        "patch_size": 2, "in_channels": 16, "caption_channels": [4096, 4096], "text_emb_dim": 2048,
        "axes_dims_rope": (64, 32, 32), "llama_layers": [0] * 48,
    }),
    "flux3": ("Flux3Transformer2DModel", {}),
    "auraflow": ("AuraFlowTransformer2DModel", {}),
    "kandinsky5": ("Kandinsky5Transformer3DModel", {
        "in_visual_dim": 16, "out_visual_dim": 16, "time_dim": 1024, "model_dim": 4096,
        "ff_dim": 16384, "num_text_blocks": 4, "num_visual_blocks": 60, "axes_dims": (32, 48, 48),
        "visual_cond": True,
    }),
    "cogvideox": ("CogVideoXTransformer3DModel", {"num_attention_heads": 48, "num_layers": 42}),
    "cogview4": ("CogView4Transformer2DModel", {
        "num_attention_heads": 32, "attention_head_dim": 128, "num_layers": 28,
    }),
    "hunyuan-video-15": ("HunyuanVideo15Transformer3DModel", {"use_meanflow": True}),
    "hunyuan-image": ("HunyuanImageTransformer2DModel", {
        "guidance_embeds": True, "use_meanflow": True, "text_embed_2_dim": 1472,
    }),
    "pixart": ("PixArtTransformer2DModel", {
        "caption_channels": 4096, "use_additional_conditions": True,
    }),
    "sana": ("SanaTransformer2DModel", {"qk_norm": "rms_norm_across_heads"}),
    "longcat-image": ("LongCatImageTransformer2DModel", {}),
    "ovis-image": ("OvisImageTransformer2DModel", {}),
    "cosmos3": ("Cosmos3OmniTransformer", {}),
    "ace-step": ("AceStepTransformer1DModel", {}),
}  # fmt: skip
# networks of a family's modules that its own class does not show: other sizes, and fewer modules
LESSER: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "ltx-2": [
        ("LTX2VideoTransformer3DModel", {}),
        ("LTX2VideoTransformer3DModel", {
            "gated_attn": True, "cross_attn_mod": True, "audio_gated_attn": True,
            "audio_cross_attn_mod": True, "use_prompt_embeddings": False, "perturbed_attn": True,
        }),
    ],
    "kandinsky5": [
        ("Kandinsky5Transformer3DModel", {
            "in_visual_dim": 16, "out_visual_dim": 16, "model_dim": 1792, "ff_dim": 7168,
            "visual_cond": True,
        }),
        ("Kandinsky5Transformer3DModel", {
            "in_visual_dim": 16, "out_visual_dim": 16, "model_dim": 2560, "ff_dim": 10240,
            "num_visual_blocks": 50, "axes_dims": (32, 48, 48),
        }),
    ],
    "hunyuan-video-15": [("HunyuanVideo15Transformer3DModel", {})],
    "hunyuan-image": [("HunyuanImageTransformer2DModel", {})],
    "cogvideox": [("CogVideoXTransformer3DModel", {})],
    "pixart": [("PixArtTransformer2DModel", {"use_additional_conditions": False})],
    "sana": [("SanaTransformer2DModel", {})],
    "wan": [
        ("WanVACETransformer3DModel", {}),
        ("WanVACETransformer3DModel", {
            "num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30,
            "vace_layers": list(range(0, 30, 2)),
        }),
        ("WanAnimateTransformer3DModel", {}),
        ("WanTransformer3DModel", {}),
        ("WanTransformer3DModel", {
            "num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30,
        }),
        ("WanTransformer3DModel", {
            "num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48,
            "out_channels": 48,
        }),
    ],
}  # fmt: skip
# of which diffusers has no class; `test_repositories` compares them
WITHOUT_CLASS = ("omnigen2", "hidream-o1")
# layers of networks of which diffusers has no class, compared there too: of Radiance and of S2V
ELSEWHERE = {
    "chroma": "nerf_|img_in_patch",
    "wan": "audio_injector|casual_audio|frame_packer|cond_encoder|trainable_cond_mask",
}
# what is no layer, and no adapter changes
CHANGED = ("wan",)  # whose tables distilled adapters change
TABLES = ("pos_embed.pos_embed", "scale_shift_table", "_pad_token", "register_tokens")
# names of the single file that its converter does not know: of LTX-2.3 (ai-toolkit's) and SANA 1.5
UNREAD = {"ltx-2": "prompt_adaln", "sana": ".norm_"}
# networks beside the transformer, within its class, that no adapter changes
BESIDE = {"wan": ("motion_encoder.", "face_encoder."), "ace-step": ("proj_out_conv.",)}
CONVERTERS = {
    "sd3": "convert_sd3_transformer_checkpoint_to_diffusers",
    "sd35-medium": "convert_sd3_transformer_checkpoint_to_diffusers",
    "sd35-large": "convert_sd3_transformer_checkpoint_to_diffusers",
    "wan": "convert_wan_transformer_to_diffusers",
    "flux2-dev": "convert_flux2_transformer_checkpoint_to_diffusers",
    "flux2-klein-4b": "convert_flux2_transformer_checkpoint_to_diffusers",
    "flux2-klein-9b": "convert_flux2_transformer_checkpoint_to_diffusers",
    "z-image": "convert_z_image_transformer_checkpoint_to_diffusers",
    "lumina2": "convert_lumina2_to_diffusers",
    "hunyuan-video": "convert_hunyuan_video_transformer_to_diffusers",
    "ltx-video": "convert_ltx_transformer_checkpoint_to_diffusers",
    "ltx-video-13b": "convert_ltx_transformer_checkpoint_to_diffusers",
    "anima": "convert_cosmos_transformer_checkpoint_to_diffusers",
    "cosmos2-14b": "convert_cosmos_transformer_checkpoint_to_diffusers",
    "mochi": "convert_mochi_transformer_checkpoint_to_diffusers",
    "ltx-2": "convert_ltx2_transformer_to_diffusers",
    "krea2": "convert_krea2_transformer_checkpoint_to_diffusers",
    "qwen-image-21": "convert_qwen_image21_transformer_checkpoint_to_diffusers",
    "chroma": "convert_chroma_transformer_checkpoint_to_diffusers",
    "minimax-h3": "convert_minimax_h3_transformer_checkpoint_to_diffusers",
    "ernie-image": "convert_ernie_image_transformer_checkpoint_to_diffusers",
    "hidream-i1": "convert_hidream_transformer_to_diffusers",
    "sana": "convert_sana_transformer_to_diffusers",
    "flux3": "convert_flux3_transformer_checkpoint_to_diffusers",
    "auraflow": "convert_auraflow_transformer_checkpoint_to_diffusers",
}
SPELLINGS = ("kohya", "comfyui", "diffusers", "onetrainer", "bare", "peft")


def told(component: Component) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a component's parameters."""
    return {
        plain_slot(module, parameter).tensor: module.shape
        if parameter == "weight"
        else module.shape[:1]
        for module in component.modules
        for parameter in parameters(module)
    }


def usual(names: Iterable[str]) -> list[Any]:
    """The families in use for long; the others are the long tail."""
    return [name if name in _USUAL or name == "flux1" else tail(name) for name in names]


def state_of(name: str, sort: str, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters of a network of a family, in diffusers."""
    torch: Any = pytest.importorskip("torch")
    diffusers: Any = pytest.importorskip("diffusers")
    with torch.device("meta"):
        model = getattr(diffusers, sort)(**config)
    tables = TABLES if name not in CHANGED else ()
    return {
        key: tuple(value.shape)
        for key, value in model.state_dict().items()
        if not key.endswith(tables) and not key.startswith(BESIDE.get(name, ("$",)))
    }


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", usual(MODELS))
def test_the_transformer_has_the_names_and_shapes_of_diffusers(name: str) -> None:
    own, *lesser = (
        state_of(name, sort, config) for sort, config in (MODELS[name], *LESSER.get(name, ()))
    )
    found = told(FAMILIES[name].components[0])
    assert own.items() <= found.items()
    known = {key for key in found if not re.match(ELSEWHERE.get(name, "$^"), key)}
    assert known == own.keys() | {key for state in lesser for key in state}


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize(
    ("name", "sort", "config"), [(name, *one) for name, many in LESSER.items() for one in many]
)
def test_a_network_of_another_size_is_one_of_the_family(
    name: str, sort: str, config: dict[str, Any]
) -> None:
    """It has no name that the family lacks, and all shapes of one of the family's sizes."""
    theirs = state_of(name, sort, config)
    family = told(FAMILIES[name].components[0])
    assert theirs.keys() <= family.keys()
    assert any(
        all(tuple(size.get(n, n) for n in family[key]) == shape for key, shape in theirs.items())
        for size in ({}, *FAMILIES[name].sizes)
    )


def test_the_text_conditioner_of_anima_has_the_names_and_shapes_of_diffusers() -> None:
    torch: Any = pytest.importorskip("torch")
    diffusers: Any = pytest.importorskip("diffusers")
    with torch.device("meta"):
        model = diffusers.AnimaTextConditioner()
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert told(FAMILIES["anima"].components[1]) == expected


def test_the_first_layer_of_the_connectors_of_ltx_2_is_that_of_diffusers() -> None:
    """Its other layers are no part of the family, and matched by name."""
    torch: Any = pytest.importorskip("torch")
    ltx2: Any = pytest.importorskip("diffusers.pipelines.ltx2.connectors")
    with torch.device("meta"):
        model = ltx2.LTX2TextConnectors()
    ours = told(FAMILIES["ltx-2"].components[1])
    theirs = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert ours == {key: theirs[key] for key in ours}


_LLAMA: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
_CLIP: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "projection_dim": 768,
    "num_attention_heads": 12, "vocab_size": 49408,
}  # fmt: skip
_GEMMA2: dict[str, Any] = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "head_dim": 256,
    "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 256000,
}  # fmt: skip
_T5: dict[str, Any] = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
# family, component → configuration and its values
ENCODERS: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("anima", "text_encoder"): ("Qwen3Config", {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "head_dim": 128,
        "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 151936,
    }),
    ("lumina2", "text_encoder"): ("Gemma2Config", _GEMMA2),
    ("sana", "text_encoder"): ("Gemma2Config", _GEMMA2),
    ("hunyuan-video", "text_encoder"): ("LlamaConfig", _LLAMA | {"vocab_size": 128320}),
    ("hunyuan-video", "text_encoder_2"): ("CLIPTextConfig", _CLIP),
    ("pixart", "text_encoder"): ("T5Config", _T5),
    ("hidream-i1", "text_encoder"): ("CLIPTextConfig", _CLIP | {"max_position_embeddings": 248}),
    ("hidream-i1", "text_encoder_2"): ("CLIPTextConfig", _CLIP | {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
        "num_attention_heads": 20, "projection_dim": 1280, "max_position_embeddings": 218,
    }),
    ("hidream-i1", "text_encoder_3"): ("T5Config", _T5),
    ("hidream-i1", "text_encoder_4"): ("LlamaConfig", _LLAMA | {
        "vocab_size": 128256, "tie_word_embeddings": False,
    }),
}  # fmt: skip


@pytest.mark.long_tail(keep=2)
@pytest.mark.parametrize(("name", "part"), ENCODERS)
def test_text_encoders_have_the_names_and_shapes_of_transformers(name: str, part: str) -> None:
    torch: Any = pytest.importorskip("torch")
    transformers: Any = pytest.importorskip("transformers")
    config, values = ENCODERS[name, part]
    family = FAMILIES[name]
    with torch.device("meta"):
        made = getattr(transformers, config)(**values)
        model = getattr(transformers, family.classes[part])(made)
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    expected.pop("encoder.embed_tokens.weight", None)  # that of T5 is one tensor with `shared`
    (component,) = (c for c in family.components if c.name == part)
    if family.classes[part].startswith("CLIP"):  # transformers 5 leaves the level out
        expected = {without_text_model(key): shape for key, shape in expected.items()}
        assert {without_text_model(k): s for k, s in told(component).items()} == expected
    else:
        assert told(component) == expected


def test_every_text_encoder_is_compared_with_transformers() -> None:
    """Those of Stable Diffusion and Flux.1 in other tests."""
    elsewhere = {"flux1", "chroma", "wan", "qwen-image", "sd3", "sd35-medium", "sd35-large"}
    known = {
        (name, part)
        for name, family in FAMILIES.items()
        for part in family.classes
        if part.startswith("text_encoder")
        and name not in elsewhere
        and "unet" not in family.classes
    }
    assert known == ENCODERS.keys()


@pytest.mark.parametrize(
    ("name", "module", "spelled"),
    [
        # as sd-scripts writes it, and as ComfyUI calls it
        ("lumina2", "text_encoder.layers.3.mlp.up_proj", {
            "kohya": "lora_te_layers_3_mlp_up_proj",
            "comfyui": "text_encoders.gemma2_2b.transformer.model.layers.3.mlp.up_proj"}),
        # as OneTrainer writes them
        ("hidream-i1", "text_encoder_4.model.layers.3.mlp.up_proj", {
            "diffusers": "text_encoder_4.model.layers.3.mlp.up_proj",
            "comfyui": "text_encoders.llama.transformer.model.layers.3.mlp.up_proj"}),
        ("hunyuan-video", "text_encoder.layers.3.mlp.up_proj", {
            "kohya": "lora_te1_layers_3_mlp_up_proj",
            "comfyui": "text_encoders.llama.transformer.model.layers.3.mlp.up_proj"}),
        ("pixart", "text_encoder.encoder.block.3.layer.0.SelfAttention.q", {
            "comfyui": "text_encoders.t5xxl.transformer.encoder.block.3.layer.0.SelfAttention.q"}),
    ],
)  # fmt: skip
def test_text_encoders_are_spelled_as_trainers_and_comfyui_do(
    name: str, module: str, spelled: dict[str, str]
) -> None:
    for dialect, stem in spelled.items():
        assert stem_table(DIALECTS[dialect], FAMILIES[name])[stem].module == module
        key = DIALECTS[dialect].key(FAMILIES[name], module, "up")
        assert key is not None and key.startswith(f"{stem}.")


def test_the_text_encoder_of_anima_is_spelled_as_sd_scripts_and_comfyui_do() -> None:
    module = "text_encoder.layers.3.mlp.up_proj"
    for dialect, stem in (
        ("kohya", "lora_te_layers_3_mlp_up_proj"),
        ("comfyui", "text_encoders.qwen3_06b.transformer.model.layers.3.mlp.up_proj"),
        ("diffusers", module),
    ):
        assert stem_table(DIALECTS[dialect], FAMILIES["anima"])[stem].module == module
        key = DIALECTS[dialect].key(FAMILIES["anima"], module, "up")
        assert key is not None and key.startswith(f"{stem}.")


def test_the_text_encoder_of_wan_has_the_names_and_shapes_of_transformers() -> None:
    torch: Any = pytest.importorskip("torch")
    transformers: Any = pytest.importorskip("transformers")
    config = transformers.UMT5Config(
        vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.UMT5EncoderModel(config)
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert expected.pop("encoder.embed_tokens.weight") == expected["shared.weight"]  # one tensor
    assert told(FAMILIES["wan"].components[1]) == expected


def test_the_text_encoder_of_qwen_image_has_the_names_and_shapes_of_transformers() -> None:
    torch: Any = pytest.importorskip("torch")
    transformers: Any = pytest.importorskip("transformers")
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
        },
        vision_config={
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
            "out_hidden_size": 3584,
        },
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert told(FAMILIES["qwen-image"].components[1]) == expected


def test_both_spellings_of_qwen_vl_are_known() -> None:
    """Published files, and ComfyUI's, have the older one."""
    table = stem_table(DIALECTS["diffusers"], FAMILIES["qwen-image"])
    for older, path in (
        ("model.layers.3.mlp.up_proj", "model.language_model.layers.3.mlp.up_proj"),
        ("visual.blocks.3.attn.qkv", "model.visual.blocks.3.attn.qkv"),
        ("lm_head", "lm_head"),
    ):
        module = f"text_encoder.{path}"
        assert table[f"text_encoder.{older}"].module == table[module].module == module
        key = DIALECTS["comfyui"].key(FAMILIES["qwen-image"], module, "up")
        assert key == f"text_encoders.qwen25_7b.transformer.{older}.lora_B.weight"
        stem = (
            DIALECTS["kohya"]
            .key(FAMILIES["qwen-image"], module, "up")
            .removesuffix(".lora_up.weight")
        )
        assert stem.startswith("lora_te_")
        assert stem_table(DIALECTS["kohya"], FAMILIES["qwen-image"])[stem].module == module


def tall(family: Family, spelling: Spelling) -> dict[str, Array]:
    """Every tensor of the original file with all of its rows and one column."""
    heights: dict[str, int] = {}
    for module, _, slot in spelling.slots(family.components[0]):
        heights[slot.tensor] = heights.get(slot.tensor, 0) + module.shape[0]
    random = np.random.default_rng(1)
    return {
        name: random.standard_normal((rows, 1), dtype="float32") for name, rows in heights.items()
    }


def cut(family: Family, spelling: Spelling, file: Mapping[str, Array]) -> dict[str, Array]:
    """Every parameter of diffusers' model, taken from the original file as the slots say."""
    found = {}
    for module, parameter, slot in spelling.slots(family.components[0]):
        if re.match(ELSEWHERE.get(family.name, "$^"), slot.tensor):
            continue
        whole = file[slot.tensor]
        unit = whole.shape[0] // slot.parts
        value = whole[unit * slot.part : unit * (slot.part + slot.span)]
        if slot.swapped:
            value = np.concatenate(np.split(value, 2)[::-1])
        found[plain_slot(module, parameter).tensor] = value
    return found


def original(family: Family) -> Spelling:
    """The spelling of the single files that diffusers converts: the last that is not its own."""
    return [s for s in family.spellings["transformer"] if s.layout != "diffusers" and not s.prefix][
        -1
    ]


@pytest.mark.parametrize("name", usual(CONVERTERS))
def test_the_single_file_is_cut_as_diffusers_cuts_it(name: str) -> None:
    torch: Any = pytest.importorskip("torch")
    utils: Any = pytest.importorskip("diffusers.loaders.single_file_utils")
    family = FAMILIES[name]
    file = {
        key: value
        for key, value in tall(family, original(family)).items()
        if not re.match(ELSEWHERE.get(name, "$^"), key)
    }
    found = cut(family, original(family), file)
    given = {key: torch.from_numpy(value) for key, value in file.items()}
    if name.startswith("sd3"):
        given |= {"pos_embed": torch.zeros(1)}
    if name == "auraflow":
        given |= dict.fromkeys(("positional_encoding", "register_tokens"), torch.zeros(1))
    if name == "sana":
        tables = ("pos_embed", "y_embedder.y_embedding", "final_layer.scale_shift_table")
        blocks = (f"blocks.{n}.scale_shift_table" for n in range(20))
        given |= dict.fromkeys((*tables, *blocks), torch.zeros(1))
    more = {"config": {}} if name == "minimax-h3" else {}
    converted = getattr(utils, CONVERTERS[name])(given, **more)
    tables = TABLES if name not in CHANGED else ()
    expected = {k: v.numpy() for k, v in converted.items() if not k.endswith(tables)}
    if name in UNREAD:
        for known in (found, expected):
            for key in [key for key in known if UNREAD[name] in key]:
                del known[key]
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("family", usual([*MODELS, "flux1", *WITHOUT_CLASS]))
@pytest.mark.parametrize("name", SPELLINGS)
def test_every_key_written_is_read_back_as_the_same_site(name: str, family: str) -> None:
    dialect, chosen = DIALECTS[name], FAMILIES[family]
    table = stem_table(dialect, chosen)
    layout = dialect.layout(chosen)
    keys: dict[str, tuple[tuple[str, ...], str]] = {}
    for module, _ in chosen.modules():
        site = layout[module].modules if module in layout else (module,)
        for role in ("up", "down", "alpha"):
            key = dialect.key(chosen, site, role)
            if key is not None:
                assert keys.setdefault(key, (site, role)) == (site, role)
    assert keys
    result = classify(keys, {})
    assert not result.unknown and not result.embeddings
    shared = {"kohya"} if name == "onetrainer" else set()  # both name text encoders alike
    shared |= {"comfyui"} if (name, family) == ("bare", "ltx-2") else set()  # and the connectors
    assert {group.dialect for group in result.groups} <= {name} | shared
    for group in result.groups:
        found = stem_table(DIALECTS[group.dialect], chosen)[group.stem]
        assert all(keys[key] == (found.modules, role) for role, key in group.roles.items())
    assert {m for stem in table.values() for m in stem.modules} <= dict(chosen.modules()).keys()


@pytest.mark.parametrize("family", usual([*MODELS, "flux1", *WITHOUT_CLASS]))
def test_no_two_parameters_share_a_place(family: str) -> None:
    for component in FAMILIES[family].components:
        for spelling in FAMILIES[family].spellings[component.name]:
            parts: dict[str, list[int]] = {}
            for _, _, slot in spelling.slots(component):
                parts.setdefault(slot.tensor, []).extend(range(slot.part, slot.part + slot.span))
            for _, _, slot in spelling.slots(component):
                assert sorted(parts[slot.tensor]) == list(range(slot.parts))
