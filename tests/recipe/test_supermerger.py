"""Recipes from the metadata that supermerger leaves, checked against its merge done by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramerge.adapter import LowRank
from loramerge.algebra.compat import mix_like
from loramerge.algebra.weights import Weight, weight_of
from loramerge.errors import CorruptFile
from loramerge.recipe.supermerger import recipe_of
from tests.builders.deltas import Dense, adapter, dense, distance, low_rank, norm, site

Meta = dict[str, Any]
BASE, IN04, OUT05 = 0, 5, 19  # places in 26 ratios
NO_BLOCK = 0  # what is in no block takes the ratio of BASE
MODULES = {
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": BASE,
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": IN04,
    "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_q": OUT05,
    "unet.conv_out": NO_BLOCK,
}
OUTALL = [1.0] + [0.0] * 16 + [1.0] * 9


def entry(name: str, ratio: float, blocks: Sequence[float] | None = None, **more: str) -> Meta:
    """The metadata of an input as `prepare_merge_metadata` leaves it."""
    ratios = [float(ratio)] * 26 if blocks is None else blocks
    return {
        "ss_network_dim": "4",
        **more,
        "sshs_ratio": str(ratio),
        "sshs_blocks": ",".join(map(str, ratios)),
        "ss_output_name": name,
    }


def merged(*entries: Meta) -> dict[str, str]:
    """The header that `create_merge_metadata` makes of them, with "merge" or "save all"."""
    metadata = dict(entries[0])
    for index, one in enumerate(entries):
        metadata[f"sshs_cp{index}"] = json.dumps(one)
    metadata["ss_output_name"] = "out"
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}


def read(*entries: Meta) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    """The adapters of the recipe's step, the recipe, and the notes as one text."""
    found = recipe_of(merged(*entries))
    assert found is not None
    recipe, notes = found
    return recipe["steps"]["merge"]["mix"]["adapters"], recipe, "\n".join(notes)


# ---- what it is


def test_two_adapters_with_plain_ratios() -> None:
    found = recipe_of(merged(entry("style v2", 0.7), entry("face", 0.3)))
    assert found is not None
    recipe, notes = found
    assert recipe == {
        "version": 1,
        "inputs": {
            "style-v2": {"path": "style v2.safetensors"},
            "face": {"path": "face.safetensors"},
        },
        "steps": {
            "merge": {
                "mix": {
                    "adapters": [
                        {"adapter": "style-v2", "weight": 0.7},
                        {"adapter": "face", "weight": 0.3},
                    ],
                    "compat": "kohya",
                }
            }
        },
    }
    assert json.loads(json.dumps(recipe)) == recipe
    assert len(notes) == 2 and "same to Strength" in notes[0] and "Extract" in notes[1]


def test_ratios_of_blocks_are_a_vector() -> None:
    ((first, second), _, _) = read(entry("a", 1, OUTALL), entry("b", 0.5))
    assert first["weight"] == {"blocks": OUTALL, "default": 1.0}
    assert second["weight"] == 0.5
    assert weight_of(first["weight"], "here") == Weight(1.0, blocks=tuple(OUTALL))


def test_a_file_of_july_2023_has_17_ratios() -> None:
    old = [0.5] * 16 + [1.0]
    ((first,), _, notes) = read(entry("a", 1, old))
    assert first["weight"] == {"blocks": old} and "17 ratios" in notes


def test_a_merge_of_flux_takes_the_first_ratio_for_all() -> None:
    ((first, second), _, notes) = read(
        entry("a", 1, [0.5, *[1.0] * 60]), entry("b", 1, OUTALL, ss_base_model_version="flux1")
    )
    assert (first["weight"], second["weight"]) == (0.5, 1.0)
    assert "first value of the vector" in notes


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"ss_output_name": "a", "sshs_model_hash": "0", "sshs_legacy_hash": "0"},
        {"sshs_ratio": "0.5", "sshs_blocks": "0.5", "ss_output_name": "out"},  # "use first lora"
        {"sshs_cpx": "{", "sshs_cp01": "{", "sshs_cp": "{"},
    ],
)
def test_other_files_have_no_recipe(metadata: Mapping[str, str]) -> None:
    assert recipe_of(metadata) is None


