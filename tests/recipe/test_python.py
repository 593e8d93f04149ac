"""The Python interface: operators that are exactly linear, and the verbs on adapters in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loramerge as lm
from loramerge.adapter import Adapter, LowRank, Scale
from loramerge.errors import LoramergeError, UsageError
from tests.builders.deltas import (
    adapter,
    dense,
    distance,
    low_rank,
    norm,
    oracle,
    weighted,
)
from tests.builders.samples import read_safetensors, relative
from tests.builders.world import rewrite, weights

SHAPES = {"unet.a": (12, 9), "unet.b": (8, 8), "unet.c": (6, 5, 3, 3)}
mix = lm.mix  # names are loaded when first used, and operators come with them

Terms = list[tuple[Adapter, float]]


def make(seed: int, rank: int, alpha: float | None, names: str = "abc") -> Adapter:
    """A random float64 adapter of some layers."""
    return adapter(
        {f"unet.{n}": low_rank(SHAPES[f"unet.{n}"], rank, seed * 10 + i, dtype="float64", alpha=alpha)
         for i, n in enumerate(names)}
    )  # fmt: skip


adapters = st.builds(
    make, st.integers(0, 50), st.integers(1, 4), st.none() | st.sampled_from([0.5, 1.0, 3.0]),
    st.sampled_from(["abc", "ab", "c", "b"]),
)  # fmt: skip
numbers = st.floats(-4, 4).filter(lambda w: abs(w) > 1e-3)  # all of weight 0 is refused
few = settings(max_examples=20)


def near(found: Any, expected: Any, scale: float = 0.0) -> bool:
    """Whether two sums of ΔW agree to rounding, relative to the larger of norm and `scale`."""
    found, expected = (dense(x) if isinstance(x, Adapter) else x for x in (found, expected))
    return distance(found, expected) <= 1e-9 * max(norm(expected), scale, 1e-12)


def size(*terms: Adapter) -> float:
    return 4 * sum(norm(oracle(t)) for t in terms)


# ---- laws of the operators


@few
@given(adapters, adapters, numbers, numbers)
def test_sums_are_exact(a: Adapter, b: Adapter, x: float, y: float) -> None:
    assert near(x * a + y * b, weighted([(a, x), (b, y)]), size(a, b))


@few
@given(adapters, numbers, numbers)
def test_homogeneous(a: Adapter, x: float, y: float) -> None:
    assert near(x * (y * a), (x * y) * a, size(a))
    assert near(a * x, x * a, size(a))
    if abs(x + y) > 1e-3:
        assert near((x + y) * a, x * a + y * a, 2 * size(a))


@few
@given(adapters, adapters, adapters, numbers)
def test_additive_and_distributive(a: Adapter, b: Adapter, c: Adapter, x: float) -> None:
    whole = size(a, b, c)
    assert near(a + b, b + a, whole)
    assert near((a + b) + c, a + (b + c), whole)
    assert near(x * (a + b), x * a + x * b, whole)


@few
@given(adapters, adapters)
def test_differences(a: Adapter, b: Adapter) -> None:
    assert near(a - b, a + -1.0 * b, size(a, b))
    assert near(-a, -1.0 * a)
    assert norm(dense(a - a)) <= 1e-9 * norm(oracle(a))
    assert near((a + b) / 2.0, 0.5 * a + 0.5 * b, size(a, b))


@few
@given(adapters, adapters, numbers, numbers)
def test_operators_are_lm_mix(a: Adapter, b: Adapter, x: float, y: float) -> None:
    assert near(x * a + y * b, mix([(a, x), (b, y)]), size(a, b))


def test_adding_other_things_to_an_adapter_is_refused() -> None:
    a = make(1, 2, None)
    for wrong in (lambda: a + 1, lambda: a * "x", lambda: a * a, lambda: a - None, lambda: "x" * a):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(LoramergeError):
        math.nan * a


# ---- the field's errors break the law


def _factors(
    terms: Terms, up_of: Callable[..., float], down_of: Callable[..., float]
) -> dict[Any, Any]:
    """ΔW of summed factors, as merges by factor make it."""
    found = {}
    for s in terms[0][0].deltas:
        deltas = [(t.deltas[s], w) for t, w in terms]
        up = sum(up_of(w, d) * d.stored()["up"].numpy().reshape(d.shape[0], -1) for d, w in deltas)
        down = sum(
            down_of(w, d) * d.stored()["down"].numpy().reshape(d.rank, -1) for d, w in deltas
        )
        found[s] = up @ down
    return found


def _scale(d: Any) -> float:
    return d.scale.value(d.rank)


WRONG = {
    "cross terms": lambda t: _factors(t, lambda w, d: w * _scale(d), lambda w, d: 1.0),
    "ratio squared": lambda t: _factors(t[:1], lambda w, d: w * _scale(d), lambda w, d: w),
    "alpha forgotten": lambda t: weighted([(adapter({s.name: LowRank(d.up, d.down, d.shape, Scale())  # type: ignore[attr-defined]
                                                     for s, d in a.deltas.items()}), w) for a, w in t]),
    "double scale": lambda t: {s: v * 0.5 for s, v in weighted(t).items()},
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_the_law_finds_the_error(name: str) -> None:
    a, b = make(1, 4, 2.0, "ab"), make(2, 4, 2.0, "ab")
    terms = [(a, 0.7), (b, 0.3)]
    assert near(0.7 * a + 0.3 * b, weighted(terms))
    expected = weighted(terms[:1]) if name == "ratio squared" else weighted(terms)
    assert distance(WRONG[name](terms), expected) > 0.05 * norm(expected)


# ---- verbs


def test_the_tour(work) -> None:
    a, b = lm.load("a.safetensors"), lm.load(Path("b.safetensors"))
    small = lm.resize(lm.mix([(a, 0.7), (b, 0.3)]), rank=2)
    written = lm.save(small, "ab-r2.safetensors", dialect="kohya")
    assert written == Path("ab-r2.safetensors").stat().st_size
    result = lm.bake("base.safetensors", [(small, 1.0)], "out.safetensors")
    assert result.survived is not None
    assert 0 < result.survived < 1.5
    name, delta = next(a.modules())
    up, down = delta.factors()
    assert name.startswith("unet.")
    assert relative(up @ down, delta.dense().reshape(delta.flat_shape)) < 1e-6
    assert lm.inspect(a).what == "adapter"
    assert lm.diff(a, a).differs is False
    assert lm.diff(a, b).differs is True
    assert lm.diff(lm.load("ab-r2.safetensors"), small).differs is False


def test_functions_and_commands_give_the_same_bytes(run) -> None:
    a, b = lm.load("a.safetensors"), lm.load("b.safetensors")
    lm.save(lm.mix([(a, 0.7), (b, 0.3)], rank=4), "py.safetensors", dialect="kohya")
    run.ok(
        "mix",
        "a.safetensors:0.7",
        "b.safetensors:0.3",
        "--rank",
        "4",
        "--to",
        "kohya",
        "-o",
        "cli.safetensors",
    )
    assert Path("py.safetensors").read_bytes() == Path("cli.safetensors").read_bytes()
    lm.save(lm.resize(b, energy=0.8), "py2.safetensors")
    run.ok("resize", "b.safetensors", "--energy", "0.8", "-o", "cli2.safetensors")
    assert Path("py2.safetensors").read_bytes() == Path("cli2.safetensors").read_bytes()
    lm.bake(
        "base.safetensors",
        [(a, 0.5), (b, lm.Weight(1.0, {"text_encoder": 0.0}))],
        "py3.safetensors",
        seed=4,
    )
    run.ok("bake", "--base", "base.safetensors", "a.safetensors:0.5", "b.safetensors:te1=0",
           "--rounding", "stochastic", "--seed", "4", "-o", "cli3.safetensors")  # fmt: skip
    assert Path("py3.safetensors").read_bytes() == Path("cli3.safetensors").read_bytes()


def test_run_takes_paths_and_contents(recipe, work) -> None:
    text = """
    version: 1
    vars: {w: 1}
    steps: {x: {mix: {adapters: ["a.safetensors:${w}"]}, save: x.safetensors}}
    """
    found = lm.run(recipe(text), set={"w": 0.5}, threads=1)
    assert found.exit_code == 0
    assert lm.diff(lm.load("x.safetensors"), 0.5 * lm.load("a.safetensors")).differs is False
    assert found.json()["outputs"] == [
        str(Path("recipe.yaml").absolute().with_name("x.safetensors"))
    ]
    content = {
        "version": 1,
        "steps": {"x": {"mix": {"adapters": ["a.safetensors"]}, "save": "y.safetensors"}},
    }
    assert list(lm.run(content).outcomes) == ["x"]


def test_unknown_parameters_are_refused() -> None:
    a = make(1, 2, None)
    with pytest.raises(UsageError, match=r"'rnak' is not a parameter(.|\n)*did you mean rank\?"):
        lm.mix([(a, 1.0)], rnak=3)
    with pytest.raises(UsageError, match="rank cannot be 'three'"):
        lm.mix([(a, 1.0)], rank="three")
    with pytest.raises(UsageError):
        lm.resize(a)


# ---- compat, through the command line


@pytest.fixture
def pair(work) -> tuple[Path, Path]:
    """Two kohya files of one rank and different alphas."""
    rng = np.random.default_rng(5)

    def change(arrays: dict[str, Any], metadata: dict[str, str]) -> None:
        for key, array in arrays.items():
            if key.endswith(".alpha"):
                arrays[key] = np.asarray(1.0, array.dtype)
            else:
                arrays[key] = (rng.standard_normal(array.shape) * array.std()).astype(array.dtype)

    return Path("a.safetensors"), rewrite(Path("a.safetensors"), Path("c.safetensors"), change)


def _parts(path: Path) -> dict[str, tuple[Any, Any, float]]:
    arrays, _ = read_safetensors(path)
    found = {}
    for key in arrays:
        stem = key.removesuffix(".lora_up.weight")
        if stem != key:
            up, down = (arrays[f"{stem}.lora_{n}.weight"].astype(float) for n in ("up", "down"))
            alpha = float(arrays[f"{stem}.alpha"])
            found[stem] = up.reshape(len(up), -1), down.reshape(len(down), -1), alpha
    return found


def _kohya(terms: list[tuple[Any, float]]) -> Any:
    """merge_lora.py: both factors times ratio · √(alpha / first alpha), up by its size."""
    first = terms[0][0][2]
    up = sum(abs(w * math.sqrt(alpha / first)) * up for (up, _, alpha), w in terms)
    down = sum(w * math.sqrt(alpha / first) * down for (_, down, alpha), w in terms)
    return first / down.shape[0] * up @ down


def _concat(terms: list[tuple[Any, float]]) -> Any:
    """The same with --concat: stacked, so no cross terms; alpha is the first's, rank the sum."""
    first = terms[0][0][2]
    rank = sum(down.shape[0] for (_, down, _), _ in terms)
    total = sum(w * abs(w) * alpha / first * up @ down for (up, down, alpha), w in terms)
    return first / rank * total


