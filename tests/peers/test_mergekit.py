"""Merges of language models against mergekit itself, by its own files of YAML.

The tests do not depend on mergekit: these run where it is installed beside them. Its recipe goes
through `loramerge recipes --from-mergekit`, so this also shows that the translation is right.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from loramerge.algebra.operators.della import Della, _chances
from loramerge.algebra.views import Rows
from loramerge.cli.main import main
from tests.builders.bases import write_safetensors
from tests.builders.deltas import rng
from tests.builders.language import base_folder
from tests.builders.small_models import read

pytest.importorskip("mergekit", reason="mergekit is not installed")
torch: Any = pytest.importorskip("torch")
config: Any = pytest.importorskip("mergekit.config")
merging: Any = pytest.importorskip("mergekit.merge")
sparsify: Any = pytest.importorskip("mergekit.sparsify")

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

Array = np.ndarray[Any, Any]
DENSITY, GAMMA = 0.5, 0.125  # which leave whole numbers of entries in every tensor


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and three models that were trained from it, in float32."""
    root = tmp_path_factory.mktemp("mergekit")
    base_folder("llama", root / "base", shard="5GB")
    start = read(root / "base")
    common = {name: rng(9).standard_normal(value.shape) for name, value in start.items()}
    for number, name in enumerate(("one", "two", "three")):
        base_folder("llama", root / name, shard="5GB")
        own = rng(number)
        tuned = {
            key: (value + 0.05 * (common[key] + own.standard_normal(value.shape))).astype("float32")
            for key, value in start.items()
        }
        write_safetensors(root / name / "model.safetensors", tuned, {"format": "pt"})
    return root


