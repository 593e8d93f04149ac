"""Merged single files of whole pipelines: diffusers loads every component as it is defined."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.algebra.weights import Weight
from loramerge.families import FAMILIES
from tests.builders.bases import CLIPS, Base, read_safetensors, single, write_safetensors
from tests.builders.single_file import ldm_vae_name
from tests.stream.test_merge_families import CONFIGS, merged, unet_block, uneven

torch: Any = pytest.importorskip("torch")
diffusers: Any = pytest.importorskip("diffusers")
transformers: Any = pytest.importorskip("transformers")

pytestmark = [pytest.mark.slow, pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

Array = np.ndarray[Any, Any]
PIPELINES = {"sd15": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}


def _components(family: str) -> dict[str, Any]:
    """The models of a pipeline, as wide as the checkpoints here."""
    from tests.builders import pipelines

    model = diffusers.UNet2DConditionModel
    found = {
        "unet": model(norm_num_groups=2, attention_head_dim=2, **CONFIGS[family]),
        "vae": pipelines._vae(),
    }
    for name, clip in CLIPS[family].items():
        config = transformers.CLIPTextConfig(
            vocab_size=clip.vocabulary, hidden_size=clip.width, intermediate_size=4 * clip.width,
            num_hidden_layers=clip.layers, num_attention_heads=2,
            max_position_embeddings=clip.positions, projection_dim=clip.projection or clip.width,
        )  # fmt: skip
        kind = "CLIPTextModelWithProjection" if clip.projection else "CLIPTextModel"
        found[name] = getattr(transformers, kind)(config)
    return found


def _configuration(folder: Path, family: str, components: Mapping[str, Any]) -> Path:
    """Write the configurations of a pipeline, without weights."""
    from tests.builders import pipelines

    index: dict[str, Any] = {"_class_name": PIPELINES[family]}
    for name, model in components.items():
        kind = type(model)
        index[name] = [kind.__module__.partition(".")[0], kind.__name__]
        if name.startswith("text"):
            model.config.save_pretrained(folder / name)
            pipelines._tokenizer(folder / name.replace("text_encoder", "tokenizer"))
            index[name.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
        else:
            model.save_config(folder / name)
    diffusers.DDIMScheduler().save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    if family == "sd15":
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    return folder


def _with_vae(base: Base, vae: Any, family: str) -> dict[str, Array]:
    """Write a whole VAE into a single file in the place of the part it has; return its weights."""
    tensors, metadata = read_safetensors(base.path)
    kept = {
        name: value
        for name, value in tensors.items()
        if not name.startswith("first_stage_model.") and name != "logit_scale"
    }
    weights = {name: value.numpy() for name, value in vae.state_dict().items()}
    for name, value in weights.items():
        path, _, parameter = name.rpartition(".")
        if ".attentions." in path and value.ndim == 2:
            value = value[:, :, None, None]
        kept[f"first_stage_model.{ldm_vae_name(path, 2)}.{parameter}"] = value
    write_safetensors(base.path, kept, metadata)
    return weights


def _blend(base: bool) -> Callable[..., Array]:
    def added(share: float, a: Array, b: Array, c: Array) -> Array:
        return a + share * (b - c)

    def mean(share: float, a: Array, b: Array, c: Array) -> Array:
        return (1 - share) * a + share * b

    return added if base else mean


@pytest.mark.parametrize("based", [False, True], ids=["by blocks", "add difference"])
@pytest.mark.parametrize("family", PIPELINES)
def test_a_pipeline_from_a_merged_file(family: str, based: bool, tmp_path: Path) -> None:
    torch.manual_seed(4)
    components = _components(family)
    config = _configuration(tmp_path / "config", family, components)
    a, b, c = (
        single(tmp_path / f"{seed}.safetensors", family, "F32", seed=seed) for seed in (1, 2, 3)
    )
    vae = _with_vae(a, components["vae"], family)
    for other in (b, c):
        _with_vae(other, _components(family)["vae"], family)
    vector = uneven(26 if family == "sd15" else 20)
    out = tmp_path / "out.safetensors"
    merged(out, (a.path, Weight()), (b.path, Weight(blocks=vector)), base=c.path if based else None)
    pipeline = getattr(diffusers, PIPELINES[family]).from_single_file(
        str(out), config=str(config), local_files_only=True
    )
    share = _shares(a, family, vector)
    blend = _blend(based)
    for name in ("unet", *CLIPS[family]):
        found = getattr(pipeline, name).state_dict()
        held = {key: f"{name}.{key}" for key in found if not key.endswith("position_ids")}
        held = {
            key: value if value in a.weights else f"{name}.text_model.{key}"
            for key, value in held.items()
        }
        assert set(held.values()) == {key for key in a.weights if key.startswith(f"{name}.")}
        for key, full in held.items():
            one, two, three = (base.weights[full].astype("float64") for base in (a, b, c))
            want = blend(share(full), one, two, three)
            np.testing.assert_allclose(
                found[key].float().numpy(), want, rtol=1e-5, atol=1e-6, err_msg=full
            )
    found = pipeline.vae.state_dict()
    assert found.keys() == vae.keys()
    for key, value in vae.items():
        assert np.array_equal(found[key].numpy(), value), key


def _shares(base: Base, family: str, vector: tuple[float, ...]) -> Callable[[str], float]:
    """The weight of each parameter, by its name in the single file."""
    tensors, _ = read_safetensors(base.path)
    block = unet_block(vector, 14 if family == "sd15" else 11)
    # a value occurs once: the file has each parameter under one name, the fused ones of a text encoder
    # aside, which all have the first weight
    by_bytes = {
        value.tobytes(): name
        for name, value in tensors.items()
        if name.startswith("model.diffusion_model.")
    }

    def share(full: str) -> float:
        name = by_bytes.get(base.weights[full].tobytes(), "")
        assert name or not full.startswith("unet.")
        return block(name)

    return share


# ---- transformers


def _native(family: str, weights: Mapping[str, Array]) -> dict[str, Array]:
    """The parameters of diffusers' model by the names of the original file."""
    component = FAMILIES[family].components[0]
    spelling = next(
        one for one in FAMILIES[family].spellings[component.name] if one.layout != "diffusers"
    )
    parts: dict[str, dict[int, Array]] = {}
    for module, parameter, slot in spelling.slots(component):
        value = weights[f"{module.path}.{parameter}"]
        if slot.swapped:
            value = np.concatenate(np.split(value, 2)[::-1])
        parts.setdefault(slot.tensor, {})[slot.part] = value
    return {
        name: np.concatenate([found[part] for part in sorted(found)])
        for name, found in parts.items()
    }


