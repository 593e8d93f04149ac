"""Every method that merges checkpoints is its definition, written densely in float64."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.algebra import kth_largest
from loramerge.algebra.operators import OPERATORS
from loramerge.stream import blend, combining
from loramerge.stream.row_reader import RowReader
from tests.builders import small_models
from tests.stream import dense_merges as dense
from tests.stream.merges import as_row, merged, small_bytes, wide
from tests.tail import crossed

# method → (its definition, one that is wrong as people have been wrong)
METHODS: dict[str, tuple[Any, Any]] = {
    "linear": (dense.linear, lambda c, w, name: dense.linear(c, [x / sum(w) for x in w])),
    "ties": (dense.ties, partial(dense.ties, density=0.8)),
    "magnitude-prune": (dense.magnitude_prune, dense.linear),
    "breadcrumbs": (dense.breadcrumbs, partial(dense.breadcrumbs, gamma=0.0)),
    "dare": (dense.dare, lambda c, w, name: dense.dare(c[::-1], w[::-1], name)),
    "dare-ties": (dense.dare_ties, dense.dare),
    "della": (dense.della, dense.dare_ties),
    "sce": (
        dense.sce,
        lambda c, w, name: dense.elected([x * y for x, y in zip(w, c, strict=True)]),
    ),
    "slerp": (dense.slerp, dense.linear),
    "nuslerp": (dense.nuslerp, dense.slerp),
    "karcher": (dense.karcher, dense.linear),
    "geometric-median": (dense.geometric_median, dense.linear),
    "train-difference": (
        dense.train_difference,
        lambda c, w, name: dense.linear(c, [w[0], 1.8 * w[1]]),
    ),
    "model-stock": (dense.model_stock, lambda c, w, name: dense.linear(c, w) / len(c)),
}


def check(
    path: Path, paths: list[Path], definition: Any, weights: list[float], scale: str
) -> float:
    """Return the largest distance of a merge from a definition, relative to the changes."""
    base, *models = map(wide, paths)
    worst = 0.0
    for name, value in wide(path).items():
        changes = [as_row(model[name] - base[name]) for model in models]
        module = name.removesuffix(".weight")
        want = definition(changes, weights, module)
        if scale == "norm-match":
            want = dense.norm_matched(want, changes, weights)
        far = as_row(value - base[name]) - want
        worst = max(worst, float(np.linalg.norm(far) / np.linalg.norm(want)))
    return worst


@pytest.mark.parametrize(("method", "scale"), crossed(METHODS, ["literal", "norm-match"]))
def test_a_method_is_its_definition(
    three: list[Path], tmp_path: Path, method: str, scale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blend, "BLOCK_ELEMENTS", 40)  # several blocks for each tensor
    monkeypatch.setattr(kth_largest, "_HELD", 8)
    base, a, b = three
    right, wrong = METHODS[method]
    merged(tmp_path / "out", (a, 0.9), (b, 0.4), base=base, method=method, scale=scale, dtype="F64")
    assert check(tmp_path / "out", three, right, [0.9, 0.4], scale) < 1e-9
    if scale == "literal" or method not in ("linear", "model-stock"):  # wrong in their norm alone
        assert check(tmp_path / "out", three, wrong, [0.9, 0.4], scale) > 1e-3


def test_every_method_that_needs_no_factors_is_compared_here() -> None:
    able = {one.name for one in OPERATORS.shipped() if not one.needs_factors}
    assert able - set(METHODS) == {"norm-equalised", "subtract", "cosine-adaptive"}


@pytest.mark.parametrize("kind", ["A", "B"])
def test_cosine_adaptive_looks_at_the_whole_model(
    three: list[Path], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(combining, "BLOCK_ELEMENTS", 40)
    _, a, b = three
    settings = {"likeness": {"A": "columns", "B": "both"}[kind]}
    for weight in (0.25, 0.9):
        output = tmp_path / f"{weight}"
        merged(output, (a, 1 - weight), (b, weight), method="cosine-adaptive", settings=settings,
               dtype="F64")  # fmt: skip
        want = dense.cosine_adaptive(wide(a), wide(b), weight, kind)
        other = dense.cosine_adaptive(wide(a), wide(b), weight, "AB".replace(kind, ""))
        got = small_models.read(output)
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-12)
        assert not all(np.allclose(got[n], v, atol=1e-6) for n, v in other.items())


@pytest.mark.parametrize("method", ["ties", "sce"])
def test_settings_of_a_method(three: list[Path], tmp_path: Path, method: str) -> None:
    base, a, b = three
    settings = {"ties": {"density": 0.6}, "sce": {"select": 0.3}}[method]
    merged(tmp_path / "out", (a, 1.0), (b, 1.0), base=base, method=method, settings=settings,
           scale="literal", dtype="F64")  # fmt: skip
    definition = partial(METHODS[method][0], **settings)
    assert check(tmp_path / "out", three, definition, [1.0, 1.0], "literal") < 1e-9


@pytest.mark.parametrize("method", ["slerp", "nuslerp", "karcher"])
def test_weights_themselves_without_a_base(three: list[Path], tmp_path: Path, method: str) -> None:
    _, a, b = three
    merged(tmp_path / "out", (a, 0.6), (b, 0.4), method=method, dtype="F64")
    x, y = wide(a), wide(b)
    for name, value in small_models.read(tmp_path / "out").items():
        want = METHODS[method][0]([as_row(x[name]), as_row(y[name])], [0.6, 0.4], name)
        np.testing.assert_allclose(as_row(value), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["ties", "sce"])
def test_rows_that_are_drawn_first_change_no_byte(
    three: list[Path], tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, a, b = three
    options = {"base": base, "method": method}
    options |= {"settings": {"ties": {"density": 0.6}, "sce": {"select": 0.3}}[method]}
    monkeypatch.setattr(kth_largest, "_HELD", 8)
    merged(tmp_path / "plain", (a, 0.6), (b, 0.4), **options)
    monkeypatch.setattr(combining, "_LARGE", 40)
    monkeypatch.setattr(combining, "_PER_DRAWN", 20)
    monkeypatch.setattr(blend, "_WRITTEN", 40)  # of lower blocks than those that were gathered
    drawn: list[int] = []
    draw = RowReader.draw

    def counted(self: RowReader, rows: Sequence[int], out: Any) -> None:
        drawn.append(len(rows))
        draw(self, rows, out)

    monkeypatch.setattr(RowReader, "draw", counted)
    merged(tmp_path / "drawn", (a, 0.6), (b, 0.4), **options)
    assert max(drawn) > 1
    assert small_bytes(tmp_path / "plain") == small_bytes(tmp_path / "drawn")
