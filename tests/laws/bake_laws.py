"""What any implementation of bake must obey; each law takes the implementation.

A bake is a function of (base, [(adapter, weight), …]) that gives the tensors of the files. The base
is an SDXL single file, which has everything that goes wrong: fused, transposed and plain tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from loramerge.adapter import Adapter
from loramerge.algebra.mix import mix
from loramerge.algebra.weights import Weight
from tests.builders.bases import Base, Files, adapter_for, exact, magnitudes, ulp
from tests.builders.deltas import full, site

Inputs = Sequence[tuple[Adapter, float]]
Bake = Callable[[Base, Inputs], Files]
Make = Callable[[str], Base]


def sample(seed: int) -> Adapter:
    """A LoRA of some layers of every component, and differences of biases."""
    wanted = ("attn1.to_q", "conv1", "conv_in", "q_proj", "v_proj", "fc1", "text_projection")
    a = adapter_for("sdxl", seed=seed, only=lambda name: name.endswith(wanted))
    biases = {
        site(f"text_encoder_2.text_model.encoder.layers.0.self_attn.{x}_proj:bias"): full(
            (8,), seed + ord(x), "diff_b"
        )
        for x in "qv"
    }
    return a.with_deltas({**a.deltas, **biases})


def _near(base: Base, found: Files, inputs: Inputs, dtype: str) -> None:
    expected = base.tensors(exact(base.weights, inputs))
    room = base.tensors(magnitudes(base.weights, inputs))
    for file, tensors in expected.items():
        assert list(found[file]) == list(tensors)
        for name, want in tensors.items():
            got = found[file][name].astype("float64")
            assert got.shape == want.shape
            bound = 0.5 * ulp(want, dtype) + 2.0**-22 * np.abs(room[file][name])
            assert (np.abs(got - want) <= bound).all(), name


def bake_agrees_with_the_dense_oracle(bake: Bake, make: Make) -> None:
    base = make("F32")
    inputs = [(sample(1), 0.7), (sample(2), -1.5)]
    _near(base, bake(base, inputs), inputs, "F32")


def bake_rounds_once(bake: Bake, make: Make) -> None:
    base = make("BF16")
    inputs = [(sample(s), 0.3) for s in range(4)]
    _near(base, bake(base, inputs), inputs, "BF16")


def bake_of_a_mix_is_the_bake_of_its_inputs(bake: Bake, make: Make) -> None:
    base, inputs = make("F32"), [(sample(1), 0.7), (sample(2), -1.5)]
    mixed, _ = mix([(a, Weight(w)) for a, w in inputs], threads=1)
    apart, together = bake(base, inputs)[""], bake(base, [(mixed, 1.0)])[""]
    for name, array in apart.items():
        assert np.allclose(array.astype("float64"), together[name], atol=1e-6), name


def bake_leaves_the_rest_alone(bake: Bake, make: Make) -> None:
    base, a = make("F16"), sample(1)
    names = {f"{s.modules[0]}.{s.parameter}" for s in a.deltas}
    before = base.tensors(base.weights)[""]
    marks = base.tensors({k: np.full(v.shape, float(k in names)) for k, v in base.weights.items()})[
        ""
    ]
    for name, array in bake(base, [(a, 1.0)])[""].items():
        same = marks[name] != 1.0
        assert array.dtype == before[name].dtype
        assert array[same].tobytes() == before[name][same].tobytes(), name


BAKE_LAWS: tuple[Callable[[Bake, Make], None], ...] = (
    bake_agrees_with_the_dense_oracle,
    bake_rounds_once,
    bake_of_a_mix_is_the_bake_of_its_inputs,
    bake_leaves_the_rest_alone,
)
