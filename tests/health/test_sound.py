"""Nothing is reported on real adapters, nor on sound merges that PEFT and diffusers made of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from loramerge.adapter import Adapter
from loramerge.adapter.load import load
from loramerge.algebra.health import LIMITS, examine
from loramerge.api import inspect
from loramerge.library.shipped import shipped
from tests.health.measured import RECORD, closest, figures_of, recorded
from tests.health.peft_merges import ALIKE, ANY_RANKS, merges

UPDATE = bool(os.environ.get("LORAMERGE_UPDATE_DOCS"))
SEVERAL = "ignore:Already found a `peft_config` attribute"
SHIPPED = ("zuzu", "polka")
PAIRS = (
    ("hf_catundchat", "hf_timoha", (*ANY_RANKS, *ALIKE)),
    ("analog_svd_rank4", "hf_timoha", (*ANY_RANKS, *ALIKE)),
    ("lora_disney", "analog_svd_rank4", ANY_RANKS),
    ("lora_disney", "hf_catundchat", ANY_RANKS),
)


def _with_base(adapter: Path) -> dict[str, float]:
    """The figures that need a base, of an adapter of the tiny model."""
    found = inspect(adapter, base=shipped("tiny"))
    assert found.findings == [] and found.base is not None
    low, high, _ = found.base["usual_change"]
    return {
        "stronger-than-usual": found.base["change"] / high,
        "weaker-than-usual": low / found.base["change"],
        "intruders": found.base["intruder_share"],
    }


def _sound(adapter: Adapter, what: str) -> dict[str, float]:
    assert [*adapter.info.problems, *examine(adapter).problems] == [], what
    return figures_of(adapter)


def _record(sort: str, found: dict[str, float]) -> None:
    """Compare figures with those on record, which the document shows."""
    if UPDATE:
        known = recorded() if RECORD.exists() else {}
        known[sort] = {code: float(f"{value:.3g}") for code, value in found.items()}
        if "collapsed" in found:
            known[sort]["collapsed"] = found["collapsed"]
        text = json.dumps(known, indent=1, sort_keys=True) + "\n"
        RECORD.write_text(text, "utf-8", newline="\n")
    on_record = recorded()[sort]
    assert found.keys() == on_record.keys()
    for code, value in found.items():
        assert value == pytest.approx(on_record[code], rel=0.02, abs=1e-6), code


def test_real_adapters(shared_data):
    real = sorted((shared_data / "adapters").iterdir())
    several = [_sound(load(path), path.name) for path in (*real, *map(shipped, SHIPPED))]
    several += [_with_base(shipped(name)) for name in SHIPPED]
    assert len(real) == 5
    _record("real", closest(several))


def test_the_limits_are_beyond_what_is_on_record():
    for figures in recorded().values():
        for code, value in figures.items():
            limit = LIMITS[code]
            if code == "layer-lost":
                assert value == 0
            else:
                assert (value > limit.value) if limit.below else (value < limit.value), code


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.filterwarnings(SEVERAL)
def test_merges_by_peft_and_diffusers(shared_data, tmp_path):
    pytest.importorskip("peft")
    several = []
    for first, second, kinds in PAIRS:
        pair = [load(shared_data / "adapters" / f"{n}.safetensors") for n in (first, second)]
        for what, folder in merges(pair, kinds, tmp_path / first):
            several.append(_sound(load(folder), f"{first} and {second}: {what}"))
    several += [_sound(load(path), what) for what, path in _of_the_tiny_model(tmp_path)]
    _record("merged", closest(several))


@pytest.mark.peers
@pytest.mark.long_tail
@pytest.mark.filterwarnings(SEVERAL)
def test_merges_of_the_tiny_model(tmp_path):
    pytest.importorskip("peft")
    for what, path in _of_the_tiny_model(tmp_path, ("cat", "svd", "ties_svd")):
        _sound(load(path), what)


def _of_the_tiny_model(folder: Path, kinds: Any = None) -> Any:
    """Merges of the adapters that come with loramerge: by PEFT, and in diffusers' UNet."""
    pair = [load(shipped(name)) for name in SHIPPED]
    every = ("cat", "svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd")
    yield from merges(pair, kinds or every, folder / "peft")
    yield from _in_diffusers(folder / "diffusers")


def _in_diffusers(folder: Path) -> Any:
    """The two loaded into diffusers' UNet, joined there, and saved by it."""
    diffusers = pytest.importorskip("diffusers")
    import loramerge as lm

    unet = diffusers.UNet2DConditionModel.from_pretrained(shipped("tiny"), subfolder="unet")
    for name in SHIPPED:
        path = folder / f"{name}.safetensors"
        lm.save(lm.convert(lm.load(name), keep=["unet"]), path, dialect="diffusers", force=True)
        unet.load_lora_adapter(str(path), adapter_name=name, prefix="unet")
    for weights in ([1.0, 1.0], [0.7, 0.3]):
        for kind in ("cat", "svd"):
            _join(unet, weights, kind)
            for key, value in unet.named_parameters():
                if ".joined." in key:
                    value.data = value.data.contiguous()
            unet.save_lora_adapter(folder / "out", adapter_name="joined", safe_serialization=True)
            unet.delete_adapters("joined")
            yield f"diffusers {kind} {weights}", folder / "out" / "pytorch_lora_weights.safetensors"


def _join(unet: Any, weights: list[float], kind: str) -> None:
    """Join adapters of a model that diffusers gave them, by PEFT's tuner."""
    import torch
    from peft.tuners.lora import LoraModel

    tuner: Any = LoraModel.__new__(LoraModel)
    torch.nn.Module.__init__(tuner)
    tuner.model, tuner.peft_config = unet, unet.peft_config
    tuner.targeted_module_names, tuner.targeted_parameter_names = [], []
    tuner.active_adapter = list(SHIPPED)
    tuner.add_weighted_adapter(list(SHIPPED), weights, "joined", combination_type=kind)
