"""Extraction: what is compared, cut, left out as rounding, and refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.algebra.ranks import RankRule
from loramerge.checkpoint import open_checkpoint
from loramerge.dialects import DIALECTS
from loramerge.errors import FamilyError, FormatError, NumericsError, ShapeError
from loramerge.files.dtypes import DTYPES
from loramerge.stream.extract import Extraction, extract
from loramerge.stream.pairing import paired
from tests.builders.bases import (
    STORAGE,
    Array,
    Base,
    folder,
    read_safetensors,
    single,
    unet_alone,
    write_safetensors,
)
from tests.tail import first, tail

RULE = RankRule(rank=4)
TO_Q = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
MODULE = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
NORM = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.norm1.weight"
TOKENS = "cond_stage_model.model.token_embedding.weight"


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return single(tmp_path / "base.safetensors", "sd21", "F32")


def changed(base: Base, changes: Mapping[str, Any], name: str = "tuned.safetensors") -> Path:
    """Write a copy of a single file; each change is a function of the tensor, None takes it out."""
    tensors, _ = read_safetensors(base.path)
    for key, change in changes.items():
        array = tensors.pop(key)
        if change is not None:
            tensors[key] = np.asarray(change(array))
    path = base.path.with_name(name)
    write_safetensors(path, tensors)
    return path


def stored_as(base: Base, dtype: str, name: str, back: str | None = None) -> Path:
    """Write a copy in another type; `back` widens it again."""
    tensors, _ = read_safetensors(base.path)
    kinds = [STORAGE[dtype], *([STORAGE[back]] if back else [])]
    for key, array in tensors.items():
        for kind in kinds if array.dtype == np.float32 else ():
            array = array.astype(kind)
        tensors[key] = array
    path = base.path.with_name(name)
    write_safetensors(path, tensors)
    return path


def run(
    tuned: Path, base: Path, rule: RankRule = RULE, target: str = "kohya", **more: Any
) -> Extraction:
    skip = more.pop("skip", ())
    sites = paired(open_checkpoint(tuned), open_checkpoint(base), DIALECTS[target], skip=skip)
    return extract(sites.groups, rule, more.pop("sorts", ()), **more)


def names(found: Extraction) -> list[str]:
    return [site.name for site in found.deltas]


def louder(array: Array) -> Array:
    return (1.5 * array).astype(array.dtype)


# ---- what is found


def test_one_change_is_one_module(base: Base) -> None:
    found = run(changed(base, {TO_Q: louder}), base.path, RankRule(energy=1.0))
    assert names(found) == [MODULE]
    delta = next(iter(found.deltas.values()))
    expected = 0.5 * base.weights[f"{MODULE}.weight"]
    assert np.allclose(delta.dense(), expected, atol=1e-6)
    assert found.captured == pytest.approx(1.0, abs=1e-9)
    assert found.unchanged + 1 == len(base.weights)
    assert not found.rounding


def test_equal_modules_are_not_decomposed(base: Base, monkeypatch: Any) -> None:
    import loramerge.algebra.extract as module

    shapes: list[tuple[int, ...]] = []
    real = module.decompose_leading

    def counted(matrix: Array, *rest: Any, **more: Any) -> Any:
        shapes.append(matrix.shape)
        return real(matrix, *rest, **more)

    monkeypatch.setattr(module, "decompose_leading", counted)
    run(changed(base, {TO_Q: louder}), base.path)
    assert len(shapes) == 1


def test_norms_biases_and_embeddings_are_named_and_kept_where_asked(base: Base) -> None:
    bias = TO_Q.replace("to_q.weight", "to_out.0.bias")
    tuned = changed(base, {TO_Q: louder, NORM: louder, bias: louder, TOKENS: louder})
    found = run(tuned, base.path, RankRule(energy=1.0))
    assert dict(found.counts) == {"norm": 1, "bias": 1, "embedding": 1}
    assert 0 < found.captured < 1
    lost = sum(found.energies.values()) / found.total
    assert found.captured == pytest.approx(1 - lost, abs=1e-6)
    more = run(tuned, base.path, RankRule(energy=1.0), sorts=("bias", "norm"))
    assert len(more.deltas) == 3 and set(more.energies) == {"embedding"}
    assert {d.kind for d in more.deltas.values()} == {"lora", "full", "bias"}
    every = run(tuned, base.path, sorts=("bias", "norm", "embedding", "table"), whole=True)
    assert len(every.deltas) == 4 and not every.energies and every.captured == 1.0


@pytest.mark.parametrize("threads", [3])
def test_threads_change_nothing(base: Base, tmp_path: Path, threads: int) -> None:
    other = single(tmp_path / "other.safetensors", "sd21", "F32", seed=3)
    one, many = (run(other.path, base.path, threads=n) for n in (1, threads))
    assert names(one) == names(many)
    for site, delta in one.deltas.items():
        for a, b in zip(delta.factors(), many.deltas[site].factors(), strict=True):
            assert np.array_equal(a, b)


def test_sites_are_those_of_the_dialect(tmp_path: Path) -> None:
    """OpenCLIP's queries, keys and values are apart in every dialect; a folder and a file agree."""
    one = single(tmp_path / "one.safetensors", "sd21", "F32", seed=1)
    other = folder(tmp_path / "other", "sd21", "F32", seed=2)
    first = run(one.path, other.path)
    again = run(folder(tmp_path / "again", "sd21", "F32", seed=1).path, other.path)
    assert set(first.deltas) == set(again.deltas)
    assert all(
        np.allclose(delta.dense(), again.deltas[site].dense(), atol=1e-6)
        for site, delta in first.deltas.items()
    )