def _peft(terms: list[tuple[Any, float]]) -> Any:
    """add_weighted_adapter(…, "linear"): both factors times √(weight · alpha / r)."""
    up = sum(math.sqrt(w * alpha / len(down)) * up for (up, down, alpha), w in terms)
    down = sum(math.sqrt(w * alpha / len(down)) * down for (_, down, alpha), w in terms)
    return up @ down


@pytest.mark.parametrize(
    ("tool", "formula"), [("kohya", _kohya), ("peft-linear", _peft), ("kohya-concat", _concat)]
)
def test_results_of_other_tools(tool: str, formula: Any, pair, recipe, run) -> None:
    run.ok("mix", f"{pair[0]}:0.7", f"{pair[1]}:0.5", "--compat", tool,
           "--dtype", "float32", "--to", "kohya", "-o", "out.safetensors")  # fmt: skip
    found = weights(Path("out.safetensors"))
    one, two = _parts(pair[0]), _parts(pair[1])
    exact = {s: 0.7 * a / len(d) * u @ d + 0.5 * two[s][2] / len(d) * two[s][0] @ two[s][1]
             for s, (u, d, a) in one.items()}  # fmt: skip
    for stem in one:
        expected = formula([(one[stem], 0.7), (two[stem], 0.5)])
        assert relative(found[stem], expected) < 1e-3
        assert (
            relative(exact[stem], expected) > 0.05
        )  # it is not the right sum, and is not meant to be
    recipe(f"""
    version: 1
    steps:
      x: {{mix: {{adapters: ["a.safetensors:0.7", "c.safetensors:0.5"],
          compat: {tool}, dtype: float32, to: kohya}},
          save: again/out.safetensors}}
    """)
    run.ok("run", "recipe.yaml")
    assert Path("again/out.safetensors").read_bytes() == Path("out.safetensors").read_bytes()


def test_compat_refuses_to_cut(pair, run) -> None:
    run.refused(
        2, "mix", *pair, "--compat", "kohya", "--rank", "2", says="a rank option would change it"
    )


def test_zero_times_an_adapter_can_be_added():
    a, b = make(1, 2, None), make(2, 3, 1.0, "ab")
    assert norm(dense(0.0 * a)) == 0.0 and (0.0 * a).deltas.keys() == a.deltas.keys()
    assert near(0.0 * a + b, oracle(b))
    assert near(b - 0 * a, oracle(b))
