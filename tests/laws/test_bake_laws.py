from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
from tests.builders.bases import (
    Array,
    Base,
    Files,
    Weights,
    asked,
    exact,
    read_safetensors,
    single,
)
from tests.laws import bake_laws as laws
from tests.laws.bake_laws import Bake, Inputs


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Base]:
    return lambda dtype: single(tmp_path / f"{dtype}.safetensors", "sdxl", dtype)


def ours(base: Base, inputs: Inputs) -> Files:
    plan = plan_bake(open_checkpoint(base.path), [(a, Weight(w)) for a, w in inputs])
    output = base.path.with_name("out.safetensors")
    bake(plan, output, force=True, threads=1)
    return {"": read_safetensors(output)[0]}


def rounded(base: Base, weights: dict[str, Array]) -> Weights:
    return {k: v.astype("float32").astype(base.weights[k].dtype) for k, v in weights.items()}


def right(base: Base, inputs: Inputs) -> Files:
    """The oracle as an implementation: laws must let it pass."""
    return base.tensors(rounded(base, exact(base.weights, inputs)))


def _moved(move: Callable[[str], str]) -> Bake:
    """Adds every change to the parameter of another name, where that has the same shape."""

    def wrong(base: Base, inputs: Inputs) -> Files:
        change, new = asked(base.weights, inputs), exact(base.weights, [])
        for key, value in change.items():
            target = move(key)
            new[target] = new[target] + value.reshape(new[target].shape)
        return base.tensors(rounded(base, new))

    return wrong


def _fused_only(key: str, a: str, b: str) -> str:
    if not key.startswith("text_encoder_2"):
        return key
    return key.replace(a, "\0").replace(b, a).replace("\0", b)


q_and_v_swapped = _moved(lambda key: _fused_only(key, "q_proj", "v_proj"))
k_instead_of_q = _moved(lambda key: _fused_only(key, "q_proj", "k_proj"))


def transposition_forgotten(base: Base, inputs: Inputs) -> Files:
    change, new = asked(base.weights, inputs), exact(base.weights, inputs)
    key = "text_encoder_2.text_projection.weight"
    new[key] = base.weights[key] + change[key].T
    return base.tensors(rounded(base, new))


def biases_forgotten(base: Base, inputs: Inputs) -> Files:
    new = exact(base.weights, inputs)
    return base.tensors(
        rounded(base, new | {k: v for k, v in base.weights.items() if k.endswith(".bias")})
    )


def double_scale(base: Base, inputs: Inputs) -> Files:
    def scale(delta: Any) -> float:
        return delta.scale.value(delta.rank) if delta.rank is not None else 1.0

    return right(
        base,
        [
            (a.with_deltas({s: d.scaled(scale(d)) for s, d in a.deltas.items()}), w)
            for a, w in inputs
        ],
    )


def squared_weights(base: Base, inputs: Inputs) -> Files:
    return right(base, [(a, w * w) for a, w in inputs])


def added_twice(base: Base, inputs: Inputs) -> Files:
    """The first delta is still in the buffer when the second is added."""
    return right(base, [*inputs[:1], *inputs] if len(inputs) > 1 else inputs)


def one_after_the_other(base: Base, inputs: Inputs) -> Files:
    """Every adapter is rounded into the storage type before the next."""
    weights = base.weights
    for pair in inputs:
        weights = rounded(base, exact(weights, [pair]))
    return base.tensors(weights)


def computed_in_half(base: Base, inputs: Inputs) -> Files:
    """The product is rounded to the storage type before it is added."""
    change = rounded(base, asked(base.weights, inputs))
    new = {k: v + change[k] if k in change else v for k, v in base.weights.items()}
    return base.tensors(new)


def everything_rewritten(base: Base, inputs: Inputs) -> Files:
    """Untouched tensors pass through another type."""
    import ml_dtypes

    (tensors,) = right(base, inputs).values()
    return {
        "": {
            k: v.astype(ml_dtypes.bfloat16).astype(v.dtype) if v.dtype.kind == "f" else v
            for k, v in tensors.items()
        }
    }


def reordered(base: Base, inputs: Inputs) -> Files:
    (tensors,) = right(base, inputs).values()
    return {"": dict(sorted(tensors.items()))}


@pytest.mark.parametrize("implementation", [ours, right])
@pytest.mark.parametrize("law", laws.BAKE_LAWS)
def test_ours_and_the_oracle_hold(law: Any, implementation: Bake, make: Any) -> None:
    law(implementation, make)


@pytest.mark.parametrize(
    ("law", "implementation"),
    [
        (laws.bake_agrees_with_the_dense_oracle, q_and_v_swapped),
        (laws.bake_agrees_with_the_dense_oracle, k_instead_of_q),
        (laws.bake_agrees_with_the_dense_oracle, transposition_forgotten),
        (laws.bake_agrees_with_the_dense_oracle, biases_forgotten),
        (laws.bake_agrees_with_the_dense_oracle, double_scale),
        (laws.bake_agrees_with_the_dense_oracle, squared_weights),
        (laws.bake_agrees_with_the_dense_oracle, added_twice),
        (laws.bake_agrees_with_the_dense_oracle, reordered),
        (laws.bake_rounds_once, one_after_the_other),
        (laws.bake_rounds_once, computed_in_half),
        (laws.bake_of_a_mix_is_the_bake_of_its_inputs, double_scale),
        (laws.bake_of_a_mix_is_the_bake_of_its_inputs, squared_weights),
        (laws.bake_of_a_mix_is_the_bake_of_its_inputs, added_twice),
        (laws.bake_leaves_the_rest_alone, k_instead_of_q),
        (laws.bake_leaves_the_rest_alone, everything_rewritten),
    ],
)
def test_the_law_finds_the_error(law: Any, implementation: Bake, make: Any) -> None:
    with pytest.raises(AssertionError):
        law(implementation, make)


def test_every_law_has_a_wrong_implementation_that_breaks_it() -> None:
    (marks,) = test_the_law_finds_the_error.pytestmark  # type: ignore[attr-defined]
    assert {law for law, _ in marks.args[1]} == set(laws.BAKE_LAWS)