# ---- criteria


RULES = {
    "rank": RankRule(rank=2),
    "rank of kernels": RankRule(rank=3, conv_rank=1),
    "energy": RankRule(energy=0.7),
    "energy and rank": RankRule(energy=0.7, rank=3),
    "ratio": RankRule(ratio=1.5),
    "cumulative": RankRule(cumulative=0.6),
    "error": RankRule(max_error=0.4),
}


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("name", first(2, RULES))
def test_the_rules_are_those_of_resize(base: Base, tmp_path: Path, name: str) -> None:
    """Extraction cuts like `resize` of the whole difference."""
    from loramerge.adapter import Adapter
    from loramerge.algebra.resize import resize

    other = single(tmp_path / "other.safetensors", "sd21", "F32", seed=3)
    rule = RULES[name]
    ours = run(other.path, base.path, rule)
    whole = run(other.path, base.path, whole=True)
    matrices = {site: d for site, d in whole.deltas.items() if site in ours.deltas}
    small, combined = resize(Adapter(matrices), rule)
    assert small.ranks() == Adapter(ours.deltas).ranks()
    assert ours.combined.relative_error == pytest.approx(combined.relative_error, rel=1e-4)
    for site, delta in small.deltas.items():
        assert np.allclose(delta.dense(), ours.deltas[site].dense(), atol=1e-4)


def test_an_error_limit_refuses(base: Base, tmp_path: Path) -> None:
    other = single(tmp_path / "other.safetensors", "sd21", "F32", seed=3)
    with pytest.raises(NumericsError, match="max_error"):
        run(other.path, base.path, RankRule(rank=1, max_error=0.1))


# ---- rounding


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", tail("F16"), tail("F8_E5M2")])
def test_a_rounded_copy_holds_nothing(base: Base, dtype: str) -> None:
    copy = stored_as(base, dtype, "copy.safetensors")
    widened = stored_as(base, dtype, "widened.safetensors", "F32")
    for tuned, other in ((copy, base.path), (base.path, copy), (copy, widened)):
        found = run(tuned, other)
        assert not found.deltas and not found.outcomes
    assert DTYPES[dtype].word in run(copy, base.path).types


