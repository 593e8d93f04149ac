"""Adapters of MLX-LM mean what MLX computes, and are written as PEFT adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.errors import FormatError
from loramerge.verbs.inspect import inspect_adapter
from tests.builders.kinds import values
from tests.builders.samples import relative, safetensors_bytes

Q, TABLE = "model.layers.0.self_attn.q_proj", "model.embed_tokens"


def folder(place: Path, tensors: dict[str, Any], sort: str = "lora", scale: float = 20.0) -> Path:
    place.mkdir()
    (place / "adapters.safetensors").write_bytes(safetensors_bytes(tensors))
    config = {
        "fine_tune_type": sort,
        "lora_parameters": {"rank": 4, "scale": scale, "dropout": 0.0},
    }
    (place / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    return place


def factors(module: str, first: int, rank: int, last: int) -> dict[str, Any]:
    return {f"{module}.lora_a": values(first, rank), f"{module}.lora_b": values(rank, last)}


def test_factors_are_transposed_and_the_scale_is_the_configurations(tmp_path: Path) -> None:
    tensors = factors(Q, 12, 4, 8) | factors(TABLE, 30, 2, 12)
    place = folder(tmp_path / "a", tensors)
    for path in (place, place / "adapters.safetensors"):
        adapter = load(path).require_sound()
        found = {site.name: delta for site, delta in adapter.deltas.items()}
        wide = {key: value.astype(np.float64) for key, value in tensors.items()}
        expected = 20 * (wide[f"{Q}.lora_a"] @ wide[f"{Q}.lora_b"]).T
        assert found[Q].kind == "lora" and relative(found[Q].dense(), expected) < 1e-6
        rows = 20 * wide[f"{TABLE}.lora_a"] @ wide[f"{TABLE}.lora_b"]
        assert found[TABLE].kind == "lora-embedding"
        assert relative(found[TABLE].dense(), rows) < 1e-6
    save(load(place), tmp_path / "b", to="peft")
    again = {site.name: delta for site, delta in load(tmp_path / "b").deltas.items()}
    assert all(relative(again[name].dense(), found[name].dense()) < 1e-6 for name in found)


def test_no_program_of_the_tables_is_said_to_read_the_file(tmp_path: Path) -> None:
    """PEFT reads what is written of it, and not the folder of MLX itself."""
    place = folder(tmp_path / "a", factors(Q, 12, 4, 8))
    seen = inspect_adapter(load(place))
    assert (seen.dialect, seen.loads_in) == ("MLX-LM", [])
    save(load(place), tmp_path / "b", to="peft")
    seen = inspect_adapter(load(tmp_path / "b"))
    assert (seen.dialect, seen.loads_in) == ("peft", ["PEFT"])


def test_dora_has_magnitudes_of_outputs(tmp_path: Path) -> None:
    tensors = factors(Q, 12, 4, 8) | {f"{Q}.m": abs(values(8)) + 1}
    (delta,) = load(folder(tmp_path / "a", tensors, "dora", 0.5)).require_sound().deltas.values()
    base = values(8, 12, seed=3).astype(np.float64)
    adapted = base + 0.5 * (tensors[f"{Q}.lora_a"] @ tensors[f"{Q}.lora_b"]).T.astype(np.float64)
    size = tensors[f"{Q}.m"] / np.linalg.norm(adapted, axis=1)
    assert (
        delta.kind == "dora" and relative(delta.dense(base), size[:, None] * adapted - base) < 1e-6
    )


def test_a_full_fine_tune_is_whole_weights(tmp_path: Path) -> None:
    (delta,) = load(folder(tmp_path / "a", {f"{Q}.weight": values(8, 12)}, "full")).deltas.values()
    assert delta.kind == "set" and delta.shape == (8, 12)


def test_other_sorts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="of the type 'vera'"):
        load(folder(tmp_path / "a", factors(Q, 4, 2, 4), "vera"))
