"""Files trained on SD1.5-, SD2.1- and SDXL-shaped pipelines load in diffusers, and do the same."""

from __future__ import annotations

import copy
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
diffusers: Any = pytest.importorskip("diffusers")
pytest.importorskip("peft")

import loramerge as lm  # noqa: E402
from tests.builders.models import stirred  # noqa: E402
from tests.builders.samples import read_safetensors  # noqa: E402
from tests.peers.test_diffusers_loads import (  # noqa: E402
    Models,
    as_pipelines_load,
    complaints,  # noqa: F401
    originals,
)
from tests.tail import crossed, tail  # noqa: E402

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]
FAMILIES = ("sd15", "sd21", "sdxl")
ARCHITECTURES = {
    "sd15": "stable-diffusion-v1/lora",
    "sd21": "stable-diffusion-v2-768-v/lora",
    "sdxl": "stable-diffusion-xl-v1-base/lora",
}


def trained(family: str, **options: Any) -> Models:
    models = copy.deepcopy(originals(family))
    torch.manual_seed(3)
    for component, model in models.items():
        how = {"preset": "attn-ff" if component == "unet" else "attn", **options}
        lm.inject_trainable_lora(model, 3, alpha=2.0, rank_pattern={"*to_q": 4, "*": 2}
            if component == "unet" else {"*q_proj": 4}, **how)  # fmt: skip
        stirred(model)
        model.eval()
    return models


@torch.no_grad()
def outputs(models: Models, family: str) -> list[Any]:
    """What the UNet and each text encoder give for fixed inputs."""
    for model in models.values():
        model.eval()
    generator = torch.Generator().manual_seed(8)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 5, 12, generator=generator)
    added = None
    if family == "sdxl":
        pooled = torch.randn(2, 16, generator=generator)
        added = {"text_embeds": pooled, "time_ids": torch.arange(8.0).reshape(2, 4)}
    found = [models["unet"](latents, 300, text, added_cond_kwargs=added).sample]
    tokens = torch.tensor([[0, 5, 9, 1]])
    return found + [
        models[name](tokens).last_hidden_state for name in sorted(models) if name != "unet"
    ]


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("family", [tail(f) if f == "sdxl" else f for f in FAMILIES])
@pytest.mark.parametrize("dialect", ["kohya", "diffusers"])
def test_pipelines_load_it_and_give_the_trainers_output(
    dialect: str,
    family: str,
    tmp_path: Path,
    complaints: list[str],  # noqa: F811
) -> None:
    models = trained(family)
    path = tmp_path / "trained.safetensors"
    lm.save_lora_weight(models, path, dialect=dialect, prediction=
        "v_prediction" if family == "sd21" else "epsilon")  # fmt: skip
    adapter = lm.load(path)
    assert adapter.info.detection.name == family and not adapter.info.account.unknown
    assert adapter.info.metadata["modelspec.architecture"] == ARCHITECTURES[family]
    plain = outputs(originals(family), family)
    for ours, theirs, base in zip(
        outputs(models, family), outputs(as_pipelines_load(path, family), family), plain,
        strict=True,
    ):  # fmt: skip
        assert torch.allclose(ours, theirs, atol=2e-5)
        assert not torch.allclose(ours, base, atol=1e-2)
    assert not complaints


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize(("dialect", "family"), crossed(["kohya", "diffusers", "peft"], FAMILIES))
def test_it_is_loaded_again_for_more_training(dialect: str, family: str, tmp_path: Path) -> None:
    models = trained(family, rslora=True)
    path = tmp_path / ("folder" if dialect == "peft" else "trained.safetensors")
    lm.save_lora_weight(models, path, dialect=dialect)
    fresh = copy.deepcopy(originals(family))
    groups, names = lm.load_lora_weight(fresh, path)
    assert len(names) == len(set(names)) == len(lm.load(path).deltas)
    assert {id(p) for m in fresh.values() for p in m.parameters() if p.requires_grad} == {
        id(p) for p in chain(*groups)
    }
    for model in fresh.values():
        model.eval()
    for ours, again in zip(outputs(models, family), outputs(fresh, family), strict=True):
        assert torch.allclose(ours, again, atol=2e-5)


def test_kohya_files_have_an_alpha_for_every_module_and_say_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "trained.safetensors"
    lm.save_lora_weight(trained("sd21"), path, prediction="v_prediction")
    tensors, metadata = read_safetensors(path)
    stems = {key.rpartition(".lora_down")[0] for key in tensors if ".lora_down" in key}
    assert stems and all(f"{stem}.alpha" in tensors for stem in stems)
    assert metadata["ss_network_module"] == "networks.lora" and metadata["ss_v2"] == "True"
    assert metadata["ss_base_model_version"] == "sd_v2_v"
    assert metadata["ss_v_parameterization"] == "True"
    assert metadata["modelspec.prediction_type"] == "v"
    assert metadata["ss_network_dim"] == "Dynamic" and metadata["sshs_model_hash"].strip()


def test_a_unet_alone_names_itself(tmp_path: Path) -> None:
    unet = copy.deepcopy(originals("sd15")["unet"])
    lm.inject_trainable_lora_extended(unet, 2)
    stirred(unet)
    path = tmp_path / "unet.safetensors"
    lm.save_lora_weight(unet, path)
    adapter = lm.load(path)
    assert adapter.info.dialect == "kohya" and adapter.family.name == "sd15"
    fresh = copy.deepcopy(originals("sd15"))
    lm.load_lora_weight(fresh["unet"], path)
    lm.collapse_lora(fresh["unet"])
    expected = outputs({"unet": unet.eval()}, "sd15")
    assert torch.allclose(
        expected[0], outputs({"unet": fresh["unet"].eval()}, "sd15")[0], atol=2e-5
    )


def test_a_unet_that_only_resembles_a_family_keeps_its_own_names(tmp_path: Path) -> None:
    """Most of its names are SDXL's, but not all: none may be lost."""
    from tests.builders.unets import loss_of, tiny_unet

    unet, fresh = tiny_unet(blocks=2), tiny_unet(blocks=2)
    _, names = lm.inject_trainable_lora(unet, 2)
    stirred(unet)
    path = tmp_path / "tiny.safetensors"
    lm.save_lora_weight(unet, path)
    adapter = lm.load(path)
    assert adapter.info.detection.naming is None and not adapter.info.account.unknown
    assert {name for name, _ in adapter.modules()} == {f"unet.{name}" for name in names}
    assert lm.load_lora_weight(fresh, path)[1] == names
    assert torch.allclose(loss_of(fresh), loss_of(unet), atol=1e-6)
    assert not torch.allclose(loss_of(tiny_unet(blocks=2)), loss_of(unet), atol=1e-3)
    small = lm.resize(adapter, rank=1)
    lm.save(small, tmp_path / "small.safetensors")
    assert len(lm.load(tmp_path / "small.safetensors").deltas) == len(names)
    fresh = tiny_unet(blocks=2)
    fresh.load_lora_adapter(str(path), prefix="unet")  # diffusers' own loader
    assert torch.allclose(loss_of(fresh), loss_of(unet), atol=1e-5)
