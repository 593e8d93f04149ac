"""Flux against diffusers: its models, its converters, and its loader."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.families import FAMILIES, Spelling, parameters
from tests.builders.flux import (
    LISTINGS,
    Tensors,
    diffusers_weights,
    filled,
    listing,
    meaning,
    worst,
    write,
)
from tests.builders.samples import read_safetensors

torch: Any = pytest.importorskip("torch")
diffusers: Any = pytest.importorskip("diffusers")
transformers: Any = pytest.importorskip("transformers")
peft: Any = pytest.importorskip("peft")

FLUX = FAMILIES["flux1"]


def shapes_of(model: Any) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in model.state_dict().items() if "position_ids" not in k}


def told(component: str, spelling: Spelling) -> dict[str, tuple[int, ...]]:
    modules = next(c.modules for c in FLUX.components if c.name == component)
    found = {}
    for module in modules:
        for parameter in parameters(module):
            slot = spelling.slot(module, parameter)
            assert slot is not None and slot.parts == 1 and not slot.swapped
            found[slot.tensor] = module.shape if parameter == "weight" else module.shape[:1]
    return found


def in_folder(component: str) -> list[Spelling]:
    return [s for s in FLUX.spellings[component] if s.layout == "diffusers" and not s.prefix]


def test_the_transformer_has_the_names_and_shapes_of_diffusers() -> None:
    with torch.device("meta"):
        model = diffusers.FluxTransformer2DModel(guidance_embeds=True)
    assert told("transformer", in_folder("transformer")[0]) == shapes_of(model)


def test_the_encoders_have_the_names_and_shapes_of_transformers() -> None:
    with torch.device("meta"):
        t5 = transformers.T5EncoderModel(
            transformers.T5Config(
                vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
                feed_forward_proj="gated-gelu",
            )
        )  # fmt: skip
        clip = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12
            )
        )
    expected = shapes_of(t5)
    assert expected.pop("encoder.embed_tokens.weight") == expected["shared.weight"]  # one tensor
    assert told("text_encoder_2", in_folder("text_encoder_2")[0]) == expected
    assert shapes_of(clip) in [told("text_encoder", s) for s in in_folder("text_encoder")]


def single_file() -> Tensors:
    """Every tensor of the original file with full rows and one column, its rows numbered."""
    component = FLUX.components[0]
    heights: dict[str, int] = {}
    for module, _, slot in FLUX.spellings["transformer"][0].slots(component):
        heights[slot.tensor] = heights.get(slot.tensor, 0) + module.shape[0]
    random = np.random.default_rng(0)
    return {
        name: random.standard_normal((rows, 1) if name.endswith(".weight") else rows).astype("float32")
        for name, rows in heights.items()
    }  # fmt: skip


def cut(file: Tensors, *, swapped: bool = True) -> Tensors:
    """Every parameter of diffusers' model, taken from the original file as the slots say."""
    found = {}
    for module, parameter, slot in FLUX.spellings["transformer"][0].slots(FLUX.components[0]):
        whole = file[slot.tensor]
        unit = whole.shape[0] // slot.parts
        value = whole[unit * slot.part : unit * (slot.part + slot.span)]
        if slot.swapped and swapped:
            value = np.concatenate(np.split(value, 2)[::-1])
        found[f"{module.path}.{parameter}"] = value
    return found


def test_the_single_file_is_cut_as_diffusers_cuts_it() -> None:
    utils: Any = pytest.importorskip("diffusers.loaders.single_file_utils")
    file = single_file()
    given = {name: torch.from_numpy(value) for name, value in file.items()}
    converted = utils.convert_flux_transformer_checkpoint_to_diffusers(given)
    expected = {name: value.numpy() for name, value in converted.items()}
    found = cut(file)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    wrong = cut(file, swapped=False)
    assert [n for n in expected if not np.array_equal(wrong[n], expected[n])] == [
        "norm_out.linear.weight", "norm_out.linear.bias",
    ]  # fmt: skip


def full_rows(data: Path, name: str) -> Tensors:
    """A real adapter with the rows of the real network (which diffusers counts on), few columns."""
    random = np.random.default_rng(4)
    found: Tensors = {}
    for key, shape in listing(data, name).items():
        down = "lora_down" in key or "lora_A" in key
        small = [shape[0], 3] if down else shape
        found[key] = (
            random.standard_normal(small).astype("float32") if shape else np.array(3.0, "float32")
        )
    return found


def modern(key: str) -> str:
    """Today's spelling of the text encoder's keys, which the converter gives in an older one."""
    key = re.sub(r"\.to_([qkv])_lora\.", r".\1_proj.lora_linear_layer.", key)
    key = key.replace(".to_out_lora.", ".out_proj.lora_linear_layer.")
    key = key.replace(".lora_linear_layer.down.", ".lora_A.")
    return key.replace(".lora_linear_layer.up.", ".lora_B.")