def _sd3(path: Path, seed: int) -> tuple[Any, dict[str, Array]]:
    """Write the original file of a narrow SD3; return diffusers' model and its weights."""
    model = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=24,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=24,
        caption_projection_dim=16, pooled_projection_dim=16, pos_embed_max_size=24,
    )  # fmt: skip
    random = np.random.default_rng(seed)
    weights = {
        name: random.standard_normal(tuple(value.shape)).astype("float32")
        for name, value in model.state_dict().items()
    }
    weights["pos_embed.pos_embed"] = model.state_dict()["pos_embed.pos_embed"].numpy()
    native = _native("sd3", weights) | {"pos_embed": weights["pos_embed.pos_embed"]}
    prefixed = {f"model.diffusion_model.{name}": value for name, value in native.items()}
    write_safetensors(path, prefixed, {})
    return model, weights


def _flux(path: Path, seed: int) -> tuple[Any, dict[str, Array]]:
    """Write the original file of a narrow Flux; return diffusers' model and its weights."""
    model = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=19, num_single_layers=38, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16,
        guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    random = np.random.default_rng(seed)
    weights = {
        name: random.standard_normal(tuple(value.shape)).astype("float32")
        for name, value in model.state_dict().items()
    }
    write_safetensors(path, _native("flux1", weights), {})
    return model, weights


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers converts Flux of 3072 channels alone; here of 16, the same otherwise."""
    import inspect

    from diffusers.loaders import single_file_model, single_file_utils

    function = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
    text = inspect.getsource(function)
    assert text.count("inner_dim = 3072") == 1
    room = dict(vars(single_file_utils))
    exec(text.replace("inner_dim = 3072", "inner_dim = 16"), room)
    classes = single_file_model.SINGLE_FILE_LOADABLE_CLASSES
    monkeypatch.setitem(
        classes["FluxTransformer2DModel"], "checkpoint_mapping_fn", room[function.__name__]
    )


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("write", [_sd3, _flux], ids=["sd3", "flux"])
def test_a_transformer_from_a_merged_file(write: Any, tmp_path: Path) -> None:
    made = [write(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2, 3)]
    (a, b, c), model = (weights for _, weights in made), made[0][0]
    paths = [tmp_path / f"{seed}.safetensors" for seed in (1, 2, 3)]
    out = tmp_path / "out.safetensors"
    share = Weight(0.25, match=(("*.attn.*", 0.75),))
    merged(out, (paths[0], Weight()), (paths[1], share), base=paths[2])
    model.save_config(tmp_path / "config" / "transformer")
    read = (
        type(model)
        .from_single_file(
            str(out),
            config=str(tmp_path / "config"),
            subfolder="transformer",
            local_files_only=True,
        )
        .state_dict()
    )
    assert read.keys() == a.keys()
    for name, value in read.items():
        if name.startswith("pos_embed.pos_embed"):
            assert np.array_equal(value.numpy(), a[name])
            continue
        one, two, three = (weights[name].astype("float64") for weights in (a, b, c))
        want = one + (0.75 if ".attn." in name else 0.25) * (two - three)
        np.testing.assert_allclose(value.numpy(), want, rtol=1e-5, atol=1e-5, err_msg=name)