def test_names_are_short_and_of_one_input_each() -> None:
    names = ["a b", "a-b", "merge", "顔", "???"]
    _, recipe, _ = read(*(entry(name, 1.0) for name in names))
    assert list(recipe["inputs"]) == ["a-b", "a-b-2", "merge-2", "顔", "lora"]
    assert [i["path"] for i in recipe["inputs"].values()] == [f"{n}.safetensors" for n in names]


def test_an_adapter_that_is_there_twice_is_noted() -> None:
    adapters, recipe, notes = read(entry("a", 0.3), entry("a", 0.3))
    assert len(recipe["inputs"]) == len(adapters) == 2 and "more than once" in notes


def test_different_ranks_mean_that_it_cut() -> None:
    adapters, recipe, notes = read(entry("a", -0.7), entry("b", 0.3) | {"ss_network_dim": "128"})
    assert "compat" not in recipe["steps"]["merge"]["mix"]
    assert [one["weight"] for one in adapters] == [-0.7, 0.3]  # the sum of changes keeps signs
    assert "4, 128" in notes and "clamped SVD" in notes and "loses its sign" not in notes
    _, recipe, _ = read(entry("a", 1), entry("b", 1) | {"ss_network_dim": "Dynamic"})
    assert recipe["steps"]["merge"]["mix"]["compat"] == "kohya"


def test_lost_signs_are_noted() -> None:
    *_, plain = read(entry("a", 0.7), entry("b", 0.3))
    *_, lost = read(entry("a", -0.7), entry("b", -0.3))
    *_, mixed = read(entry("a", 0.7), entry("b", -0.3))
    assert "loses its sign" not in plain
    assert "loses its sign" in lost and "products" not in lost
    assert "products with adapters of positive ratios" in mixed and "with their signs" in mixed
    apart = [[1.0, *[0.0] * 25], [0.0, *[-1.0] * 25]]  # no block has both
    *_, notes = read(*(entry(n, 1, b) for n, b in zip("ab", apart, strict=True)))
    assert "products" not in notes


# ---- what earlier merges left


def test_a_merged_file_as_first_input_brings_older_inputs_along() -> None:
    ab = {"ss_network_dim": "4", "sshs_cp0": entry("x", 1), "sshs_cp1": entry("y", 0.5),
          "sshs_cp2": entry("z", 0.5)}  # fmt: skip
    adapters, _, notes = read(entry("ab", 0.8) | ab, entry("c", 0.2))
    assert [one["adapter"] for one in adapters] == ["ab", "c"]
    assert "z went into the first adapter earlier" in notes
    adapters, _, notes = read(entry("ab", 0.8) | ab)
    assert [one["adapter"] for one in adapters] == ["ab"] and "y, z went" in notes
    # the webui keeps some as text, others as objects
    text = {k: json.dumps(v) if "cp" in k else v for k, v in ab.items()}
    adapters, *_ = read(entry("ab", 0.8) | text)
    assert len(adapters) == 1


def test_a_merge_done_twice_in_one_session_is_not_cut_short() -> None:
    a, b = entry("a", 0.7), entry("b", 0.3)
    again = a | {"sshs_cp0": json.dumps(a), "sshs_cp1": json.dumps(b)}
    adapters, _, notes = read(again, b)
    assert [one["adapter"] for one in adapters] == ["a", "b"]
    assert "b may be left over" in notes


# ---- what it means


def by_hand(
    inputs: Sequence[dict[str, LowRank]], ratios: Sequence[Sequence[float]], *, root: bool = False
) -> Dense:
    """supermerger's merge: factors summed with the ratio of the block, or its root, on both."""
    found: Dense = {}
    for name, block in MODULES.items():
        up, down = np.zeros((9, 4)), np.zeros((4, 8))
        for deltas, of in zip(inputs, ratios, strict=True):
            delta, ratio = deltas[name], of[block]
            alpha = delta.scale.alpha or delta.rank
            half = math.sqrt(alpha / delta.rank)
            on_up = on_down = ratio
            if root:
                on_up = math.sqrt(abs(ratio))
                on_down = math.copysign(on_up, ratio)
            rank = delta.rank
            up = up + half * on_up * delta.up.numpy().reshape(-1, rank)
            down = down + half * on_down * delta.down.numpy().reshape(rank, -1)
        found[site(name)] = up @ down
    return found