def merged(
    root: Path, recipe: dict[str, Any], out: Path
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Merge with mergekit and with loramerge; return both results."""
    lists = [recipe.get("models", ()), *(one["sources"] for one in recipe.get("slices", ()))]
    for one in (source for sources in lists for source in sources):
        one["model"] = str(root / one["model"])
    if "base_model" in recipe:
        recipe["base_model"] = str(root / recipe["base_model"])
    recipe.setdefault("dtype", "float32")
    logging.disable(logging.CRITICAL)
    options = merging.MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    theirs = config.MergeConfiguration.model_validate(_copied(recipe))
    merging.run_merge(theirs, str(out / "theirs"), options=options)
    logging.disable(logging.NOTSET)
    (out / "theirs.yml").write_text(yaml.safe_dump(recipe), "utf-8")
    arguments = [
        "recipes",
        "--from-mergekit",
        str(out / "theirs.yml"),
        "-o",
        str(out / "ours.yaml"),
    ]
    assert main(arguments) == 0
    assert main(["run", "-q", str(out / "ours.yaml")]) == 0
    return read(out / "theirs"), read(out / "merged")


def require_equal(theirs: dict[str, Array], ours: dict[str, Array], roundings: float = 4) -> None:
    """Compare every tensor; float32 rounds what both compute, in another order.

    mergekit leaves out the biases of attention, which its table of this architecture does not have.
    """
    assert theirs.keys() == {name for name in ours if not name.endswith("_proj.bias")}
    for name, value in theirs.items():
        size = np.abs(value).max()
        worst = np.abs(value - ours[name]).max()
        assert worst <= roundings * 2.0**-24 * size, (name, worst / size / 2.0**-24)


def weighted(**parameters: Any) -> list[dict[str, Any]]:
    """Three models at weights of their own, with the same parameters."""
    return [
        {"model": name, "parameters": {"weight": weight, **parameters}}
        for name, weight in (("one", 0.7), ("two", 0.4), ("three", 1.1))
    ]


def plain(*names: str) -> list[dict[str, Any]]:
    return [{"model": name} for name in names]


def sliced(*sources: tuple[str, int, int], **parameters: Any) -> list[dict[str, Any]]:
    """A slice of layers of models, each from the first to before the last."""
    named = [{"model": name, "layer_range": [first, stop]} for name, first, stop in sources]
    return [{"sources": named, "parameters": parameters}]


# method → (recipe, roundings that the results may differ by)
RECIPES: dict[str, tuple[dict[str, Any], float]] = {
    "linear": ({"models": weighted(), "merge_method": "linear"}, 4),
    "linear, gradients": (
        {
            "models": [
                {"model": "one", "parameters": {"weight": [0.2, 0.8]}},
                {"model": "two", "parameters": {"weight": [
                    {"filter": "mlp", "value": 0.5}, {"value": 0.3},
                ]}},
            ],
            "merge_method": "linear", "base_model": "one",
        },
        4,
    ),
    "slerp": (
        {"models": plain("one", "two"), "merge_method": "slerp", "base_model": "one",
         "parameters": {"t": 0.3}},
        16,
    ),
    "slerp, filters and gradients": (
        {"models": plain("two", "one"), "merge_method": "slerp", "base_model": "one",
         "parameters": {"t": [
             {"filter": "self_attn", "value": [0, 0.5, 1]}, {"filter": "mlp", "value": [1, 0.25]},
             {"value": 0.5},
         ]}},
        16,
    ),
    "nuslerp": ({"models": weighted()[:2], "merge_method": "nuslerp"}, 16),
    "nuslerp, changes": (
        {"models": weighted()[:2], "merge_method": "nuslerp", "base_model": "base"}, 16
    ),
    "nuslerp, rows": (
        {"models": weighted()[:2], "merge_method": "nuslerp",
         "parameters": {"nuslerp_flatten": False}},
        64,
    ),
    "karcher": ({"models": plain("one", "two", "three"), "merge_method": "karcher"}, 400),
    "task_arithmetic": (
        {"models": weighted(), "merge_method": "task_arithmetic", "base_model": "base",
         "parameters": {"lambda": 0.8}},
        4,
    ),
    "task_arithmetic, normalised": (
        {"models": weighted(), "merge_method": "task_arithmetic", "base_model": "base",
         "parameters": {"normalize": True}},
        4,
    ),
    "ties": (
        {"models": weighted(density=DENSITY), "merge_method": "ties", "base_model": "base"}, 4
    ),
    "ties, not normalised": (
        {"models": weighted(density=DENSITY), "merge_method": "ties", "base_model": "base",
         "parameters": {"normalize": False, "lambda": 1.5}},
        4,
    ),
    "breadcrumbs": (
        {"models": weighted(density=DENSITY, gamma=GAMMA), "merge_method": "breadcrumbs",
         "base_model": "base"},
        4,
    ),
    "breadcrumbs, all": (
        {"models": weighted(density=1.0), "merge_method": "breadcrumbs", "base_model": "base"}, 4
    ),
    "breadcrumbs, few outliers": (
        {"models": weighted(density=1 - GAMMA, gamma=0.25), "merge_method": "breadcrumbs",
         "base_model": "base"},
        4,
    ),
    "sce": ({"models": plain("one", "two"), "merge_method": "sce", "base_model": "base"}, 8),
    "sce, some": (
        {"models": plain("one", "two", "three"), "merge_method": "sce", "base_model": "base",
         "parameters": {"select_topk": DENSITY}},
        8,
    ),
    "model_stock": (
        {"models": plain("one", "two", "three"), "merge_method": "model_stock",
         "base_model": "base"},
        32,
    ),
    "dare_linear, all": (
        {"models": weighted(density=1.0), "merge_method": "dare_linear", "base_model": "base"}, 4
    ),
    "dare_ties, all": (
        {"models": weighted(density=1.0), "merge_method": "dare_ties", "base_model": "base"}, 4
    ),
    "della, all": (
        {"models": weighted(density=1.0), "merge_method": "della", "base_model": "base"}, 4
    ),
    "ties, the density of layers and modules": (
        {"models": weighted(), "merge_method": "ties", "base_model": "base",
         "parameters": {"density": [{"filter": "mlp", "value": [1, 0.25]}, {"value": 0.5}]}},
        4,
    ),
    "ties, a model in some modules": (
        {"models": [
            {"model": "one", "parameters": {"weight": 1}},
            {"model": "two", "parameters": {"weight": [
                {"filter": "mlp", "value": 0.5}, {"value": [0, 1]},
            ]}},
         ], "merge_method": "ties", "base_model": "base", "parameters": {"density": DENSITY}},
        4,
    ),
    "breadcrumbs, one model": (
        {"models": weighted(density=DENSITY, gamma=GAMMA)[:1], "merge_method": "breadcrumbs",
         "base_model": "base"},
        4,
    ),
    "ties, a density for each model": (
        {"models": [
            {"model": "one", "parameters": {"density": [1, 0.5], "weight": 1.0}},
            {"model": "two", "parameters": {"density": 0.5, "weight": [0, 0.3, 0.7]}},
            {"model": "three", "parameters": {"density": 0.25, "weight": [
                {"filter": "mlp.", "value": 0.5}, {"value": 0},
            ]}},
         ], "merge_method": "ties", "base_model": "base",
         "parameters": {"normalize": True, "int8_mask": True}},
        64,
    ),
    "breadcrumbs, in layers": (
        {"models": weighted(), "merge_method": "breadcrumbs", "base_model": "base",
         "parameters": {"density": [0.5, 1], "gamma": GAMMA, "lambda": [1, 0.5]}},
        4,
    ),
    "breadcrumbs_ties": (
        {"models": weighted(density=DENSITY, gamma=GAMMA), "merge_method": "breadcrumbs_ties",
         "base_model": "base"},
        64,
    ),
    "task_arithmetic, λ by modules": (
        {"models": weighted()[:1], "merge_method": "task_arithmetic", "base_model": "base",
         "parameters": {"lambda": [{"filter": "self_attn", "value": 0.5}, {"value": 1.5}]}},
        4,
    ),
    "sce, by layers": (
        {"models": plain("one", "two", "three"), "merge_method": "sce", "base_model": "base",
         "parameters": {"select_topk": [0.5, 1]}},
        8,
    ),
    "della_linear, all": (
        {"models": weighted(density=1.0), "merge_method": "della_linear", "base_model": "base"}, 64
    ),
    "passthrough": (
        {"slices": sliced(("one", 0, 2)) + sliced(("two", 1, 2)) + sliced(("one", 1, 2)),
         "merge_method": "passthrough"},
        0,
    ),
    "slices of one merge": (
        {"slices": sliced(("two", 1, 2), ("one", 0, 1)), "merge_method": "slerp",
         "base_model": "one", "parameters": {"t": 0.25}},
        16,
    ),
    "slices, each a merge": (
        {"slices": [
            *sliced(("base", 0, 1), ("one", 0, 1), weight=0.5),
            *sliced(("base", 0, 2), ("two", 0, 2), weight=[0.25, 1], density=DENSITY),
         ], "merge_method": "ties", "base_model": "base"},
        4,
    ),
    "slices of one model and of several": (
        {"slices": [
            *sliced(("one", 0, 1)), *sliced(("one", 1, 2), ("three", 1, 2), weight=[0.2, 0.8]),
            *sliced(("two", 1, 2)),
         ], "merge_method": "linear", "parameters": {"weight": 1.0}, "base_model": "one"},
        4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_merges_equal_those_of_mergekit(name: str, models: Path, tmp_path: Path) -> None:
    recipe, roundings = RECIPES[name]
    theirs, ours = merged(models, _copied(recipe), tmp_path)
    require_equal(theirs, ours, roundings)


def _copied(recipe: Any) -> Any:
    if isinstance(recipe, dict):
        return {key: _copied(value) for key, value in recipe.items()}
    return [_copied(one) for one in recipe] if isinstance(recipe, list) else recipe


# --- methods that draw at random --------------------------------------------------------------------


def drawn(shape: tuple[int, ...]) -> Array:
    """Numbers that both programs draw here, the same for every tensor of a shape."""
    return np.asarray(rng(sum(shape)).random(shape))


@pytest.fixture
def same_draws(monkeypatch: pytest.MonkeyPatch) -> list[Array]:
    """Both programs draw the same numbers; the probabilities that mergekit asks for."""
    asked: list[Array] = []

    def theirs(chances: Any) -> Any:
        asked.append(chances.numpy())
        numbers = drawn(tuple(n for n in chances.shape if n != 1 or len(chances.shape) == 1))
        return (torch.from_numpy(numbers).reshape(chances.shape) < chances).to(chances.dtype)

    def ours(self: Rows, term: int, seed: int) -> Array:
        rows, columns = self.values[term].shape
        whole = drawn((columns,)) if rows == 1 else drawn((rows, columns))
        return whole.reshape(rows, columns)

    monkeypatch.setattr(torch, "bernoulli", theirs)
    monkeypatch.setattr(Rows, "uniform", ours)
    return asked


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("density", [DENSITY, [DENSITY, 0.25]], ids=["one density", "by layers"])
def test_the_same_masks_give_the_same_model(
    method: str, normalize: bool, density: Any, models: Path, tmp_path: Path,
    same_draws: list[Array],
) -> None:  # fmt: skip
    recipe = {
        "models": weighted(density=density), "merge_method": method, "base_model": "base",
        "parameters": {"rescale": False, "normalize": normalize},
    }  # fmt: skip
    theirs, ours = merged(models, recipe, tmp_path)
    require_equal(theirs, ours, 4 if density == DENSITY else 64)
    assert same_draws


def test_dare_divides_by_the_density_and_mergekit_keeps_the_sum_of_sizes(
    same_draws: list[Array],
) -> None:
    change = torch.from_numpy(rng(1).standard_normal((6, 8)))
    theirs = sparsify.bernoulli(change, DENSITY, sparsify.RescaleNorm.l1).numpy()
    values = change.numpy()
    ours = np.where(drawn((6, 8)) < DENSITY, values, 0.0) / DENSITY
    factor = DENSITY * np.abs(values).sum() / np.abs(DENSITY * ours).sum()
    np.testing.assert_allclose(theirs, factor * ours, rtol=1e-6)
    assert not np.allclose(theirs, ours, rtol=1e-3)


def test_della_keeps_entries_with_the_same_probabilities(same_draws: list[Array]) -> None:
    change = torch.from_numpy(rng(2).standard_normal((5, 8)))
    sparsify.della_magprune(change, DENSITY, 0.125)
    ours = _chances(change.numpy(), Della(density=DENSITY, epsilon=0.25))
    np.testing.assert_allclose(same_draws[0], ours, rtol=1e-6)
