"""The lines of the report of 2022 run as they were typed, on models of several kinds."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import loramerge as lm  # noqa: E402
from loramerge import (  # noqa: E402
    extract_lora_ups_down,
    inject_trainable_lora,
    save_lora_weight,
)
from tests.builders.samples import attention, factors_for, sayable, spell  # noqa: E402
from tests.builders.unets import loss_of, tiny_unet  # noqa: E402

save_file: Any = pytest.importorskip("safetensors.numpy").save_file
nn = torch.nn


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("blocks", [3, 2])  # a part of SD2's names, and names of no family
def test_the_snippet_trains_and_saves(
    blocks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pipe = SimpleNamespace(unet=tiny_unet(blocks=blocks))

    unet_lora_params, _ = inject_trainable_lora(pipe.unet, r=4)
    optimizer = torch.optim.AdamW(itertools.chain(*unet_lora_params), lr=1e-2)

    losses = []
    for _ in range(10):
        loss = loss_of(pipe.unet)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        if len(losses) == 5:
            assert all(p.grad.abs().sum() > 0 for p in itertools.chain(*unet_lora_params))
        optimizer.zero_grad()
    assert losses[-1] < losses[0]

    save_lora_weight(pipe.unet, "lora_weight.pt")

    saved = lm.load("lora_weight.pt")
    assert len(saved.deltas) == len(unet_lora_params)
    trained = loss_of(pipe.unet)
    fresh = tiny_unet(blocks=blocks)
    lm.load_lora_weight(fresh, "lora_weight.pt")
    torch.testing.assert_close(loss_of(fresh), trained)


def test_ups_and_downs_are_the_parameters_that_were_returned() -> None:
    unet = tiny_unet()
    groups, names = inject_trainable_lora(unet, r=4)
    pairs = extract_lora_ups_down(unet)
    assert len(pairs) == len(names)
    for (down, up), (found_up, found_down) in zip(groups, pairs, strict=True):
        assert up is found_up and down is found_down
    inside = extract_lora_ups_down(unet, {"GEGLU"})
    assert len(inside) == sum(name.endswith("net.0.proj") for name in names)
    with pytest.raises(lm.LoramergeError):
        extract_lora_ups_down(unet, {"NoSuchClass"})


def test_only_the_layers_inside_some_classes_are_saved(tmp_path: Path) -> None:
    unet = tiny_unet()
    _, names = inject_trainable_lora(unet, r=2)
    save_lora_weight(unet, tmp_path / "part.safetensors", {"GEGLU"})
    part = lm.load(tmp_path / "part.safetensors")
    assert len(part.deltas) == sum(name.endswith("net.0.proj") for name in names)


def _plain() -> Any:
    """A model of layers with one, two and three axes, and a linear one."""
    torch.manual_seed(0)
    return nn.ModuleDict({
        "head": nn.Linear(6, 5), "wave": nn.Conv1d(4, 6, 3, padding=1, stride=2),
        "image": nn.Conv2d(4, 6, 3, padding=1), "video": nn.Conv3d(4, 6, (1, 3, 3), padding=1),
    })  # fmt: skip


_INPUTS = {"head": (2, 6), "wave": (2, 4, 9), "image": (2, 4, 5, 5), "video": (2, 4, 3, 5, 5)}


def _outputs(model: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: model[name](torch.randn(shape, generator=generator))
        for name, shape in _INPUTS.items()
    }


@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_linear_layers_and_convolutions_of_any_model(
    suffix: str, decompose: bool, tmp_path: Path
) -> None:
    model = _plain()
    groups, names = inject_trainable_lora(model, r=2, preset="full", decompose=decompose)
    assert names == list(_INPUTS)
    with torch.no_grad():
        for parameter in itertools.chain(*groups):
            parameter.normal_()
    path = tmp_path / f"plain{suffix}"
    save_lora_weight(model, path)
    found = lm.load(path)
    assert found.info.detection.naming is None
    assert {site.name: delta.shape for site, delta in found.deltas.items()} == {
        name: tuple(model[name].weight.shape) for name in names
    }
    if not decompose:
        fresh = _plain()
        lm.load_lora_weight(fresh, path)
        torch.testing.assert_close(_outputs(fresh), _outputs(model))
    before = _outputs(model)
    lm.collapse_lora(model)
    torch.testing.assert_close(_outputs(model), before, rtol=1e-4, atol=1e-5)


def test_patterns_name_layers_in_full() -> None:
    model = nn.ModuleDict(
        {"fc1": nn.Linear(4, 4), "fc2": nn.Conv1d(4, 4, 3), "out": nn.Linear(4, 4)}
    )
    assert inject_trainable_lora(model, r=2, include="fc*")[1] == ["fc1", "fc2"]
    nested = nn.ModuleDict(
        {"block": nn.ModuleDict({"fc1": nn.Linear(4, 4), "out": nn.Linear(4, 4)})}
    )
    with pytest.raises(lm.UsageError, match=r"no layer matches 'fc\*'") as caught:
        inject_trainable_lora(nested, r=2, include="fc*")
    assert caught.value.hint == "write '*.fc*'"
    assert inject_trainable_lora(nested, r=2, include="*.fc*")[1] == ["block.fc1"]


@pytest.mark.parametrize(("name", "component"), [
    ("UNet2DConditionModel", "unet"), ("CLIPTextModel", "text_encoder"),
    ("CLIPTextModelWithProjection", "text_encoder_2"), ("WanTransformer3DModel", "transformer"),
    ("NewTransformer2DModel", "transformer"), ("T5EncoderModel", ""), ("Linear", ""),
])  # fmt: skip
def test_classes_name_components_as_families_do(name: str, component: str) -> None:
    """T5 is the second encoder in one family and the third in another, so its class says nothing."""
    from loramerge.train.lora.names import component_of

    assert component_of(type(name, (nn.Module,), {})()) == component


def test_a_list_without_names_is_written_only_where_its_places_suffice(tmp_path: Path) -> None:
    """lora_diffusion's file is a list in the order of SD1's layers; a part of them needs names."""
    from loramerge.train.lora.saving import _as_lists

    modules = sayable("lora_diffusion", "sd15", attention("sd15", full=True))
    made = spell(factors_for(modules, rank=1), "sd15", "lora_diffusion")
    save_file(made.tensors, tmp_path / "whole.safetensors", made.metadata)
    whole = lm.load(tmp_path / "whole.safetensors")
    assert _as_lists(whole, None) is not None
    some = dict(list(whole.deltas.items())[:5])
    assert _as_lists(whole.with_deltas(some), None) is None
