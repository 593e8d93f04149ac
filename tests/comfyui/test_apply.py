"""Adapters on a loaded model change it as a bake would, lazily, whole, or not at all."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

import loramerge as lm
from loramerge.algebra.weights import Weight
from loramerge.errors import FamilyError, NotExpressible, ShapeError
from loramerge.families import FAMILIES
from tests.builders.bases import read_safetensors, write_safetensors
from tests.comfyui import narrow
from tests.comfyui.conftest import Runner
from tests.comfyui.stub import Network, Patcher, World

pytest.importorskip("torch")


def _networks(seed: int = 0) -> tuple[Patcher, Patcher]:
    """The denoiser and the text encoder with the names that our adapters use."""
    random = np.random.default_rng(seed)
    parts: dict[str, dict[str, Any]] = {"unet": {}, "text_encoder": {}}
    for name, module in narrow.MODULES.items():
        component, _, path = name.partition(".")
        parts[component][f"{path}.weight"] = random.standard_normal(module.shape)
    return Patcher(Network(parts["unet"])), Patcher(Network(parts["text_encoder"]))


def _oracle(model: Patcher, component: str, stack: Any) -> dict[str, Any]:
    """Return base + Σ weight · ΔW, in float64."""
    found = {key: value.astype(np.float64) for key, value in model.model.weights.items()}
    for adapter, weight in stack:
        weight_of = weight.on(adapter)
        for site, delta in adapter.deltas.items():
            if site.component == component:
                key = f"{site.modules[0].partition('.')[2]}.weight"
                found[key] = found[key] + weight_of(site) * np.asarray(delta.dense(), np.float64)
    return found


def _agree(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return all(np.allclose(found[key], expected[key], rtol=0, atol=1e-5) for key in expected)


_WEIGHTS = "{unet: 0.5, text_encoder: -1, match: {'*attn2*': 2}}"


def _stack(runner: Runner) -> Any:
    (style,) = runner.run("LoramergeLoad", adapter="style.safetensors")
    (one,) = runner.run("LoramergeBlockWeights", adapter=style, weights=_WEIGHTS)
    (two,) = runner.run(
        "LoramergeLoadStack", adapter_1="character.safetensors", weight_1=0.7, stack=one
    )
    return two


def test_it_adds_what_a_bake_would(runner: Runner) -> None:
    model, clip = _networks()
    stack = _stack(runner)
    new, encoders = runner.run("LoramergeApply", stack=stack, model=model, clip=clip)
    assert not model.patches and not clip.patches, "the models that came in are not changed"
    assert new.model is model.model, "the weights are shared until they are used"
    assert _agree(new.patched(), _oracle(model, "unet", stack))
    assert _agree(encoders.patched(), _oracle(clip, "text_encoder", stack))


def test_a_wrong_weight_would_be_found(runner: Runner) -> None:
    model, clip = _networks()
    stack = _stack(runner)
    wrong = [(adapter, Weight()) for adapter, _ in stack]
    new, _ = runner.run("LoramergeApply", stack=wrong, model=model, clip=clip)
    assert not _agree(new.patched(), _oracle(model, "unet", stack))


def test_a_mix_is_applied_as_it_is_saved(runner: Runner, world: World) -> None:
    model, clip = _networks()
    mix, _ = runner.run("LoramergeMix", stack=_stack(runner), method="ties", options="density: 0.5")
    (stack,) = runner.run("LoramergeBlockWeights", adapter=mix)
    new, encoders = runner.run("LoramergeApply", stack=stack, model=model, clip=clip)
    (path,) = runner.run("LoramergeSave", adapter=mix)
    saved = [(lm.load(path), Weight())]
    assert _agree(new.patched(), _oracle(model, "unet", saved))
    assert _agree(encoders.patched(), _oracle(clip, "text_encoder", saved))


def test_zero_leaves_an_adapter_out(runner: Runner) -> None:
    model, _ = _networks()
    (style,) = runner.run("LoramergeLoad", adapter="style.safetensors")
    (stack,) = runner.run("LoramergeBlockWeights", adapter=style, weights="te=0")
    new, _ = runner.run("LoramergeApply", stack=stack, model=model)
    assert _agree(new.patched(), _oracle(model, "unet", stack))


def test_text_encoders_are_not_dropped_silently(runner: Runner) -> None:
    model, _ = _networks()
    (stack,) = runner.run("LoramergeLoadStack", adapter_1="style.safetensors")
    with pytest.raises(FamilyError, match="text encoders of the adapter have no place") as error:
        runner.run("LoramergeApply", stack=stack, model=model)
    assert "connect clip, or choose missing='skip text encoders'" in str(error.value)
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("loramerge").addHandler(handler)
    try:
        new, clip = runner.run(
            "LoramergeApply", stack=stack, model=model, missing="skip text encoders"
        )
    finally:
        logging.getLogger("loramerge").removeHandler(handler)
    assert clip is None and new.patches
    assert len(said) == 1 and "left out, because the model lacks them" in said[0]


def test_an_adapter_of_no_known_family_is_matched_by_name(runner: Runner, world: World) -> None:
    for name, seed in (("one", 5), ("two", 6)):
        tensors = narrow.adapter_tensors(2, seed, only="layers.0")
        write_safetensors(world.loras / f"{name}.safetensors", tensors)
    with FAMILIES.adding():
        FAMILIES._added.pop("narrow")
        (stack,) = runner.run("LoramergeLoadStack", adapter_1="one.safetensors", weight_1=0.5)
        assert stack[0][0].family is None
        model, clip = _networks()
        _, encoders = runner.run("LoramergeApply", stack=stack, model=model, clip=clip)
    known = [(lm.load(world.loras / "one.safetensors"), Weight(0.5))]
    assert _agree(encoders.patched(), _oracle(clip, "text_encoder", known))


def test_modules_that_the_model_lacks(runner: Runner) -> None:
    model, clip = _networks()
    lost = next(key for key in model.model.weights if "mid_block" in key and "attn1.to_q" in key)
    del model.model.weights[lost]
    (stack,) = runner.run("LoramergeLoadStack", adapter_1="character.safetensors")
    for missing in ("refuse", "skip text encoders"):
        with pytest.raises(FamilyError, match="the model lacks modules of the adapter") as error:
            runner.run("LoramergeApply", stack=stack, model=model, clip=clip, missing=missing)
        assert "hint: choose missing='skip all'" in str(error.value)
    new, _ = runner.run("LoramergeApply", stack=stack, model=model, clip=clip, missing="skip all")
    assert new.patches


def test_a_model_of_other_shapes(runner: Runner) -> None:
    model, clip = _networks()
    key = next(key for key in model.model.weights if "mid_block" in key and "attn2.to_k" in key)
    model.model.weights[key] = np.zeros((64, 32))
    (stack,) = runner.run("LoramergeLoadStack", adapter_1="character.safetensors")
    with pytest.raises(ShapeError, match="the adapter is for a model of other shapes"):
        runner.run("LoramergeApply", stack=stack, model=model, clip=clip)
    assert not model.patches


def test_what_comfyui_computes_otherwise_is_refused(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loramerge.adapter.readers import Reading
    from loramerge.dialects.programs import READERS

    said = Reading(READERS["comfyui"], otherwise={"its rows are exchanged": ("a", "b")})
    monkeypatch.setattr("loramerge.comfyui.live.reading", lambda *_: said)
    model, clip = _networks()
    (stack,) = runner.run("LoramergeLoadStack", adapter_1="character.safetensors")
    with pytest.raises(NotExpressible, match="its rows are exchanged"):
        runner.run("LoramergeApply", stack=stack, model=model, clip=clip)


def test_the_file_stays_as_it_is(runner: Runner, world: World) -> None:
    model, clip = _networks()
    before = read_safetensors(world.loras / "style.safetensors")
    (stack,) = runner.run("LoramergeLoadStack", adapter_1="style.safetensors", weight_1=0.3)
    runner.run("LoramergeApply", stack=stack, model=model, clip=clip)
    after = read_safetensors(world.loras / "style.safetensors")
    assert all(np.array_equal(after[0][key], value) for key, value in before[0].items())
