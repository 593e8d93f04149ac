"""diffusers, transformers and PEFT load what is written, and change every weight by its ΔW.

Models of the families' module names and few channels get an adapter in each dialect; nothing may
be left over on either side, and after merging every weight must have moved by the oracle's ΔW, and
no other weight at all.

What the peers do, as of diffusers 0.42 and transformers 5.23:

- diffusers takes text encoder keys with and without `text_model.` (it drops that level where the
  model has none), but not so the names inside `lora_adapter_metadata`, which must do without.
- PEFT's own loader takes keys only as the model names its modules: without `text_model.` for a
  `CLIPTextModel`, with it for a `CLIPTextModelWithProjection`. Names in `adapter_config.json` match
  by their end.
- diffusers reads one alpha for each component of a kohya file; where alphas differ it applies the
  commonest to all (and PEFT warns that patterns match nothing).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter import Site
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.algebra.mix import mix
from loramerge.algebra.weights import Weight
from loramerge.families import Module
from tests.builders.samples import Array, Sample, dense, factors_for, oracle, spell, write
from tests.tail import crossed

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]
torch: Any = pytest.importorskip("torch")
diffusers: Any = pytest.importorskip("diffusers")
transformers: Any = pytest.importorskip("transformers")
peft: Any = pytest.importorskip("peft")

Models = dict[str, Any]
RANKS = [2, 4, 3]
ALPHAS = [1.0, 3.7, 2.0, None, 5.0]
NO_HEADER = "diffusers, header ignored"


def unet_of(family: str) -> Any:
    common = {"sample_size": 8, "layers_per_block": 2, "norm_num_groups": 4}
    if family == "sdxl":
        return diffusers.UNet2DConditionModel(
            block_out_channels=(8, 16, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=4,
            cross_attention_dim=12,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=48,
            **common,
        )
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16, 16, 16),
        attention_head_dim=4,
        cross_attention_dim=12,
        use_linear_projection=family == "sd21",
        **common,
    )


def encoder_of(sort: str, layers: int) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=50, hidden_size=12, intermediate_size=48, num_hidden_layers=layers,
        num_attention_heads=2, projection_dim=12, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return getattr(transformers, sort)(config)


@cache
def originals(family: str) -> Models:
    """The untouched models of a family; never to be changed."""
    torch.manual_seed(0)
    models = {"unet": unet_of(family)}
    layers = {"sd15": 12, "sd21": 23, "sdxl": 12}[family]
    models["text_encoder"] = encoder_of("CLIPTextModel", layers)
    if family == "sdxl":
        models["text_encoder_2"] = encoder_of("CLIPTextModelWithProjection", 32)
    return models


def full_name(component: str, path: str) -> str:
    """Our name of a module as the model names it."""
    if component != "unet" and not path.startswith(("text_model.", "text_projection")):
        path = f"text_model.{path}"
    return f"{component}.{path}"


@cache
def layers_of(family: str) -> dict[str, Module]:
    """Every linear layer and convolution of the models."""
    found = {}
    for component, model in originals(family).items():
        for path, layer in model.named_modules():
            if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
                sort = "conv" if layer.weight.ndim == 4 else "linear"
                name = full_name(component, path)
                shape = tuple(layer.weight.shape)
                found[name] = Module(name.partition(".")[2], sort, shape, layer.bias is not None)  # type: ignore[arg-type]
    return found


def usual(family: str) -> dict[str, Module]:
    """What trainers adapt: attention and feed-forward, and the layers of the text encoders."""
    parts = (".attn1.", ".attn2.", ".ff.", ".self_attn.", ".mlp.", ".proj_in", ".proj_out")
    found = {n: m for n, m in layers_of(family).items() if any(part in n for part in parts)}
    if family == "sdxl":  # a fifth of the thousand: PEFT compares each with each
        found = {n: m for i, (n, m) in enumerate(found.items()) if i % 5 == 0}
    return found


def every(family: str) -> dict[str, Module]:
    """All of them; PEFT's loader of text encoders in diffusers knows no projection."""
    return {n: m for n, m in layers_of(family).items() if "text_projection" not in n}


# --- what was complained about -----------------------------------------------------------------


