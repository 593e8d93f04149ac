"""Rows of every kind: what a part of them means, by the formula of the whole."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from loramerge.adapter import Site
from loramerge.adapter.fused import fused
from loramerge.errors import UnsupportedKind
from tests.adapter.test_meanings_of_kinds import SAMPLES, base_of, dense, loaded
from tests.builders.samples import relative

# kinds whose rows depend on others, so that no part of them stands for itself
WHOLE = ("dora-in", "dora-lokr-in", "boft", "boft-rescaled", "oft-constrained")
BLOCKS = {"oft": 4, "oft-rescaled": 4, "oft-in-parts": 8}
CUTS = {"in equal parts": (0, 8, 16), "at odd rows": (0, 3, 5, 11)}


def kind_of(name: str) -> str:
    return name.rpartition("-")[0]


@pytest.mark.parametrize("where", CUTS)
@pytest.mark.parametrize("name", SAMPLES)
def test_a_part_of_the_rows_is_that_part_of_the_whole(
    name: str, where: str, tmp_path: Path
) -> None:
    layer, sample = SAMPLES[name]
    _, delta = loaded(sample, layer, tmp_path)
    base = base_of(sample)
    bounds = (*CUTS[where][:-1], len(base))
    aligned = all(bound % BLOCKS.get(kind_of(name), 1) == 0 for bound in bounds)
    if kind_of(name) in WHOLE or not aligned:
        assert not delta.splits_exactly(bounds)
        with pytest.raises(UnsupportedKind, match="cannot be cut into these rows"):
            delta.split(bounds)
        return
    assert delta.splits_exactly(bounds)
    expected = sample.change(base)
    parts = delta.split(bounds)
    for part, (start, stop) in zip(parts, pairwise(bounds), strict=True):
        assert part is not None and part.shape[0] == stop - start
        found = dense(part, base[start:stop])
        assert relative(found, expected[start:stop]) < 1e-12
        other = expected[: stop - start] if start else expected[-(stop - start) :]
        assert relative(found, other) > 1e-3  # rows of another part
        if not part.needs_base:
            out = np.empty(part.flat_shape)
            part.row_adder("float64")(0, stop - start, None, out, True)
            assert relative(out.reshape(found.shape), found) < 1e-12


@pytest.mark.parametrize("name", SAMPLES)
def test_rows_in_another_order(name: str, tmp_path: Path) -> None:
    """Rows that only change places, as where a program exchanges the halves of a layer."""
    layer, sample = SAMPLES[name]
    _, delta = loaded(sample, layer, tmp_path)
    base = base_of(sample)
    half = len(base) // 2 // 4 * 4
    ranges = ((half, len(base)), (0, half))
    moved = np.concatenate([base[half:], base[:half]])
    expected = sample.change(base)
    found = dense(delta.rows(ranges), moved)
    assert relative(found, np.concatenate([expected[half:], expected[:half]])) < 1e-12
    assert relative(found, expected) > 1e-3  # rows that stayed


@pytest.mark.parametrize("name", ["loha-linear", "lokr-full-factored-linear", "ia3-out-linear"])
def test_parts_stay_of_their_kind_where_they_can(name: str, tmp_path: Path) -> None:
    layer, sample = SAMPLES[name]
    _, delta = loaded(sample, layer, tmp_path)
    rows = delta.shape[0]
    for part in delta.split((0, rows // 2, rows)):
        assert part is not None and part.kind == sample.kind
    odd = delta.rows(((1, rows),))
    assert odd.kind == ("lora" if sample.kind == "lokr" else sample.kind)


@pytest.mark.parametrize("name", ["ia3-out-linear", "ia3-in-linear", "dora-out-linear"])
def test_parts_are_joined_again_to_what_they_were(name: str, tmp_path: Path) -> None:
    layer, sample = SAMPLES[name]
    _, delta = loaded(sample, layer, tmp_path)
    base, rows = base_of(sample), sample.shape[0]
    site = Site(("q", "k"), "weight", (1, 1))
    alone = [Site((module,)) for module in site.modules]
    parts = [part for part in delta.split((0, rows // 2, rows)) if part is not None]
    back = fused(site, list(zip(alone, parts, strict=True))[::-1])
    assert back.kind == delta.kind and back.rank == delta.rank
    assert relative(dense(back, base), sample.change(base)) < 1e-12
    turned = fused(site, list(zip(alone, parts[::-1], strict=True)))
    if name != "ia3-in-linear":  # which says the same of all rows
        assert relative(dense(turned, base), sample.change(base)) > 1e-3
    with pytest.raises(UnsupportedKind, match="cannot be stored fused"):
        fused(site, [(alone[0], parts[0])])  # nothing is known of the rows of the other