def made(seed: int, alpha: float) -> dict[str, LowRank]:
    return {
        name: low_rank((9, 8), 4, seed + i, dtype="float64", alpha=alpha)
        for i, name in enumerate(MODULES)
    }


RATIOS: dict[str, list[list[float]]] = {
    "plain": [[0.7] * 26, [0.4] * 26],
    "blocks": [[0.1 * n for n in range(26)], OUTALL],
    "all negative": [[-0.7] * 26, [-0.4] * 26],
    "three": [[0.7] * 26, [0.4] * 26, OUTALL],
}


@pytest.mark.parametrize("case", RATIOS)
def test_the_recipe_makes_what_supermerger_made(case: str) -> None:
    ratios = RATIOS[case]
    inputs = [made(10 * n, 1.0 + n) for n in range(len(ratios))]
    adapters, recipe, _ = read(*(entry(f"l{n}", 1, of) for n, of in enumerate(ratios)))
    result = mix_like(
        recipe["steps"]["merge"]["mix"]["compat"],
        [
            (adapter(deltas, families=["sd15"]), weight_of(one["weight"], "here"))
            for deltas, one in zip(inputs, adapters, strict=True)
        ],
    )
    expected = by_hand(inputs, ratios)
    assert distance(dense(result), expected) <= 1e-12 * norm(expected)


def test_same_to_strength_is_what_the_note_says() -> None:
    ratios = [[0.7] * 26, [-0.4] * 26]
    inputs = [made(10 * n, 1.0 + n) for n in range(2)]
    result = mix_like(
        "peft-linear",
        [
            (adapter(deltas, families=["sd15"]), Weight(of[0]))
            for deltas, of in zip(inputs, ratios, strict=True)
        ],
    )
    expected = by_hand(inputs, ratios, root=True)
    assert distance(dense(result), expected) <= 1e-12 * norm(expected)


# ---- what cannot be read


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"sshs_cp0": "{"}, "sshs_cp0 in the header is not JSON"),
        ({"sshs_cp0": "[1]"}, "not a JSON object"),
        ({"sshs_cp0": ""}, "not JSON"),
        ({"sshs_cp0": "[" * 100_000}, "nested too deeply"),
        ({"sshs_cp0": '{"a": 1' + "0" * 5000 + "}"}, "not JSON"),
        ({"sshs_cp1": "{}"}, "incomplete"),
        ({"sshs_cp0": "{}"}, "has no file name"),
        ({"sshs_cp0": json.dumps(entry("../../etc/x", 1))}, "has no file name"),
        ({"sshs_cp0": json.dumps(entry(" ", 1))}, "has no file name"),
        ({"sshs_cp0": json.dumps(entry("a", 1) | {"ss_output_name": 3})}, "has no file name"),
        ({"sshs_cp0": '{"ss_output_name": "a"}'}, "not a number"),
        ({"sshs_cp0": json.dumps(entry("a", 1) | {"sshs_blocks": "x"})}, "not a number"),
        ({"sshs_cp0": json.dumps(entry("a", math.nan))}, "not a number"),
        ({"sshs_cp0": json.dumps(entry("a", math.inf))}, "not a number"),
        ({"sshs_cp0": json.dumps(entry("a", 1) | {"sshs_blocks": "1,2,3"})}, "known number"),
        ({"sshs_cp0": json.dumps(entry("a", 1) | {"sshs_blocks": [1]})}, "not a number"),
    ],
)
def test_broken_metadata_is_a_corrupt_file(metadata: Mapping[str, str], words: str) -> None:
    with pytest.raises(CorruptFile) as caught:
        recipe_of(metadata)
    assert words in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["ss_output_name", "sshs_ratio", "sshs_blocks", "ss_network_dim", "sshs_cp0", "sshs_cp1"]


@given(
    st.dictionaries(
        st.sampled_from(["sshs_cp0", "sshs_cp1", "sshs_cp2"]),
        st.dictionaries(st.sampled_from(FIELDS), JSON | st.just("0.5")).map(json.dumps) | st.text(),
    )
)
def test_any_metadata_gives_a_recipe_or_our_error(metadata: dict[str, str]) -> None:
    try:
        found = recipe_of(metadata)
    except CorruptFile:
        return
    assert found is None or set(found[0]) == {"version", "inputs", "steps"}