class Complaints(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What the peers log at warning level and above."""
    handler = Complaints()
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "peft")]
    for logger in loggers:
        logger.addHandler(handler)
    yield handler.said
    for logger in loggers:
        logger.removeHandler(handler)


# --- loading -----------------------------------------------------------------------------------


def as_pipelines_load(path: Path, family: str, *, header: bool = True) -> Models:
    """Load a file the way diffusers' pipelines do."""
    loaders: Any = diffusers.loaders
    mixin = (
        loaders.StableDiffusionXLLoraLoaderMixin
        if family == "sdxl"
        else loaders.StableDiffusionLoraLoaderMixin
    )
    models = copy.deepcopy(originals(family))
    state, alphas, metadata = mixin.lora_state_dict(
        str(path), return_lora_metadata=True, unet_config=models["unet"].config
    )
    known = {
        "network_alphas": alphas,
        "metadata": metadata if header else None,
        "adapter_name": "ours",
    }
    mixin.load_lora_into_unet(state, unet=models["unet"], **known)
    for component in models.keys() - {"unet"}:
        encoder = models[component]
        mixin.load_lora_into_text_encoder(state, text_encoder=encoder, prefix=component, **known)
    return models


def load_as_pipelines_do(path: Path, family: str, *, header: bool = True) -> Models:
    """Load a file the way diffusers' pipelines do, and merge it."""
    models = as_pipelines_load(path, family, header=header)
    for model in models.values():
        merge(model)
    return models


def merge(model: Any) -> None:
    for layer in model.modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            layer.merge(safe_merge=True)


def load_as_peft_does(path: Path, family: str) -> Models:
    """Load the folder of each component with PEFT's own loader, and merge it."""
    models = copy.deepcopy(originals(family))
    for component, model in models.items():
        wrapped = peft.PeftModel.from_pretrained(model, str(path / component))
        models[component] = wrapped.merge_and_unload()
    return models


def load_as_transformers_does(path: Path, family: str) -> Models:
    """Load text encoders with transformers' `load_adapter`, and the UNet with PEFT."""
    models = copy.deepcopy(originals(family))
    for component, model in models.items():
        if component == "unet":
            models[component] = peft.PeftModel.from_pretrained(
                model, str(path / component)
            ).merge_and_unload()
        else:
            info = model.load_adapter(str(path / component))
            assert not info.missing_keys and not info.unexpected_keys and not info.mismatched_keys
            merge(model)
    return models


# --- what changed ------------------------------------------------------------------------------


def parameters_of(models: Models) -> dict[str, Array]:
    found = {}
    for component, model in models.items():
        for path, value in model.named_parameters():
            if ".lora_" not in path:
                name = full_name(component, path.replace(".base_layer.", "."))
                found[name] = value.detach().numpy().astype(np.float64)
    return found


def changes(models: Models, family: str) -> dict[str, Array]:
    """What each parameter has moved by, where it moved at all."""
    before, after = parameters_of(originals(family)), parameters_of(models)
    assert before.keys() == after.keys()
    moved = {name: after[name] - before[name] for name in before}
    return {name: change for name, change in moved.items() if change.any()}


def agrees(found: Mapping[str, Array], expected: Mapping[str, Array]) -> bool:
    """Whether the weights named, and no others, moved by ΔW within 1e-5."""
    wanted = {f"{name}.weight": change for name, change in expected.items()}
    if found.keys() != wanted.keys():
        return False
    return all(np.abs(found[name] - wanted[name]).max() < 1e-5 for name in wanted)


def made(
    family: str, modules: Mapping[str, Module], dialect: str, folder: Path, **options: Any
) -> tuple[Path, dict[str, Array]]:
    """An adapter in a dialect, written by loramerge from another, and its ΔW."""
    source = spell(
        factors_for(modules, **options), family, "peft" if dialect == "kohya" else "kohya"
    )
    path = folder / ("ours" if dialect == "peft" else "ours.safetensors")
    save(load(write(source, folder / "source")).require_sound(), path, to=dialect)
    return path, oracle(source, modules)


# --- the tests ---------------------------------------------------------------------------------


@pytest.mark.long_tail(keep=2)
@pytest.mark.parametrize(
    ("dialect", "family"),
    crossed(["kohya", "diffusers", NO_HEADER, "diffusers-legacy"], ["sd15", "sd21", "sdxl"]),
)
def test_pipelines_load_what_trainers_adapt(
    dialect: str, family: str, tmp_path: Path, complaints: list[str]
) -> None:
    modules = usual(family)
    alpha = 3.7 if dialect == "kohya" else ALPHAS
    target = "diffusers" if dialect == NO_HEADER else dialect
    path, expected = made(family, modules, target, tmp_path, rank=RANKS, alpha=alpha)
    models = load_as_pipelines_do(path, family, header=dialect != NO_HEADER)
    assert agrees(changes(models, family), expected)
    assert not complaints


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize(
    ("dialect", "family"),
    crossed(["kohya", "diffusers", NO_HEADER, "diffusers-legacy"], ["sd15", "sd21"]),
)
def test_pipelines_load_every_layer(
    dialect: str, family: str, tmp_path: Path, complaints: list[str]
) -> None:
    alpha = 3.7 if dialect == "kohya" else ALPHAS
    target = "diffusers" if dialect == NO_HEADER else dialect
    path, expected = made(family, every(family), target, tmp_path, rank=RANKS, alpha=alpha)
    models = load_as_pipelines_do(path, family, header=dialect != NO_HEADER)
    assert agrees(changes(models, family), expected)
    assert not complaints


@pytest.mark.parametrize("dialect", ["kohya", "diffusers"])
def test_pipelines_load_a_part(dialect: str, tmp_path: Path, complaints: list[str]) -> None:
    """An adapter of the UNet's up blocks alone moves nothing else (and what is said is seen)."""
    modules = {n: m for n, m in usual("sd15").items() if n.startswith("unet.up_blocks.2.")}
    path, expected = made("sd15", modules, dialect, tmp_path, rank=4, alpha=1.0)
    assert agrees(changes(load_as_pipelines_do(path, "sd15"), "sd15"), expected)
    assert [said for said in complaints if "No LoRA keys associated to CLIPTextModel" in said]


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_peft_loads_its_folders(family: str, tmp_path: Path, complaints: list[str]) -> None:
    path, expected = made(family, usual(family), "peft", tmp_path, rank=RANKS, alpha=ALPHAS)
    assert agrees(changes(load_as_peft_does(path, family), family), expected)
    assert not complaints


def test_peft_loads_every_layer(tmp_path: Path, complaints: list[str]) -> None:
    path, expected = made("sd15", layers_of("sd15"), "peft", tmp_path, rank=RANKS, alpha=ALPHAS)
    assert agrees(changes(load_as_peft_does(path, "sd15"), "sd15"), expected)
    assert not complaints


def test_transformers_loads_the_folders_of_text_encoders(
    tmp_path: Path, complaints: list[str]
) -> None:
    path, expected = made("sd15", usual("sd15"), "peft", tmp_path, rank=RANKS, alpha=ALPHAS)
    assert agrees(changes(load_as_transformers_does(path, "sd15"), "sd15"), expected)
    assert not complaints


def test_pipelines_load_alphas_that_differed_before_they_became_a_kohya_file(
    tmp_path: Path,
) -> None:
    path, expected = made("sd15", usual("sd15"), "kohya", tmp_path, rank=RANKS, alpha=ALPHAS)
    assert agrees(changes(load_as_pipelines_do(path, "sd15"), "sd15"), expected)


# --- what peers save is read back --------------------------------------------------------------


def test_files_that_peft_saves_are_read(tmp_path: Path) -> None:
    model = copy.deepcopy(originals("sd15")["text_encoder"])
    targets = ["q_proj", "v_proj", "fc1"]
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=targets, init_lora_weights=False,
        rank_pattern={"fc1": 2}, alpha_pattern={"v_proj": 1.5}, use_rslora=True,
    )  # fmt: skip
    wrapped = peft.get_peft_model(model, config)
    wrapped.save_pretrained(tmp_path)
    adapter = load(tmp_path).require_sound()
    assert not adapter.info.account.unknown
    found = {site.name: delta.dense() for site, delta in adapter.deltas.items()}
    expected = {
        full_name("text_encoder", path.removeprefix("base_model.model.")):
            layer.get_delta_weight("default").detach().numpy()
        for path, layer in wrapped.named_modules()
        if isinstance(layer, peft.tuners.lora.LoraLayer)
    }  # fmt: skip
    assert found.keys() == expected.keys() and len(found) == 36
    assert all(np.abs(found[name] - expected[name]).max() < 1e-5 for name in found)


