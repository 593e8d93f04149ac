"""Copies are found by sketches and told exactly; what is unrelated is never called a copy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loramerge.adapter import Adapter, Site
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.algebra.mix import mix
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.resize import resize
from loramerge.algebra.sketch import sketch
from loramerge.algebra.weights import Weight
from loramerge.errors import LoramergeError
from loramerge.library import copies as copies_in
from loramerge.library import index as index_file
from loramerge.library import resembling, scanning
from loramerge.library.contents import unit_sketch
from loramerge.library.copies import duplicates
from loramerge.library.index import open_index
from loramerge.library.resembling import nearest, similar
from loramerge.library.sketches import WIDTH, Sketches
from tests.algebra.test_ingredients import generated
from tests.builders.deltas import adapter, low_rank, rng
from tests.laws.laws import in_gauge, scaled

SHAPES = {f"unet.{n}": (24, 20) for n in range(8)}


@pytest.fixture
def library(tmp_path):
    """A folder of an adapter, its copies and others, and what scans it."""

    def make(others: int = 6) -> Path:
        folder = tmp_path / "loras"
        folder.mkdir()
        a = generated(1, 4, SHAPES)
        save(a, folder / "whole.safetensors")
        save(in_gauge(a, 3, 20.0), folder / "anew.safetensors", dtype="F32")
        save(resize(a, RankRule(rank=3), threads=1)[0], folder / "small.safetensors")
        save(scaled(a, 0.7), folder / "quiet.safetensors")
        save(a, folder / "half.safetensors", dtype="F16")
        save(a, folder / "twin.safetensors")
        for seed in range(2, 2 + others):
            save(generated(seed, 4, SHAPES), folder / f"other{seed}.safetensors")
        with open_index() as index:
            scanning.scan(index, [folder], threads=1)
        return folder

    return make


WORDS = {
    "anew": "is the same adapter as whole.safetensors, in another factorisation",
    "small": "small.safetensors is whole.safetensors resized to rank 3: ",
    "quiet": "quiet.safetensors is whole.safetensors times 0.7",
    "half": "half.safetensors is whole.safetensors up to rounding, converted (kohya float32, ",
}  # fmt: skip


@pytest.mark.parametrize("others", [6, pytest.param(995, marks=pytest.mark.slow)])
def test_all_copies_and_no_others(library, others):
    folder = library(others)
    with open_index() as index:
        found = similar(index, load(folder / "whole.safetensors"), most=8)
        copies = {one.entry.path.stem: one for one in found if one.copy}
        assert set(copies) == {*WORDS, "twin"}  # the twin is one content with the file itself
        for name, words in WORDS.items():
            assert words in copies[name].words and copies[name].exact
        assert copies["quiet"].factor == pytest.approx(0.7)
        assert all(one.words == "unrelated" for one in found if not one.copy)
        assert all(one.entry.path.stem not in ("whole",) for one in found)
        every = duplicates(index)
    pairs = {frozenset((pair.a.path.stem, pair.b.path.stem)) for pair in every.pairs}
    whole = {"whole", "twin"} & {name for pair in pairs for name in pair}
    assert len(whole) == 1  # of two places the first stands for both
    names = {*WORDS, *whole}
    assert pairs == {frozenset((a, b)) for a in names for b in names if a < b}
    assert [[Path(p.path).stem for p in one.places] for one in every.same] == [["twin", "whole"]]
    ((kept, group),) = every.groups()
    assert len(group) == 4 and every.unchecked == 0
    assert kept.path.stem == "anew"  # the first that is whole and in the widest type
    assert all(kept in (pair.a, pair.b) for pair in group)
    assert [len(one["copies"]) for one in every.json()["groups"]] == [4]


def test_few_pairs_are_checked_where_one_asks_for_few(library):
    library(0)
    with open_index() as index:
        found = duplicates(index, most=3)
        assert len(found.pairs) == 3 and found.unchecked == 7
        # rescaled and resized ones come before others
        assert duplicates(index, most=10).unchecked == 0


def test_files_that_are_gone_are_only_estimated(library):
    folder = library(0)
    whole = load(folder / "whole.safetensors")
    (folder / "quiet.safetensors").unlink()
    with open_index() as index:
        scanning.scan(index, [folder], threads=1)
        found = {one.entry.path.stem: one for one in similar(index, whole)}
        assert not found["quiet"].exact and found["quiet"].problem == "it is missing"
        assert found["quiet"].cosine == pytest.approx(1, abs=1e-5)
        assert "quiet" not in str([pair.words for pair in duplicates(index).pairs])
        (folder / "anew.safetensors").write_bytes(b"broken since")
        found = {one.entry.path.stem: one for one in similar(index, whole)}
        assert not found["anew"].exact and found["anew"].problem
        assert duplicates(index).problems


def test_what_has_no_sketch(tmp_path):
    zero = scaled(generated(1, 2, SHAPES), 0.0)
    assert unit_sketch(zero) == (None, "it changes nothing")
    bad = generated(2, 2, SHAPES)
    next(iter(bad.deltas.values())).up.numpy()[0, 0] = np.nan
    assert unit_sketch(bad)[1] == "it holds NaN or infinity"
    assert unit_sketch(adapter({}))[1] == "it holds no adapter"
    with open_index() as index, pytest.raises(LoramergeError, match="changes nothing"):
        similar(index, zero)


def _as_one(a: Adapter) -> Adapter:
    """The modules `unet.0` and `unet.1` of an adapter as one fused site."""
    first, second, *others = a.deltas
    fused = Site((*first.modules, *second.modules), "weight", (1, 1))
    up = np.zeros((48, 8))
    one, two = a.deltas[first].factors("float64"), a.deltas[second].factors("float64")
    up[:24, :4], up[24:, 4:] = one[0], two[0]
    delta = type(low_rank((4, 4), 1)).from_arrays(up, np.concatenate([one[1], two[1]]), (48, 20))
    return a.with_deltas({fused: delta} | {site: a.deltas[site] for site in others})


def test_a_fused_site_has_the_sketch_of_its_modules(monkeypatch):
    a = generated(1, 4, SHAPES)
    assert sketch(_as_one(a)) == pytest.approx(sketch(a), rel=1e-4, abs=1e-4)
    # a sketch of sites, as they lie in the file, is another one
    monkeypatch.setattr(Site, "bounds", lambda self, rows: (0, rows))
    monkeypatch.setattr(
        "loramerge.algebra.sketch.zip", lambda a, b, strict: zip(a, b, strict=False), raising=False
    )
    wrong = sketch(_as_one(a))
    assert np.abs(wrong - sketch(a)).max() > 0.1


def test_modules_of_no_family_have_one_name_in_two_dialects(tmp_path):
    names = {f"blocks.{n}.attn.wq": (24, 20) for n in range(4)}
    a = generated(5, 4, {f"transformer.{name}": shape for name, shape in names.items()})
    flat = {f"unet.{name.replace('.', '_')}": shape for name, shape in names.items()}
    b = generated(5, 4, flat)
    one, other = unit_sketch(a)[0], unit_sketch(b)[0]
    assert one @ other == pytest.approx(1, abs=1e-5)
    assert abs(one @ unit_sketch(generated(6, 4, flat))[0]) < 0.3


def test_the_nearest_rows_of_a_matrix(tmp_path, monkeypatch):
    """Over blocks, by threads, and only rows that the index names."""
    rows = rng(1).standard_normal((50, WIDTH)).astype("f4")
    rows /= np.linalg.norm(rows, axis=1)[:, None]
    monkeypatch.setattr("loramerge.library.sketches._BLOCK", 7)
    sketches = Sketches(tmp_path)
    assert sketches.cosines(rows[0]).shape == (0,) and sketches.count == 0
    sketches.write(dict(enumerate(rows)))
    assert (sketches.rows() == rows).all()
    assert sketches.cosines(rows[3], threads=2) == pytest.approx(rows @ rows[3], abs=1e-6)
    numbers = np.array([1, 3, 8, 20, 49])
    found = {(a, b): c for a, b, c in sketches.near_pairs(numbers, 1e-9)}
    assert found == {
        (a, b): pytest.approx(rows[a] @ rows[b], abs=1e-6)
        for a in numbers for b in numbers if a < b
    }  # fmt: skip


def test_rows_that_no_content_has_are_not_found(library):
    folder = library(2)
    with open_index() as index:
        row = unit_sketch(load(folder / "whole.safetensors"))[0]
        Sketches(index.folder).write({500: row})
        assert 500 not in dict(nearest(index, row, 100))
        assert len(nearest(index, row, 3)) == 3 and nearest(index, row, 3)[0][1] > 0.999
    assert resembling.RELATED > copies_in._SEEN


def test_copies_of_a_real_adapter(shared_data, tmp_path):
    """In other factors, of a lower rank, times 0.7, and in another dialect and float32."""
    path = shared_data / "adapters" / "analog_svd_rank4.safetensors"
    whole = load(path)
    folder = tmp_path / "copies"
    folder.mkdir()
    save(in_gauge(whole, 3, 20.0), folder / "anew.safetensors", dtype="F32")
    save(resize(whole, RankRule(rank=3))[0], folder / "small.safetensors")
    save(mix([(whole, Weight(0.7))], RankRule())[0], folder / "quiet.safetensors")
    save(whole, folder / "converted.safetensors", to="kohya", dtype="F32")
    with open_index() as index:
        scanning.scan(index, [folder, shared_data / "adapters"])
        found = {one.entry.path.stem: one for one in similar(index, whole)}
        pairs = duplicates(index).pairs
    name = path.name
    for stem, words in (
        ("anew", f"is the same adapter as {name}, in another factorisation, converted"),
        ("small", f"small.safetensors is {name} resized to rank 3: "),
        ("quiet", f"quiet.safetensors is {name} times 0.7"),
        ("converted", "converted (lora_diffusion float16, kohya float32)"),
    ):
        assert found[stem].copy and words in found[stem].words
    assert sum(one.copy for one in found.values()) == 4
    names = {path.stem, "anew", "small", "quiet", "converted"}
    assert {frozenset((p.a.path.stem, p.b.path.stem)) for p in pairs} == {
        frozenset((a, b)) for a in names for b in names if a < b
    }


def test_sketches_are_those_of_this_version_of_the_index():
    """An index keeps them for years: another sketch needs another `index._VERSION`."""
    up, down = np.sin(np.arange(96.0)).reshape(24, 4), np.cos(np.arange(80.0)).reshape(4, 20)
    delta = type(low_rank((4, 4), 1)).from_arrays(up, down, (24, 20))
    found = sketch(adapter({"unet.a": delta, "unet.b": delta}))
    assert index_file._VERSION == 1
    places = np.flatnonzero(found)[[0, 700, -1]]
    assert places.tolist() == [0, 700, 3071]
    assert found[places] == pytest.approx([0.225693, 0.03675189, -0.2126143], rel=1e-5)
