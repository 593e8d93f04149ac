"""What each dialect can say of each kind and of each family, found out by trying.

A sample of every kind is encoded for every dialect and read back; nothing here lists what should
come out.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.adapter import Adapter, Site
from loramerge.adapter.encode import encode
from loramerge.adapter.info import Info
from loramerge.adapter.kinds import known_kinds
from loramerge.adapter.load import load
from loramerge.adapter.save import write_encoded
from loramerge.dialects import DIALECTS, Dialect, stem_table
from loramerge.dialects.detection import Detection
from loramerge.errors import LoramergeError
from loramerge.families import FAMILIES, Family
from tests.builders import kinds, peft_kinds
from tests.builders.folders import folder_of_process
from tests.builders.samples import safetensors_bytes

__all__ = ["families_by_dialect", "kinds_by_dialect", "kinds_by_type", "proven", "samples"]

_STEM = kinds.STEMS["linear"]
_NORM = "lora_unet_down_blocks_1_attentions_0_norm"
_PEFT_STEM = "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"

_EMBEDDING = "base_model.model.text_model.embeddings.token_embedding.lora_embedding"


def proven() -> dict[str, str]:
    """Return kind → what its change is compared with in the tests."""
    return {kind.name: kind.compared for kind in known_kinds() if kind.roles and kind.compared}


def _kohya(tensors: dict[str, Any], stem: str = _STEM) -> dict[str, Any]:
    return {f"{stem}.{end}": value for end, value in tensors.items()}


def _peft(tensors: dict[str, Any], config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return {f"{_PEFT_STEM}.{end}": value for end, value in tensors.items()}, config


def _sources() -> Iterator[tuple[str, dict[str, Any], dict[str, Any] | None]]:
    """Yield (kind, tensors by key, PEFT's configuration or None) of a sample of every kind."""
    values, n = kinds.values, 16
    # of full width, because lists by position have a place of this size
    yield (
        "lora",
        _kohya({"lora_up.weight": values(640, 2), "lora_down.weight": values(2, 640)}),
        None,
    )
    made = kinds.samples()
    conv = kinds.STEMS["conv3x3"]
    core = {"lora_up.weight": values(8, 2, 1, 1), "lora_down.weight": values(2, 8, 1, 1)}
    yield "tucker", _kohya(core | {"lora_mid.weight": values(2, 2, 3, 3)}, conv), None
    yield "full", _kohya({"diff": values(n, n)}), None
    yield "bias", _kohya({"diff_b": values(n)}, kinds.STEMS["conv3x3"]), None
    yield "norm", _kohya({"w_norm": values(n), "b_norm": values(n)}, _NORM), None
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    other = _PEFT_STEM.replace("to_q", "to_k")  # whose factors tell the family
    beside = {f"{other}.lora_A.weight": values(2, 640), f"{other}.lora_B.weight": values(640, 2)}
    yield "set", {f"{_PEFT_STEM}.weight": values(640, 640)} | beside, config
    stays = {f"{_PEFT_STEM}.base_layer.weight": values(640, 640)}
    factors = {key.replace("to_k", "to_q"): value for key, value in beside.items()}
    yield "base", stays | factors, config
    rows = _EMBEDDING.replace("lora_embedding", "token_adapter.trainable_tokens_delta")
    yield "tokens", {rows: values(2, 12)}, config | {"trainable_token_indices": [3, 5]}
    table = {f"{_EMBEDDING}_A": values(2, 30), f"{_EMBEDDING}_B": values(12, 2)}
    yield "lora-embedding", table, config
    for kind, names in {
        "loha": ("loha",), "lokr": ("lokr-full-factored",),
        "sparse-bias": ("sparse-bias",), "dora": ("dora-out",), "ia3": ("ia3-out",), "oft": ("oft",),
        "boft": ("boft",), "glora": ("glora",),
    }.items():  # fmt: skip
        for name in names:
            yield kind, made[f"{name}-linear"][1].keys("linear"), None
    # of the shapes that PEFT gives a layer of 16 × 16
    halves = {"lokr_w1": values(4, 4), "lokr_w2_a": values(4, 1), "lokr_w2_b": values(1, 4)}
    yield "lokr", _kohya(halves | {"alpha": kinds.number(1.0)}), None
    oft = {"oft_R.weight": values(4, 6)}
    yield "peft-oft", *_peft(oft, {"peft_type": "OFT", "r": 4, "oft_block_size": 4})
    boft = {"boft_R": values(1, 4, 4, 4), "boft_s": values(n, 1)}
    yield "peft-boft", *_peft(boft, {"peft_type": "BOFT", "boft_block_size": 4})
    yield "peft-ia3", *_peft({"ia3_l": values(n, 1)}, {"peft_type": "IA3"})
    for sample in peft_kinds.SAMPLES.values():
        own = {f"{_PEFT_STEM}.{end}": value for end, value in sample.tensors.items()}
        shared = {f"base_model.{name}": value for name, value in sample.shared.items()}
        name = "peft-glora" if sample.kind == "glora" else sample.kind
        yield name, own | shared, dict(sample.config)
    yield "beft", *_peft({"beft_bias": values(1, n)}, {"peft_type": "BEFT"})
    tuned = {"ln_tuning_layers.weight": values(n), "ln_tuning_layers.bias": values(n)}
    yield "ln-tuning", *_peft(tuned, {"peft_type": "LN_TUNING"})
    rows = rows.replace("token_adapter.", "")
    yield (
        "tokens",
        {rows: values(2, 12)},
        {"peft_type": "TRAINABLE_TOKENS", "token_indices": [3, 5]},
    )
    yield from _examples()


def _examples() -> Iterator[tuple[str, dict[str, Any], None]]:
    """Yield the example that a kind gives of itself."""
    for kind in known_kinds():
        if kind.example:
            ends = {role: suffixes[0] for role, suffixes in kind.suffixes["lycoris"].items()}
            tensors = {
                ends[role].removeprefix("."): kinds.values(*shape)
                for role, shape in kind.example.items()
            }
            yield kind.name, _kohya(tensors), None


# a module of Flux for samples on a linear layer, and for norms
_FLUX_LINEAR = "transformer.transformer_blocks.0.attn.to_out.0"
_FLUX_NORM = "transformer.transformer_blocks.0.attn.norm_q"


@cache
def samples() -> dict[str, list[Adapter]]:
    """Return adapters of every kind, in its forms, as they are read from the dialect that has them."""
    found: dict[str, list[Adapter]] = {}
    folder = folder_of_process("samples")
    for number, (kind, tensors, config) in enumerate(_sources()):
        place = folder / str(number)
        place.mkdir()
        arrays = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
        if config is None:
            file = place / "sample.safetensors"
            file.write_bytes(safetensors_bytes(arrays, kinds.METADATA))
            adapter = load(file)
        else:
            (place / "adapter_model.safetensors").write_bytes(safetensors_bytes(arrays))
            (place / "adapter_config.json").write_text(json.dumps(config), "utf-8")
            adapter = load(place)
        assert not adapter.info.account.unknown, kind
        found.setdefault(kind, []).append(adapter)
    return found


def _in_family(kind: str, sample: Adapter, family: Family) -> Adapter | None:
    """Return a sample as one of a family, None where the family has no layer of its sort."""
    deltas = dict(sample.deltas)
    if family.name == "flux1":
        if kind in ("tucker", "lora-embedding", "base", "tokens"):
            return None
        module = _FLUX_NORM if kind == "norm" else _FLUX_LINEAR
        placed = {
            Site((module,), site.parameter): d
            for site, d in deltas.items()
            if d.kind != "lora" or kind == "lora"
        }
        deltas = {s: d for s, d in placed.items() if kind != "norm" or s.parameter == "weight"}
    info = replace(sample.info, detection=Detection((family,), "a sample"))
    return Adapter(deltas, {}, info if family.name != "flux1" else Info(detection=info.detection))


def _said(kind: str, sample: Adapter, dialect: Dialect, folder: Path) -> bool:
    """Say whether a dialect holds a sample: it is written, and read back as what it was."""
    for family in (FAMILIES["sd15"], FAMILIES["flux1"]):
        adapter = _in_family(kind, sample, family)
        if adapter is None or not any(True for _ in stem_table(dialect, family)):
            continue
        name = f"{len(list(folder.iterdir()))}{'' if dialect.folder else '.safetensors'}"
        place = folder / name
        try:
            encoded = encode(adapter, dialect)
            encoded.metadata["modelspec.architecture"] = kinds.METADATA["modelspec.architecture"]
            write_encoded(encoded, place)
        except LoramergeError:
            return False
        found = load(place)
        return found.kinds().keys() == adapter.kinds().keys() and not found.info.account.unknown
    return False


def kinds_by_dialect() -> dict[str, dict[str, bool]]:
    """Return kind → dialect → whether it is written and read back."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            kind: {
                d.name: any(_said(kind, sample, d, Path(folder)) for sample in forms)
                for d in DIALECTS.values()
            }
            for kind, forms in samples().items()
        }


def kinds_by_type() -> dict[str, dict[str, set[str]]]:
    """Return PEFT's types that are read → what they need of the base → the kinds that do."""
    found: dict[str, dict[str, set[str]]] = {}

    def add(type_: str, needs: str, kind: str) -> None:
        found.setdefault(type_, {}).setdefault(needs, set()).add(kind)

    for sample in peft_kinds.SAMPLES.values():
        needs = "its values" if sample.needs_base else "its shape"
        type_ = sample.config["peft_type"]
        add(type_, needs if sample.needs_base or sample.shapeless else "nothing", sample.kind)
    for adapter in (adapter for forms in samples().values() for adapter in forms):
        config = adapter.info.configs.get("", {})
        for delta in adapter.deltas.values():
            own = (
                delta.facts.peft_type
                if not config and delta.kind in ("loha", "lokr", "dora")
                else ""
            )
            type_ = str(config.get("peft_type", own))
            if type_ and type_ not in {s.config["peft_type"] for s in peft_kinds.SAMPLES.values()}:
                add(type_, "its values" if delta.needs_base else "nothing", delta.kind)
    return found


def families_by_dialect() -> dict[str, dict[str, str]]:
    """Return family → dialect → the components whose layers it writes, `part of` where not all."""
    return {
        family.name: {d.name: _components(family, d) for d in DIALECTS.values()}
        for family in FAMILIES.values()
    }


def _components(family: Family, dialect: Dialect) -> str:
    named = {
        module
        for stem in stem_table(dialect, family).values()
        if dialect.forms[stem.form].written
        for module in stem.modules
    }
    found, whole = [], True
    for component in family.components:
        layers = [
            f"{component.name}.{m.path}" for m in component.modules if m.layer in ("linear", "conv")
        ]
        count = sum(layer in named for layer in layers)
        if count:
            found.append(component.name if count == len(layers) else f"part of {component.name}")
        whole = whole and count == len(layers)
    return "all" if whole else ", ".join(found)