def test_files_that_pipelines_save_are_read(tmp_path: Path) -> None:
    models = copy.deepcopy(originals("sd15"))
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["to_q", "to_out.0", "conv1"], init_lora_weights=False,
        alpha_pattern={"conv1": 2},
    )  # fmt: skip
    encoding = peft.LoraConfig(
        r=2, lora_alpha=7, target_modules=["q_proj"], init_lora_weights=False
    )
    models["unet"].add_adapter(config)
    models["text_encoder"].add_adapter(encoding)
    states = {name: peft.utils.get_peft_model_state_dict(model) for name, model in models.items()}
    diffusers.loaders.StableDiffusionLoraLoaderMixin.save_lora_weights(
        tmp_path,
        unet_lora_layers=states["unet"],
        text_encoder_lora_layers=states["text_encoder"],
        unet_lora_adapter_metadata=config.to_dict(),
        text_encoder_lora_adapter_metadata=encoding.to_dict(),
    )
    adapter = load(tmp_path / "pytorch_lora_weights.safetensors").require_sound()
    assert not adapter.info.account.unknown and adapter.info.dialect == "diffusers"
    found = {site.name: delta.dense() for site, delta in adapter.deltas.items()}
    expected = {
        full_name(component, path): layer.get_delta_weight("default").detach().numpy()
        for component, model in models.items()
        for path, layer in model.named_modules()
        if isinstance(layer, peft.tuners.lora.LoraLayer)
    }
    assert found.keys() == expected.keys()
    assert all(np.abs(found[name] - expected[name]).max() < 1e-5 for name in found)
    assert {d.alpha for d in adapter.deltas.values()} == {5.0, 2.0, 7.0}


