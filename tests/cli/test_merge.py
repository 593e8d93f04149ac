"""The command `merge`, the step of a recipe, the function of Python, and what a header repeats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loramerge as lm
from loramerge.stream.ingredients import Blended
from tests.builders import small_models
from tests.builders.bases import read_safetensors


@pytest.fixture
def models(run: Any) -> Path:
    """A base and two models that were trained from it, in the current folder."""
    return small_models.write_tuned(run.folder)


def test_the_command_says_what_it_did(run: Any, models: Path) -> None:
    shown = run.ok("merge", "models/a", "models/b:0.25", "-o", "out").out
    for words in ("written", "models/a at weight 0.75", "models/b at weight 0.25", "6 tensors",
                  "size of change", "model.layers.0"):  # fmt: skip
        assert words in shown, words
    result = run.ok("merge", "models/a", "models/b", "--base", "c", "--method", "ties",
                    "--density", "0.5", "-o", "ties", "--json").json  # fmt: skip
    assert result["outputs"] == ["ties"] and result["method"] == "ties"
    assert result["scale"] == "norm-match" and result["base"] == "c"
    (pair,) = result["cosines"]
    assert (pair["a"], pair["b"]) == ("models/a", "models/b") and -1 <= pair["cosine"] <= 1
    assert {"model.layers.0", "model.layers.1"} <= set(result["blocks"])


def test_a_default_name(run: Any, models: Path) -> None:
    assert run.ok("merge", "models/a:0.5", "models/b:0.5", "--json").json["output"] == "a@0.5+b@0.5"


@pytest.mark.parametrize(
    "options",
    [
        ("models/a", "models/b:0.25"),
        ("models/a", "models/b", "--base", "c", "--method", "dare", "--seed", "3"),
    ],
)
def test_a_header_repeats_it(run: Any, models: Path, options: tuple[str, ...]) -> None:
    run.ok("merge", *options, "-o", "out")
    again = run.ok("run", "out", "--input", "a=models/a", "--input", "b=models/b", "--json").json
    assert again["verdict"] == "same file" and not again["differs"]
    _, metadata = read_safetensors(models / "out" / small_models.FILE)
    recipe = json.loads(metadata["loramerge.recipe"])
    ((verb, content),) = recipe["steps"]["result"].items()
    assert verb == "merge" and len(content["models"]) == 2


def test_no_record_with_strip(run: Any, models: Path) -> None:
    run.ok("merge", "models/a", "models/b:0.5", "-o", "out", "--strip")
    assert read_safetensors(models / "out" / small_models.FILE)[1] == {"format": "pt"}


def test_a_recipe_and_python_give_the_same_file(run: Any, models: Path) -> None:
    run.ok("merge", "models/a", "models/b:0.5", "-b", "c", "-o", "out", "--save-recipe", "r.yaml")
    (models / "other.yaml").write_text(
        "version: 1\n"
        "steps:\n"
        "  m:\n"
        "    merge: {models: [models/a, {model: models/b, weight: 0.5}], base: c}\n"
        "    save: again\n"
    )
    planned = run.ok("plan", "other.yaml", "--json").json
    run.ok("run", "other.yaml")
    lm.merge(["models/a", ("models/b", 0.5)], "third", base="c")
    files = [models / name / small_models.FILE for name in ("out", "again", "third")]
    assert len({file.read_bytes() for file in files}) == 1
    assert planned["tasks"]["m"]["size"] == small_models.size_of(models / "again")
    assert "merge" in (models / "r.yaml").read_text()


def test_mistakes_end_with_their_exit_code_and_write_nothing(run: Any, models: Path) -> None:
    two = ("merge", "models/a:0.5", "models/b:0.6", "-o", "out")
    run.refused(
        2, *two, says=("must sum to 1; found 1.1", "0.5 + 0.6, in every tensor", "--base C")
    )
    run.refused(2, "merge", "models/a", "-o", "out", says="at least two")
    run.refused(2, *two, "--base", "c", "--density", "0.5", says="no parameter 'density'")
    run.refused(2, *two, "--dtype", "float7", says="not a type")
    run.refused(3, "merge", "models/a", "models/nowhere", "-o", "out", says="nowhere")
    run.refused(3, "merge", "models/a", "models/b:0.5", "-o", "c", says="c")
    run.refused(4, "merge", "models/a", "base.safetensors:0.5", "-o", "out", says="families")
    run.refused(4, "merge", "models/a", "a.safetensors:0.5", "-o", "out", says="adapter")
    assert run("merge", *two[1:], "--method", "tsv-m").code == 2
    assert run("merge", *two[1:], "--method", "weighted").code == 2


@pytest.fixture
def broken(models: Path) -> Path:
    """Inputs that are wrong in one way each: `nan`, `cut`, `less`, and a recipe with `magic`."""
    tensors = small_models.read(models / "models" / "b")
    name = "model.layers.0.norm.weight"
    small_models.write(models / "less", {k: v for k, v in tensors.items() if k != name})
    small_models.write(models / "nan", {**tensors, name: np.full_like(tensors[name], np.nan)})
    small_models.write(models / "cut", tensors, shards=2)
    shard = models / "cut" / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    step = "merge: {models: [models/a, models/b], base: c, method: magic}, save: out"
    (models / "magic.yaml").write_text(f"version: 1\nsteps: {{x: {{{step}}}}}\n", "utf-8")
    return models


TWO = ("merge", "models/a:0.5")
BAD_INPUT: dict[str, tuple[int, tuple[str, ...], tuple[str, ...]]] = {
    "another family": (4, (*TWO, "base.safetensors:0.5"), ("families", "base.safetensors")),
    "a missing tensor": (4, (*TWO, "less:0.5"), ("less lacks model.layers.0.norm", "--union")),
    "NaN": (7, (*TWO, "nan:0.5"), ("nan", "model.layers.0.norm.weight", "NaN")),
    "NaN that a method would drop": (
        7, ("merge", "models/a", "nan", "--base", "c", "--method", "ties"), ("nan", "NaN"),
    ),
    "NaN in the base": (7, ("merge", "models/a", "models/b", "--base", "nan"), ("nan", "NaN")),
    "a shard that is cut": (3, (*TWO, "cut:0.5"), ("model-00002-of-00002.safetensors",)),
    "weights that do not sum to one": (2, (*TWO, "models/b:0.6"), ("must sum to 1", "--base C")),
    "an unknown operator": (2, (*TWO, "models/b:0.5", "--method", "magic"), ("magic", "ties")),
    "an unknown operator in a recipe": (6, ("run", "magic.yaml"), ("method", "'magic'", "'ties'")),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_gets_one_error_and_nothing_is_written(name: str, run: Any, broken: Path) -> None:
    code, arguments, says = BAD_INPUT[name]
    output = () if arguments[0] == "run" else ("-o", "out")
    error = run.refused(code, *arguments, *output, says=says).err
    assert error.lower().count("error:") == 1
    if output:
        assert run.refused(code, *arguments, *output, "--dry-run").err == error
    assert not (broken / "out").exists()


def test_missing_tensors_and_the_way_out(run: Any, models: Path) -> None:
    tensors = small_models.read(models / "models" / "b")
    del tensors["model.layers.0.norm.weight"]
    small_models.write(models / "less", tensors)
    two = ("merge", "models/a", "less:0.5", "-o", "out")
    run.refused(4, *two, says=("less lacks model.layers.0.norm", "--union first"))
    shown = run.ok(*two, "--union", "first").out
    assert "1 tensor that some input lacks" in shown
    got, a = small_models.read(models / "out"), small_models.read(models / "models" / "a")
    name = "model.layers.0.norm.weight"
    assert np.array_equal(got[name], a[name])


def test_a_family_is_merged_with_lineage_and_loads_as_before(run: Any, models: Path) -> None:
    run.ok("bake", "--base", "base.safetensors", "a.safetensors", "-o", "tuned.safetensors")
    run.ok("merge", "base.safetensors", "tuned.safetensors:0.5", "-o", "out.safetensors")
    tensors, metadata = read_safetensors(models / "out.safetensors")
    assert metadata["modelspec.merged_from"] == "base.safetensors, tuned.safetensors"
    base, _ = read_safetensors(models / "base.safetensors")
    assert list(tensors) == list(base)
    assert run.ok("run", "out.safetensors", "--json").json["verdict"] == "same file"


def test_an_operator_of_ones_own_merges_checkpoints(run: Any, models: Path) -> None:
    from loramerge.algebra.operators import OPERATORS
    from loramerge.cli import options
    from tests.one_file.test_operator import MADE_UP

    file = str(MADE_UP / "ties.py")
    two = (
        "merge",
        "models/a",
        "models/b",
        "--base",
        "c",
        "--operator",
        file,
        "--method",
        "my-ties",
    )
    with OPERATORS.adding():
        options._loaded.clear()
        assert "--kept-share" in run.ok("merge", "--operator", file, "--help").out
        run.ok(*two, "--kept-share", "0.3", "--scale", "literal", "-o", "mine")
        ours = ("--method", "ties", "--density", "0.3", "--scale", "literal")
        run.ok("merge", "models/a", "models/b", "--base", "c", *ours, "-o", "ours")
    options._loaded.clear()
    mine, ours_ = small_models.read(models / "mine"), small_models.read(models / "ours")
    matrices = [name for name, value in mine.items() if value.ndim == 2]
    assert matrices and all(np.array_equal(mine[n], ours_[n]) for n in matrices)


def test_blocks_are_in_order_and_strong_weights_are_described(run: Any) -> None:
    files = ("base.safetensors", "base.safetensors:0.2", "base.safetensors:9")
    done = run.ok("merge", *files, "-o", "out.safetensors", "--json")
    layers = [n for n in done.json["blocks"] if n.startswith("text_encoder.layers.")]
    assert layers == [f"text_encoder.layers.{n}" for n in range(len(layers))]
    assert "at weight 9" in done.err and "usual weights" in done.err


def test_figures_are_of_what_is_merged_whatever_the_type(
    run: Any, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A type for the whole file computes the VAE too, which is only copied."""
    for name in ("zuzu", "polka"):
        run.ok("bake", "--base", "tiny", name, "-o", f"with-{name}")
    merge = ("merge", "with-zuzu:0.5", "with-polka:0.5")

    def moved(dtype: str) -> tuple[float, dict[str, float]]:
        done = run.ok(*merge, "--dtype", dtype, "-o", dtype, "--json").json
        return done["moved"], done["blocks"]

    whole, blocks = moved("float16")
    for dtype in ("bfloat16", "float8"):
        found, others = moved(dtype)
        assert found == pytest.approx(whole, rel=1e-3)
        assert others == pytest.approx(blocks, rel=1e-3)
    monkeypatch.setattr(Blended, "copied", property(lambda _: False, lambda *_: None))
    wrong, _ = moved("float32")
    assert wrong < 0.9 * whole  # counting the VAE makes it smaller
