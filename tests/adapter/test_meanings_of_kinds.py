"""Every kind on every sort of layer: what it means, its exact forms, and writing it again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loramerge.adapter import Adapter
from loramerge.adapter.delta import Delta
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.errors import (
    AdapterError,
    LoramergeError,
    NotExpressible,
    NotLowRank,
    on_command_line,
)
from tests.builders.kinds import METADATA, MODULES, Array, KindSample, samples, values
from tests.builders.samples import data_section, relative, safetensors_bytes

SAMPLES = samples()


def written(sample: KindSample, layer: str, folder: Path) -> Path:
    path = folder / "a.safetensors"
    path.write_bytes(safetensors_bytes(sample.keys(layer), METADATA))
    return path


def loaded(sample: KindSample, layer: str, folder: Path) -> tuple[Adapter, Delta]:
    adapter = load(written(sample, layer, folder)).require_sound()
    (delta,) = adapter.deltas.values()
    return adapter, delta


def base_of(sample: KindSample) -> Array:
    return values(*sample.shape, seed=77).astype(np.float64)


def dense(delta: Delta, base: Array) -> Array:
    return delta.dense(base if delta.needs_base else None)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_kind_means_its_formula(name: str, tmp_path: Path) -> None:
    layer, sample = SAMPLES[name]
    adapter, delta = loaded(sample, layer, tmp_path)
    assert not adapter.info.account.unknown
    assert sorted(adapter.info.account.used) == sorted(sample.keys(layer))
    assert [site.name for site in adapter.deltas] == [MODULES[layer]]
    assert (delta.kind, delta.needs_base) == (sample.kind, sample.needs_base)
    base = base_of(sample)
    expected = sample.change(base)
    found = dense(delta, base)
    assert found.shape == sample.shape and delta.fits(sample.shape)
    assert relative(found, expected) < 1e-12
    for what, wrong in sample.wrong.items():
        assert relative(found, wrong(base)) > 1e-3, what
    if not sample.needs_base:
        assert delta.shape == sample.shape and delta.rank == sample.rank


@pytest.mark.parametrize("name", SAMPLES)
def test_factors_are_exact_where_there_are_any(name: str, tmp_path: Path) -> None:
    layer, sample = SAMPLES[name]
    _, delta = loaded(sample, layer, tmp_path)
    if delta.rank is None:
        with pytest.raises(NotLowRank):
            delta.factors()
        return
    up, down = delta.factors("float64")
    assert up.shape[1] == down.shape[0] == delta.rank < min(delta.flat_shape)
    assert relative(up @ down, sample.change(base_of(sample)).reshape(delta.flat_shape)) < 1e-12


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", SAMPLES)
def test_reading_and_writing_gives_the_same_bytes(name: str, dtype: type, tmp_path: Path) -> None:
    layer, sample = SAMPLES[name]
    narrow = {
        key: value.astype(dtype) if value.dtype == np.float32 else value
        for key, value in sample.keys(layer).items()
    }
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes(narrow, METADATA))
    save(load(path), tmp_path / "b.safetensors")
    assert data_section(tmp_path / "b.safetensors") == data_section(path)


@pytest.mark.parametrize("weight", [0.5, -2.0])
@pytest.mark.parametrize("name", SAMPLES)
def test_a_weight_multiplies_also_in_a_file(name: str, weight: float, tmp_path: Path) -> None:
    layer, sample = SAMPLES[name]
    adapter, delta = loaded(sample, layer, tmp_path)
    base = base_of(sample)
    expected = weight * sample.change(base)
    scaled = delta.scaled(weight)
    assert relative(dense(scaled, base), expected) < 1e-11
    changed = adapter.with_deltas(dict.fromkeys(adapter.deltas, scaled))
    again = tmp_path / "b.safetensors"
    if sample.kind in ("dora", "oft", "boft"):
        with pytest.raises(AdapterError, match="weight other than 1") as caught:
            save(changed, again)
        assert "(base)" in str(caught.value) and MODULES[layer] in str(caught.value)
        return
    save(changed, again)
    (delta_again,) = load(again).require_sound().deltas.values()
    assert relative(dense(delta_again, base), expected) < 1e-6


@pytest.mark.parametrize("name", SAMPLES)
def test_rows_are_those_of_the_dense_change(name: str, tmp_path: Path) -> None:
    layer, sample = SAMPLES[name]
    _, delta = loaded(sample, layer, tmp_path)
    base = base_of(sample)
    flat = base.reshape(sample.shape[0], -1)
    expected = (-0.5 * sample.change(base)).reshape(flat.shape)
    adder = delta.scaled(-0.5).row_adder("float64", lambda start, stop: flat[start:stop])
    for height in (1, 3, 5, sample.shape[0]):
        for fresh in (True, False):
            out = np.full(flat.shape, 7.0)
            for start in range(0, len(flat), height):
                rows = slice(start, min(start + height, len(flat)))
                adder(rows.start, rows.stop, flat[rows], out[rows], fresh)
            assert relative(out, expected + (0.0 if fresh else 7.0)) < 1e-11


@pytest.mark.parametrize(
    "name", [name for name, (_, sample) in SAMPLES.items() if sample.needs_base]
)
def test_without_a_base_there_is_no_difference(name: str, tmp_path: Path) -> None:
    layer, sample = SAMPLES[name]
    _, delta = loaded(sample, layer, tmp_path)
    with pytest.raises(AdapterError, match="depends on the base") as caught:
        delta.dense()
    assert caught.value.text(on_command_line).endswith("give the base it is for: --base")


@pytest.mark.parametrize(
    "name", [n for n in SAMPLES if n.startswith(("loha", "scale", "dora-out", "dora-in"))]
)
def test_a_peft_folder_says_the_same_or_names_what_it_cannot(name: str, tmp_path: Path) -> None:
    layer, sample = SAMPLES[name]
    adapter, _ = loaded(sample, layer, tmp_path)
    folder = tmp_path / "folder"
    if name.startswith("dora-in"):
        with pytest.raises(NotExpressible, match="peft"):
            save(adapter, folder, to="peft")
        return
    save(adapter, folder, to="peft")
    (delta,) = load(folder).require_sound().deltas.values()
    base = base_of(sample)
    assert relative(dense(delta, base), sample.change(base)) < 1e-6
    save(load(folder), tmp_path / "b.safetensors", to="kohya")
    (again,) = load(tmp_path / "b.safetensors").require_sound().deltas.values()
    assert again.kind == sample.kind
    assert relative(dense(again, base), sample.change(base)) < 1e-6


@pytest.mark.parametrize("name", ["lokr-full-full-linear", "oft-linear", "ia3-in-linear"])
def test_a_peft_configuration_is_not_made_up(name: str, tmp_path: Path) -> None:
    layer, sample = SAMPLES[name]
    adapter, _ = loaded(sample, layer, tmp_path)
    for target in ("peft", "diffusers"):
        with pytest.raises(NotExpressible) as caught:
            save(adapter, tmp_path / "folder", to=target)
        assert MODULES[layer] in str(caught.value) or "attn1.to_q" in str(caught.value)
        assert "to='kohya'" in str(caught.value)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_lost_partner_is_reported(name: str, tmp_path: Path) -> None:
    layer, sample = SAMPLES[name]
    optional = ("alpha", "scale", "rescale", "dora_scale", "hada_t1", "hada_t2", "lokr_t2")
    optional = (*optional, "oft_blocks.1")  # without its last part it is a layer of fewer rows
    for end in sample.tensors:
        if end in optional or (end == "oft_blocks" and len(sample.tensors) == 2):
            continue
        left = {k: v for k, v in sample.keys(layer).items() if not k.endswith(f".{end}")}
        path = tmp_path / f"{end}.safetensors"
        path.write_bytes(safetensors_bytes(left, METADATA))
        adapter = load(path)
        with pytest.raises(AdapterError):
            adapter.require_sound()


@pytest.mark.parametrize("name", [n for n in SAMPLES if n.endswith(("-linear", "tucker-conv3x3"))])
def test_tensors_of_absurd_shapes_are_faults_of_the_file(name: str, tmp_path: Path) -> None:
    layer, sample = SAMPLES[name]
    base = base_of(sample)
    shapes: list[tuple[int, ...]] = [
        (),
        (0,),
        (1,),
        (2, 0),
        (3, 5),
        (1, 1),
        (2, 2, 2),
        (2, 3, 4, 5),
    ]
    path = tmp_path / "a.safetensors"
    for end, value in sample.keys(layer).items():
        for shape in shapes:
            tensors = sample.keys(layer) | {end: np.ones(shape).astype(value.dtype)}
            path.write_bytes(safetensors_bytes(tensors, METADATA))
            adapter = load(path)
            for delta in adapter.deltas.values():
                try:
                    delta.dense(base if delta.needs_base else None)
                except LoramergeError:
                    continue