@pytest.mark.parametrize("wrong", [None, "q and v"])
def test_conversions_equal_those_of_diffusers(
    shared_data: Path, tmp_path: Path, wrong: str | None
) -> None:
    utils: Any = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    tensors = full_rows(shared_data, "invoke_flux_lora_kohya_with_te1_format")
    tensors = {key: value for key, value in tensors.items() if "blocks_1" not in key}
    theirs = utils._convert_kohya_flux_lora_to_diffusers(
        {key: torch.from_numpy(value.copy()) for key, value in tensors.items()}
    )
    named = {modern(key): value.numpy() for key, value in theirs.items()}
    save(
        load(write(tensors, tmp_path / "a.safetensors")), tmp_path / "b.safetensors", to="diffusers"
    )
    ours, _ = read_safetensors(tmp_path / "b.safetensors")
    if wrong:
        q, v = (f"transformer.transformer_blocks.0.attn.to_{x}.lora_B.weight" for x in "qv")
        ours[q], ours[v] = ours[v], ours[q]
    expected = meaning(named)
    assert (worst(meaning(ours), expected) < 1e-6) is (wrong is None)


def test_xlabs_is_read_as_diffusers_reads_it(tmp_path: Path) -> None:
    utils: Any = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    random = np.random.default_rng(6)
    stems = {
        "double_blocks.0.processor.qkv_lora1": 96,
        "double_blocks.0.processor.qkv_lora2": 96,
        "double_blocks.0.processor.proj_lora1": 32,
        "double_blocks.0.processor.proj_lora2": 32,
        "single_blocks.0.processor.qkv_lora": 96,
        "single_blocks.0.processor.proj_lora": 32,
    }
    tensors = {
        f"{stem}.{role}.weight": random.standard_normal(
            (4, 32) if role == "down" else (rows, 4)
        ).astype("float32")
        for stem, rows in stems.items()
        for role in ("down", "up")
    }
    theirs = utils._convert_xlabs_flux_lora_to_diffusers(
        {key: torch.from_numpy(value.copy()) for key, value in tensors.items()}
    )
    save(
        load(write(tensors, tmp_path / "a.safetensors")), tmp_path / "b.safetensors", to="diffusers"
    )
    ours, _ = read_safetensors(tmp_path / "b.safetensors")
    assert worst(meaning(ours), meaning({k: v.numpy() for k, v in theirs.items()})) < 1e-12


# --- loading -----------------------------------------------------------------------------------


def model_of(width: int = 32) -> Any:
    torch.manual_seed(0)
    return diffusers.FluxTransformer2DModel(
        num_layers=19, num_single_layers=38, attention_head_dim=width // 2, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=8, in_channels=32, guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )  # fmt: skip


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What diffusers and PEFT say while they load, warnings and worse."""

    class Listener(logging.Handler):
        def __init__(self) -> None:
            super().__init__(logging.WARNING)
            self.said: list[str] = []

        def emit(self, record: logging.LogRecord) -> None:
            self.said.append(record.getMessage())

    handler = Listener()
    loggers = [logging.getLogger(name) for name in ("diffusers", "peft")]
    for logger in loggers:
        logger.addHandler(handler)
    yield handler.said
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("name", LISTINGS)
def test_pipelines_load_what_is_written(
    shared_data: Path, tmp_path: Path, name: str, complaints: list[str]
) -> None:
    shapes = {k: s for k, s in listing(shared_data, name).items() if "lora_te" not in k}
    path = write(filled(shapes, dtype="float32"), tmp_path / "a.safetensors")
    expected = meaning(read_safetensors(path)[0])
    save(load(path), tmp_path / "b.safetensors", to="diffusers")
    mixin: Any = diffusers.loaders.FluxLoraLoaderMixin
    before = model_of()
    model = copy.deepcopy(before)
    state, metadata = mixin.lora_state_dict(
        str(tmp_path / "b.safetensors"), return_lora_metadata=True
    )
    mixin.load_lora_into_transformer(
        state, network_alphas=None, transformer=model, metadata=metadata, adapter_name="ours"
    )
    for layer in model.modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            layer.merge(safe_merge=True)
    after = {
        k.replace(".base_layer.", "."): v.detach().numpy().astype("float64")
        for k, v in model.named_parameters()
        if ".lora_" not in k
    }
    moved = {}
    for key, value in before.named_parameters():
        change = after[key] - value.detach().numpy().astype("float64")
        if change.any():
            moved["transformer." + key.removesuffix(".weight")] = change
    assert not complaints
    assert worst(moved, expected) < 1e-5


def test_the_builder_of_a_network_is_diffusers_own() -> None:
    """The narrow network of the tests has the linear layers of diffusers' model."""
    from tests.builders.flux import native_weights

    names = {k for k in model_of().state_dict() if ".norm_" not in k}
    assert set(diffusers_weights(native_weights(4))) == names