# --- wrong files, each of which the check must refuse ------------------------------------------


def wrong_deltas(sample: Sample, wrong: str) -> dict[str, Array]:
    """What a faulty writer would have meant."""
    found = {}
    for name in usual("sd15"):
        path = name.partition(".")[2]
        component = name.partition(".")[0]
        stem = f"{component}/base_model.model.{path}"
        up, down = sample.tensors[f"{stem}.lora_B.weight"], sample.tensors[f"{stem}.lora_A.weight"]
        rank = down.shape[0]
        ratio = sample.configs[component]["alpha_pattern"][path] / rank
        scale = {
            "alpha ignored": 1.0,
            "ratio squared": ratio**2,
            "alpha over three ranks": ratio / 3,
        }
        found[name] = dense(
            up[::-1] if wrong == "rows swapped" else up, down, scale.get(wrong, ratio)
        )
    return found


def test_a_wrong_writer_would_be_seen(tmp_path: Path) -> None:
    path, expected = made("sd15", usual("sd15"), "diffusers", tmp_path, rank=RANKS, alpha=3.7)
    found = changes(load_as_pipelines_do(path, "sd15"), "sd15")
    assert agrees(found, expected)
    sample = spell(factors_for(usual("sd15"), rank=RANKS, alpha=3.7), "sd15", "peft")
    assert agrees(found, wrong_deltas(sample, "none"))
    for wrong in ("alpha ignored", "ratio squared", "alpha over three ranks", "rows swapped"):
        assert not agrees(found, wrong_deltas(sample, wrong)), wrong


def test_a_module_left_out_or_added_would_be_seen(tmp_path: Path) -> None:
    modules = dict(list(usual("sd15").items())[:9])
    path, expected = made("sd15", modules, "diffusers", tmp_path, rank=2, alpha=1.0)
    found = changes(load_as_pipelines_do(path, "sd15"), "sd15")
    assert agrees(found, expected)
    assert not agrees(found, dict(list(expected.items())[1:]))
    assert not agrees(dict(list(found.items())[1:]), expected)


def test_pipelines_load_block_weights_of_a_file_without_alphas(tmp_path: Path) -> None:
    """Modules that a vector changes get an alpha, so all must: diffusers takes one for the rest."""
    modules = usual("sd15")
    source = spell(factors_for(modules, rank=4, alpha=None), "sd15", "kohya")
    adapter = load(write(source, tmp_path / "source.safetensors"))
    vector = tuple(0.5 if i > 7 else 1.0 for i in range(17))
    of = Weight(blocks=vector).on(adapter)
    mixed, _ = mix([(adapter, Weight(blocks=vector))])
    path = tmp_path / "out.safetensors"
    save(mixed, path)
    expected = {name: value * of(Site((name,))) for name, value in oracle(source, modules).items()}
    assert len({of(Site((name,))) for name in expected}) == 2
    assert agrees(changes(load_as_pipelines_do(path, "sd15"), "sd15"), expected)
