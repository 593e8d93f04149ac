"""PEFT's OFT and BOFT in all their variants, by matrices written out from the definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from loramerge.adapter.kinds.boft import PeftBOFT
from loramerge.adapter.kinds.oft import PeftOFT
from loramerge.errors import ShapeError
from loramerge.files.tensors import ArrayTensor
from tests.builders.kinds import Array, values, wide
from tests.builders.samples import relative

OUT, IN, SIZE = 6, 16, 4


def cayley(skew: Array) -> Array:
    eye = np.eye(len(skew))
    return np.asarray((eye - skew) @ np.linalg.inv(eye + skew))


def block_diagonal(blocks: list[Array]) -> Array:
    size = sum(len(block) for block in blocks)
    whole, at = np.zeros((size, size)), 0
    for block in blocks:
        whole[at : at + len(block), at : at + len(block)] = block
        at += len(block)
    return whole


def butterfly(stage: int) -> Array:
    """P: row j of the stage's order is row order[j]; even halves of blocks, then odd, by groups."""
    half, group = SIZE // 2, SIZE * 2**stage
    order: list[int] = []
    for start in range(0, IN, group):
        halves = [list(range(at, at + half)) for at in range(start, start + group, half)]
        order += [row for part in halves[::2] + halves[1::2] for row in part]
    permutation = np.zeros((IN, IN))
    permutation[np.arange(IN), order] = 1.0
    return permutation


def boft(r: Array, s: Array, base: Array, how: str = "") -> Array:
    matrix = np.eye(IN)
    stages = list(enumerate(wide(r)))
    for stage, blocks in reversed(stages) if how == "reversed" else stages:
        rotation = block_diagonal([cayley(0.5 * (b - b.T)) for b in blocks])
        p = np.eye(IN) if how == "not exchanged" else butterfly(stage)
        p = p.T if how == "the other way" else p
        matrix = p @ rotation @ p.T @ matrix
    return wide(s) * (base @ matrix.T) - base


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_boft_in_stages(stages: int) -> None:
    r, s = values(stages, IN // SIZE, SIZE, SIZE), np.abs(values(OUT, 1))
    delta = PeftBOFT.of({"boft_r": ArrayTensor(r), "boft_s": ArrayTensor(s)})
    base = wide(values(OUT, IN, seed=3))
    found = delta.dense(base)
    assert delta.fits(base.shape) and relative(found, boft(r, s, base)) < 1e-12
    assert relative(delta.scaled(0.3).dense(base), 0.3 * boft(r, s, base)) < 1e-12
    if stages == 3:
        for wrong in ("reversed", "not exchanged", "the other way"):
            assert relative(found, boft(r, s, base, wrong)) > 1e-2, wrong


def test_small_rotations_are_precise_in_single_precision() -> None:
    r = 1e-4 * values(2, IN // SIZE, SIZE, SIZE)
    parts = {"boft_r": ArrayTensor(r), "boft_s": ArrayTensor(np.ones((OUT, 1), np.float32))}
    base = values(OUT, IN, seed=3)
    found = PeftBOFT.of(parts).dense(base, dtype="float32")
    assert relative(found, boft(r, np.ones((OUT, 1)), wide(base))) < 1e-5


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 4, 3, 3), (1, 2, 4, 3)])
def test_stages_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    parts = {"boft_r": ArrayTensor(values(*shape)), "boft_s": ArrayTensor(values(OUT, 1))}
    with pytest.raises(ShapeError, match="not the blocks of a BOFT"):
        PeftBOFT.of(parts)


def oft(upper: Array, base: Array, eps: float, *, shared: bool, total: bool = False) -> Array:
    blocks = []
    for row in wide(upper):
        q = np.zeros((SIZE, SIZE))
        q[np.triu_indices(SIZE, 1)] = row
        q = q - q.T
        most = eps if total else eps / math.sqrt(len(upper))
        norm = math.sqrt((q**2).sum())
        blocks.append(cayley(q * min(1.0, most / norm)))
    blocks = blocks * (IN // SIZE) if shared else blocks
    return base @ block_diagonal(blocks).T - base


@pytest.mark.parametrize("shared", [False, True])
def test_oft_constrained_and_shared(shared: bool) -> None:
    upper = values(1 if shared else IN // SIZE, SIZE * (SIZE - 1) // 2)
    upper[0] *= 0.05  # within the constraint
    config: dict[str, Any] = {"coft": True, "eps": 0.7, "use_cayley_neumann": False}
    base = wide(values(OUT, IN, seed=3))
    for eps in (0.7, 0.05):
        asked = {**config, "eps": eps, "block_share": shared}
        delta = PeftOFT.of({"oft_r": ArrayTensor(upper)}, asked)
        found = delta.dense(base)
        assert delta.fits(base.shape)
        assert relative(found, oft(upper, base, eps, shared=shared)) < 1e-12
        free = PeftOFT.of({"oft_r": ArrayTensor(upper)}, {**asked, "coft": False})
        if not (shared and eps == 0.7):
            assert relative(found, free.dense(base)) > 1e-2
        if not shared:
            assert relative(found, oft(upper, base, eps, shared=shared, total=True)) > 1e-2
    with pytest.raises(ShapeError, match="eps"):
        PeftOFT.of({"oft_r": ArrayTensor(upper)}, {**config, "eps": "small"})


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kernel", [(), (2, 2)])
def test_oft_of_onetrainer(scaled: bool, kernel: tuple[int, ...]) -> None:
    """Its convolutions turn the other way round, and its scaled form divides the triangles."""
    columns = IN * math.prod(kernel)
    upper = 0.1 * values(columns // SIZE, SIZE * (SIZE - 1) // 2)
    parts: dict[str, ArrayTensor] = {"oft_r_free": ArrayTensor(upper)}
    if scaled:
        parts["oft_scaled"] = ArrayTensor(np.array(True))
    base = wide(values(OUT, IN, *kernel, seed=3))
    q = np.zeros((len(upper), SIZE, SIZE))
    q[:, *np.triu_indices(SIZE, 1)] = wide(upper) / (2 * math.sqrt(SIZE - 1) if scaled else 1)
    q = q - q.swapaxes(1, 2)
    turns = np.eye(SIZE) + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q
    turn = block_diagonal(list(turns))
    flat = base.reshape(OUT, -1)
    expected = flat @ (turn if kernel else turn.T) - flat
    delta = PeftOFT.of(parts, {}, base.shape)
    assert relative(delta.dense(base).reshape(OUT, -1), expected) < 1e-12
    assert delta.form == "oft of inputs"
