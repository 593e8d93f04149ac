"""Recipes from mergekit's files: weights, filters and gradients, and what has no counterpart.

`tests/peers/test_mergekit.py` compares the results with those of mergekit itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter import Site
from loramerge.algebra.weights import weight_of
from loramerge.errors import CorruptFile, FormatError
from loramerge.recipe.mergekit import recipe_of_mergekit
from tests.builders import small_models
from tests.builders.commands import Runner

FILE = Path("theirs.yml")


def read(recipe: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The merge of a recipe, and the notes."""
    found, notes = recipe_of_mergekit(recipe, FILE, Path())
    (step,) = found["steps"].values()
    return step["merge"], notes


def weights(recipe: dict[str, Any], module: str) -> list[float]:
    """The weight of each model at a module."""
    step, _ = read(recipe)
    site = Site((module,))
    return [
        1.0 if isinstance(one, str) else weight_of(one["weight"], "here").of(site)
        for one in step["models"]
    ]


def sliced(count: int, parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    sources = [{"model": name, "layer_range": [0, count]} for name in ("a", "b")]
    return {"slices": [{"sources": sources}], "parameters": parameters, "base_model": "a", **more}


def test_a_gradient_with_filters() -> None:
    recipe = sliced(
        5,
        {"t": [
            {"filter": "self_attn", "value": [0, 0.5, 1]},
            {"filter": "mlp", "value": 0.25},
            {"value": [0.1, 0.9]},
        ]},
        merge_method="slerp", dtype="bfloat16",
    )  # fmt: skip
    for layer, share in enumerate((0, 0.25, 0.5, 0.75, 1)):
        at = f"model.layers.{layer}.self_attn.q_proj"
        assert weights(recipe, at) == pytest.approx([1 - share, share])
        assert weights(recipe, f"model.layers.{layer}.mlp.up_proj") == [0.75, 0.25]
        other = 0.1 + 0.2 * layer
        norm = f"model.layers.{layer}.input_layernorm"
        assert weights(recipe, norm) == pytest.approx([1 - other, other])
    assert weights(recipe, "model.layers.13.self_attn.q_proj") == [1.0, 0.0]  # as lies in no layer
    assert weights(recipe, "lm_head") == pytest.approx([0.9, 0.1])
    step, notes = read(recipe)
    assert (step["method"], step["dtype"]) == ("slerp", "bfloat16")
    assert "base" not in step
    assert any("0.9995" in note for note in notes)


def test_the_first_filter_that_fits_counts_and_a_model_comes_before_the_file() -> None:
    recipe = {
        "models": [
            {"model": "a", "parameters": {"weight": [
                {"filter": "q_proj", "value": 3}, {"filter": "self_attn", "value": 1},
            ]}},
            {"model": "b", "parameters": {"weight": 1}},
        ],
        "parameters": {"weight": 7}, "merge_method": "task_arithmetic", "base_model": "c",
    }  # fmt: skip
    assert weights(recipe, "model.layers.0.self_attn.q_proj") == [3, 1]
    assert weights(recipe, "model.layers.0.self_attn.k_proj") == [1, 1]
    assert weights(recipe, "model.layers.0.mlp.up_proj") == [7, 1]


def test_weights_are_normalised_where_mergekit_does() -> None:
    models = [
        {"model": "a", "parameters": {"weight": 1}},
        {"model": "b", "parameters": {"weight": 3}},
    ]
    assert weights({"models": models, "merge_method": "linear"}, "x") == [0.25, 0.75]
    based = {"models": models, "merge_method": "dare_linear", "base_model": "c"}
    assert weights(based, "x") == [1.0, 3.0]
    assert weights({**based, "parameters": {"normalize": True}}, "x") == [0.25, 0.75]


def test_variants_of_ties() -> None:
    models = [{"model": name, "parameters": {"weight": 0.5, "density": 0.3}} for name in "ab"]
    recipe = {"models": [{"model": "c"}, *models], "merge_method": "ties", "base_model": "c"}
    assert read(recipe)[0] == {
        "models": [{"model": "a", "weight": 0.5}, {"model": "b", "weight": 0.5}],
        "base": "c", "method": "ties", "scale": "literal", "density": 0.3, "divide_by": "weights",
    }  # fmt: skip
    step, _ = read({**recipe, "parameters": {"normalize": False, "lambda": 1.5}})
    assert (step["divide_by"], step["scale"]) == ("none", 1.5)


def steps(recipe: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name → parameters of each merge of a recipe."""
    found, _ = recipe_of_mergekit(recipe, FILE, Path())
    assert set(found["steps"]) - {"merged"} == {
        one["save"].removeprefix("merged-parts/")
        for one in found["steps"].values()
        if one["save"] != "merged"
    }
    return {name: one["merge"] for name, one in found["steps"].items()}


def stacked(*slices: list[tuple[str, int, int]], method: str, **more: Any) -> dict[str, Any]:
    """A recipe of slices, each of layers of models: first, and one after the last."""
    sources = [
        [{"model": name, "layer_range": [first, stop]} for name, first, stop in one]
        for one in slices
    ]
    return {"slices": [{"sources": one} for one in sources], "merge_method": method, **more}


def test_passthrough_is_a_stack() -> None:
    recipe = stacked([("a", 0, 16)], [("b", 8, 24)], [("a", 15, 16)], method="passthrough")
    layers = ["a=0-15", "b=8-23", "a=15-15"]
    assert steps(recipe) == {"merged": {"models": ["a", "b"], "layers": layers}}
    recipe |= {"base_model": "c", "dtype": "bfloat16", "parameters": {"scale": 1.0}}
    assert steps(recipe) == {
        "merged": {"models": ["c", "a", "b"], "layers": layers, "dtype": "bfloat16"}
    }  # the first model's configuration and tokenizer are the result's, as the base's are there


def test_slices_are_merges_of_stacks() -> None:
    recipe = stacked(
        [("a", 0, 4)], [("a", 4, 8), ("b", 5, 9)], method="linear", base_model="b",
        parameters={"weight": [{"filter": "mlp.", "value": 1}, {"value": [1, 3]}]}, dtype="float16",
    )  # fmt: skip
    found = steps(recipe)
    assert list(found) == ["a-4-7", "b-5-8", "slice-2", "merged"]
    assert found["b-5-8"] == {"models": ["b"], "layers": ["b=5-8"]}
    assert found["merged"] == {
        "models": ["a", "slice-2"], "layers": ["a=0-3", "slice-2=0-3"], "dtype": "float16",
    }  # fmt: skip
    one, two = found["slice-2"]["models"]
    assert (one["model"], two["model"]) == ("a-4-7", "b-5-8")
    assert one["weight"] == two["weight"] == 0.5  # normalised, whatever the gradient


def test_one_model_is_a_copy() -> None:
    recipe = stacked([("a", 0, 4)], method="linear", parameters={"weight": 1})
    assert steps(recipe) == {"merged": {"models": ["a"], "layers": ["a=0-3"]}}


def test_values_of_operators_per_module() -> None:
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in "ab"]
    recipe = {
        "models": models, "merge_method": "breadcrumbs", "base_model": "c",
        "slices": None, "parameters": {"density": [{"filter": "mlp", "value": 1}, {"value": 0.25}]},
    }  # fmt: skip
    (found,) = steps(recipe).values()
    assert found["density"] == {"default": 0.25, "match": {"*mlp*": 1.0}}
    assert found["gamma"] == {"default": 0.01, "match": {"*mlp*": 0.0}}  # all is kept there


def test_a_density_for_each_model_prunes_before() -> None:
    models = [
        {"model": name, "parameters": {"weight": weight, "density": density}}
        for name, weight, density in (("a", 0.5, 0.25), ("b", 2, 0.75))
    ]
    found = steps({"models": models, "merge_method": "ties", "base_model": "c"})
    assert found["a-pruned"] == {
        "models": ["a", "c"], "base": "c", "method": "magnitude-prune", "scale": "literal",
        "density": 0.25, "dtype": "float32",
    }  # fmt: skip
    assert found["merged"] == {
        "models": [{"model": "a-pruned", "weight": 0.5}, {"model": "b-pruned", "weight": 2.0}],
        "base": "c", "method": "ties", "scale": "literal", "density": 1.0, "divide_by": "weights",
        "layout": "a",
    }  # fmt: skip


def test_an_operator_gets_two_inputs_where_one_model_is_left() -> None:
    """Operators leave the change of a single input alone, and mergekit prunes it."""
    recipe = {
        "models": [{"model": "a", "parameters": {"weight": 1, "density": 0.5}}],
        "base_model": "c",
    }  # fmt: skip
    assert read(recipe | {"merge_method": "ties"})[0]["models"] == ["a", "c"]
    plain = read(recipe | {"merge_method": "task_arithmetic"})[0]["models"]
    assert plain == ["a", {"model": "c", "weight": 0.0}]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a method": ({"merge_method": "multislerp"}, "merge_method: multislerp"),
    "a tokenizer": ({"tokenizer_source": "union"}, "tokenizer_source: union"),
    "an unknown field": ({"chat_template": "auto"}, "chat_template"),
    "an unknown parameter": ({"parameters": {"foo": 1}}, "foo"),
    "an adapter": ({"base_model": "c+lora"}, ""),
    "a type": ({"dtype": "int8"}, "dtype: int8"),
    "layers without a number": ({"parameters": {"weight": [0, 1]}}, "number of layers"),
    "a filter on biases": (
        {"parameters": {"weight": [{"filter": "bias", "value": 1}, {"value": 0}]}}, "bias"
    ),
    "densities without a number": (
        {"merge_method": "ties", "parameters": {"weight": 1, "density": [0.5, 1]}}, "density"
    ),
    "a density of 0": (
        {"merge_method": "ties", "parameters": {"weight": 1, "density": 0}}, "density: 0"
    ),
    "λ per module of a mean": (
        {"merge_method": "ties", "parameters": {"weight": 1, "lambda": [
            {"filter": "mlp", "value": 2}, {"value": 1},
        ]}},
        "lambda: other values",
    ),
    "a filter on weights alone": (
        {"parameters": {"weight": [{"filter": "q_proj.w", "value": 1}, {"value": 0}]}}, "q_proj.w"
    ),
    "a layer in several numbers": (
        {"models": None, "slices": [{"sources": [
            {"model": "a", "layer_range": [0, 2]}, {"model": "c", "layer_range": [1, 3]},
        ]}],
         "parameters": {"weight": [{"filter": "layers.1.", "value": 0}, {"value": 1}]}},
        "layers.1.",
    ),
    "no models": ({"models": []}, "nothing to merge"),
    "one model of unknown layers": (
        {"models": [{"model": "a"}], "base_model": None, "merge_method": "linear"}, "number of layers"
    ),
    "several modules": (
        {"models": None, "modules": {"text": {}, "vision": {}}}, "modules"
    ),
    "a scale of layers": (
        {"models": None, "slices": [{"sources": [
            {"model": "a", "layer_range": [0, 2], "parameters": {"scale": 0.5}},
        ]}], "merge_method": "passthrough", "parameters": None},
        "scale",
    ),
    "slices of unequal lengths": (
        {"models": None, "slices": [{"sources": [
            {"model": "a", "layer_range": [0, 2]}, {"model": "c", "layer_range": [0, 3]},
        ]}]},
        "other numbers of layers",
    ),
    "a model twice in a slice": (
        {"models": None, "slices": [{"sources": [
            {"model": "a", "layer_range": [0, 2]}, {"model": "a", "layer_range": [1, 3]},
        ]}]},
        "names one model twice",
    ),
    "no base": ({"merge_method": "sce", "base_model": None}, "base_model"),
    "a word for a number": ({"parameters": {"weight": "much"}}, "much"),
    "a gap": ({"parameters": {"weight": [{"filter": "mlp", "value": 1}]}}, "other tensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_counterpart_is_named(name: str) -> None:
    change, says = REFUSED[name]
    recipe = {
        "models": [{"model": "a"}, {"model": "b"}], "merge_method": "task_arithmetic",
        "base_model": "c", "parameters": {"weight": 1}, **change,
    }  # fmt: skip
    if name == "an adapter":
        recipe["models"] = [{"model": "a+lora"}, {"model": "b"}]
        says = "adapters"
    with pytest.raises(FormatError) as caught:
        recipe_of_mergekit(recipe, FILE, Path())
    assert says in str(caught.value.found)


def test_everything_is_named_at_once() -> None:
    recipe = {
        "slices": [{"sources": []}, {"sources": []}], "merge_method": "passthrough",
        "dtype": "int8", "chat_template": "auto",
    }  # fmt: skip
    with pytest.raises(FormatError) as caught:
        recipe_of_mergekit(recipe, FILE, Path())
    found = str(caught.value.found)
    assert all(word in found for word in ("slices", "passthrough", "int8", "chat_template"))


@pytest.mark.parametrize("content", [None, [], {"models": []}, {"merge_method": 3}])
def test_other_files_are_not_taken_for_mergekits(content: Any) -> None:
    with pytest.raises(CorruptFile):
        recipe_of_mergekit(content, FILE, Path())


THEIRS = """
models:
  - model: one
    parameters: {weight: [0.25, 0.75]}
  - model: two
    parameters: {weight: [0.75, 0.25]}
merge_method: linear
dtype: float32
"""


def test_the_command_and_what_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Runner(tmp_path, capsys)
    weights = [small_models.weights(seed) for seed in (1, 2)]
    for name, held in zip(("one", "two"), weights, strict=True):
        small_models.write(tmp_path / name, held, num_hidden_layers=2)
    (tmp_path / "theirs.yml").write_text(THEIRS, "utf-8")
    assert "linear" not in run.ok("recipes", "--from-mergekit", "theirs.yml").out  # the default
    (tmp_path / "recipes").mkdir()
    run.ok("recipes", "--from-mergekit", "theirs.yml", "-o", "recipes/ours.yaml")
    run.ok("run", "-q", "recipes/ours.yaml")
    got = small_models.read(tmp_path / "recipes" / "merged")
    for name, value in got.items():
        share = 0.75 if ".layers.1." in name else 0.25
        one, two = (held[name].astype("f8") for held in weights)
        np.testing.assert_allclose(value, share * one + (1 - share) * two, rtol=1e-5, atol=1e-6)
    (tmp_path / "theirs.yml").write_text(THEIRS.replace("linear", "passthrough"), "utf-8")
    run.refused(4, "recipes", "--from-mergekit", "theirs.yml", says="passthrough")
    run.refused(3, "recipes", "--from-mergekit", "none.yml", says="no such")
    (tmp_path / "other.yml").write_text("steps: {}", "utf-8")
    run.refused(3, "recipes", "--from-mergekit", "other.yml", says="not a recipe of mergekit")


@pytest.mark.parametrize(("more", "words"), [
    ({"models": 1}, "models is not a list"), ({"models": [1]}, "models 1 is not a mapping"),
    ({"slices": [{"sources": {}}]}, "slices 1: sources is not a list"),
    ({"models": [{"model": "m", "parameters": []}]}, "models 1: parameters is not a mapping"),
    ({"modules": {"a": 1}}, "modules a is not a mapping"), ({"parameters": 1}, "parameters is not"),
])  # fmt: skip
def test_entries_of_another_shape_are_named(more: dict[str, object], words: str) -> None:
    with pytest.raises(CorruptFile, match=words):
        recipe_of_mergekit({"merge_method": "linear"} | more, Path("k.yaml"), Path())