@pytest.mark.parametrize("dtype", ["BF16", tail("F16")])
def test_a_copy_that_was_widened_again_holds_nothing(base: Base, dtype: str) -> None:
    widened = stored_as(base, dtype, "widened.safetensors", "F32")
    found = run(widened, base.path)
    matrices = {site: d for site, d in found.deltas.items() if min(d.flat_shape) > 4}
    assert not matrices


def test_rounding_is_kept_where_asked(base: Base) -> None:
    copy = stored_as(base, "BF16", "copy.safetensors")
    found = run(copy, base.path, RankRule(energy=1.0), keep_rounding=True)
    delta = next(d for site, d in found.deltas.items() if site.name == MODULE)
    rounded = base.weights[f"{MODULE}.weight"].astype(STORAGE["BF16"]).astype("float64")
    assert np.allclose(delta.dense(), rounded - base.weights[f"{MODULE}.weight"], atol=1e-8)


def test_a_change_in_a_rounded_copy_is_found_alone(base: Base) -> None:
    tensors, _ = read_safetensors(base.path)
    copy = {
        n: a.astype(STORAGE["BF16"]) if a.dtype == np.float32 else a for n, a in tensors.items()
    }
    direction = np.outer(np.ones(len(tensors[TO_Q])), np.ones(tensors[TO_Q].shape[1]))
    copy[TO_Q] = (tensors[TO_Q] + 0.1 * direction).astype(STORAGE["BF16"])
    path = base.path.with_name("copy.safetensors")
    write_safetensors(path, copy)
    found = run(path, base.path)
    assert names(found) == [MODULE]
    assert [d.rank for d in found.deltas.values()] == [1]


def test_scaled_float8_is_rounding_too(tmp_path: Path) -> None:
    from tests.stream.test_quantised import _quantised

    _quantised(tmp_path / "scaled.safetensors", "F8_E4M3", "row")
    base = single(tmp_path / "base.safetensors", "sd21", "F32")
    assert not run(tmp_path / "scaled.safetensors", base.path).deltas


# ---- what is refused


def test_other_families_are_refused(base: Base, tmp_path: Path) -> None:
    other = single(tmp_path / "other.safetensors", "sd15", "F32")
    with pytest.raises(FamilyError, match="different families"):
        run(other.path, base.path)


def test_what_only_one_has_is_an_error_or_left_out(base: Base) -> None:
    tuned = changed(base, {TO_Q: None, NORM: louder})
    for one, two in ((tuned, base.path), (base.path, tuned)):
        with pytest.raises(FormatError, match="lacks 1 parameter that the other one has") as caught:
            run(one, two)
        assert MODULE in str(caught.value)
        assert Path(str(caught.value.file)).name == "tuned.safetensors"
    found = run(tuned, base.path, skip=("unet",), sorts=("norm",))
    assert len(found.deltas) == 1
    with pytest.raises(FormatError):
        run(tuned, base.path, skip=("text_encoder",))


def test_a_whole_component_may_be_absent(base: Base, tmp_path: Path) -> None:
    alone = unet_alone(tmp_path / "unet.safetensors", "sd21", "model.diffusion_model.", "F32")
    sites = paired(open_checkpoint(alone.path), open_checkpoint(base.path), DIALECTS["kohya"])
    assert sites.components == ["text_encoder"] and not sites.one_side


def test_other_shapes_are_refused(base: Base) -> None:
    tuned = changed(base, {TO_Q: lambda array: np.concatenate([array, array])})
    with pytest.raises(ShapeError, match="different shapes"):
        run(tuned, base.path)


@pytest.mark.long_tail(keep=2)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", [TO_Q, NORM])
def test_values_that_are_not_finite_are_refused(base: Base, name: str, value: float) -> None:
    def spoilt(array: Array) -> Array:
        array = array.copy()
        array.reshape(-1)[3] = value
        return array

    tuned = changed(base, {name: spoilt})
    for one, two in ((tuned, base.path), (base.path, tuned)):
        with pytest.raises(NumericsError, match="NaN or infinity") as caught:
            run(one, two)
        assert Path(str(caught.value.file)).name == "tuned.safetensors"
        assert "down_blocks.0" in str(caught.value.module)
