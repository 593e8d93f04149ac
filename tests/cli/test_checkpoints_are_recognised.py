"""Checkpoints are recognised by `inspect` and other verbs in any naming."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loramerge.checkpoint import open_checkpoint
from loramerge.families import FAMILIES
from loramerge.verbs.inspect import Inspect, Inspected, inspect
from tests.adapter.test_peft_fields import folder
from tests.builders.bases import write_safetensors
from tests.builders.commands import Runner
from tests.builders.samples import sparse_safetensors
from tests.tail import tail

FAMILY = [name for name, f in FAMILIES.items() if f.spellings.get("transformer")]


def _of_original_names(family: str, least: int = 0) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a transformer in a single file without a prefix, as wide as it is."""
    (component,) = (c for c in FAMILIES[family].components if c.name == "transformer")
    shapes: dict[str, tuple[int, ...]] = {}
    spelling = next(s for s in FAMILIES[family].spellings["transformer"] if not s.prefix)
    for module, parameter, slot in spelling.slots(component):
        rows, *rest = module.shape if parameter == "weight" else module.shape[:1]
        shapes[slot.tensor] = (rows * slot.parts // slot.span, *rest)
    return dict(list(shapes.items())[least:])


def _one(path: Path) -> Inspected:
    return inspect(Inspect(files=(str(path),))).files[0]


@pytest.mark.parametrize("family", [f if f == "flux1" else tail(f) for f in FAMILY])
def test_a_transformer_alone_is_a_checkpoint(family: str, tmp_path: Path) -> None:
    found = _one(sparse_safetensors(tmp_path / "model.safetensors", _of_original_names(family)))
    assert found.what == "checkpoint"
    assert found.family == family
    assert not found.findings and not found.loads_in


def test_a_checkpoint_cut_short_is_no_adapter(tmp_path: Path, run) -> None:
    """Norms of Flux are called `.scale`, which is how bare adapters replace them."""
    shapes = dict(list(_of_original_names("flux1").items())[:300])
    sparse_safetensors(run.folder / "part.safetensors", shapes)
    assert _one(run.folder / "part.safetensors").what == "checkpoint"
    says = ("the base lacks 64 modules", "no known family")
    run.refused(5, "bake", "--base", "part.safetensors", "--lora", "a", says=says)


def test_a_network_of_names_of_a_family_and_other_widths_is_none_of_it(tmp_path: Path) -> None:
    shapes = _of_original_names("qwen-image")
    narrower = {k: tuple({3072: 2048, 12288: 8192}.get(n, n) for n in s) for k, s in shapes.items()}
    found = _one(sparse_safetensors(tmp_path / "model.safetensors", narrower))
    assert (found.what, found.family) == ("checkpoint", None)
    assert [problem.code for problem in found.findings] == ["no-family"]


def test_modules_of_no_family_get_no_claim_about_programs(tmp_path: Path) -> None:
    keys = {
        f"diffusion_model.double_blocks.0.img_attn_both.lora_{side}.weight": shape
        for side, shape in {"A": (1, 4096), "B": (12288, 1)}.items()
    }
    found = _one(sparse_safetensors(tmp_path / "a.safetensors", keys))
    assert (found.what, found.family, found.loads_in) == ("adapter", None, [])


CLASSES = ("T5ForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration", "CLIPModel")


@pytest.mark.parametrize("name", CLASSES)
def test_models_of_transformers_are_taken_by_their_configuration(name: str, tmp_path: Path) -> None:
    """The names of their halves are those of text encoders beside diffusion models."""
    (component,) = (c for c in FAMILIES["sd15"].components if c.name == "text_encoder")
    tensors = {
        f"{module.path}.{parameter}": np.zeros(
            (4,) * len(module.shape[: 2 - (parameter == "bias")])
        )
        for module in component.modules
        for parameter in ("weight", "bias")
    }
    tensors["vision_model.encoder.layers.0.mlp.fc1.weight"] = np.zeros((4, 4))
    write_safetensors(
        tmp_path / "model.safetensors", {k: v.astype("f4") for k, v in tensors.items()}
    )
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "clip", "architectures": [name]})
    )
    found = open_checkpoint(tmp_path)
    assert found.candidates == ()
    assert ("vision_model.encoder.layers.0.mlp.fc1", "weight") in found.slots
    shown = _one(tmp_path)
    assert shown.modules == shown.components["model"] == len({name for name, _ in found.slots})
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "clip", "architectures": ["CLIPTextModel"]})
    )
    assert open_checkpoint(tmp_path).candidates  # a text encoder of diffusion models


@pytest.mark.parametrize(
    "library", [None, "transformers", "transformers.models.clip.modeling_clip"]
)
def test_an_adapter_whose_configuration_names_no_model(library: str | None, run: Runner) -> None:
    """PEFT names it only without `task_type`; a vision encoder has the names of a text encoder."""
    names = [f"encoder.layers.{i}.self_attn.q_proj" for i in range(4)]
    (run.folder / "base").mkdir()
    weights = {f"{name}.weight": np.zeros((4, 4), "f4") for name in names}
    write_safetensors(run.folder / "base" / "model.safetensors", weights)
    content = {"model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"]}
    (run.folder / "base" / "config.json").write_text(json.dumps(content))
    mapping = {"base_model_class": "CLIPVisionModel", "parent_library": library}
    fields = {} if library is None else {"auto_mapping": mapping}
    folder(run.folder / "adapter", fields, tuple(names), "base_model.model")
    command = ("bake", "--base", "base", "adapter", "-o", "out")
    if library is not None:
        assert "4 modules" in run.ok(*command).out
        return
    says = ("does not name the model", "the base base is a CLIPVisionModel", "auto_mapping")
    run.refused(4, *command, says=says)


@pytest.mark.parametrize("known", [True, False])
def test_a_checkpoint_in_several_files_is_one(known: bool, tmp_path: Path) -> None:
    """The folder, or its index, whether transformers knows the model or nothing does."""
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(4)]
    weights = {}
    for number, part in enumerate((names[:2], names[2:]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        sparse_safetensors(tmp_path / file, dict.fromkeys(part, (4, 4)))
        weights |= dict.fromkeys(part, file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weights}))
    if known:
        content = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        (tmp_path / "config.json").write_text(json.dumps(content))
    for path in (tmp_path, index):
        found = _one(path)
        assert (found.what, found.modules, found.path) == ("checkpoint", 4, str(path))
        assert (found.family == "transformers") == known


def test_the_ends_of_keys_alone_name_no_dialect(tmp_path: Path) -> None:
    """A state dict of a model that trains factors of its own, as any program may write one."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(3):
        stem = f"encoder.layer.{i}.attn.q"
        shapes |= {f"{stem}.lora_A": (2, 8), f"{stem}.lora_B": (8, 2)}
    found = _one(sparse_safetensors(tmp_path / "mine.safetensors", shapes))
    assert (found.what, found.family, found.dialect) == ("adapter", None, None)
    assert found.modules == 3 and not found.loads_in
