"""One file: a merge operator from outside gets option, recipe field, plan, header, docs row and laws."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loramerge as lm
from loramerge.algebra.operators import OPERATORS, find_operator, load_file
from loramerge.errors import UsageError
from loramerge.recipe.json_schema import json_schema
from tests.builders import small_models
from tests.builders.bases import read_safetensors as read_checkpoint
from tests.builders.samples import read_safetensors
from tests.laws.laws import check_operator
from tests.tail import tail

MADE_UP = Path(__file__).resolve().parents[1] / "made_up_operators"


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    from loramerge.cli import options

    with OPERATORS.adding():
        options._loaded.clear()
        yield
    options._loaded.clear()
    OPERATORS._found = None


@pytest.fixture
def file(run: Any) -> str:
    """A file outside of the package that defines TIES."""
    shutil.copy(MADE_UP / "ties.py", run.folder / "mine.py")
    return "mine.py"


def made(run: Any, name: str = "out") -> Any:
    _, metadata = read_safetensors(run.folder / f"{name}.safetensors")
    return json.loads(metadata["loramerge.recipe"])


def values(run: Any, name: str) -> dict[str, Any]:
    return {n: d.dense() for n, d in lm.load(run.folder / f"{name}.safetensors").modules()}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_it_is_not_known_without_its_file(run: Any) -> None:
    assert run("mix", "a", "b", "--method", "my-ties").code == 2
    assert run("mix", "a", "b", "--kept-share", "0.5").code == 2
    with pytest.raises(UsageError, match="not a known method"):
        find_operator("my-ties")


def test_options(run: Any, file: str) -> None:
    text = run.ok("mix", "--operator", file, "--help").out
    assert "--kept-share" in text and "my-ties: " in text and "0<x<=1" in text
    run.ok("mix", "a", "b", "--operator", file, "--method", "my-ties", "-o", "default.safetensors")
    run.ok("mix", "a", "b", "--operator", file, "--method=my-ties", "--kept-share", "0.2",
           "-o", "stated.safetensors")  # fmt: skip
    run.ok("mix", "a", "b", "--operator", file, "--method", "my-ties", "--kept-share", "0.9",
           "-o", "other.safetensors")  # fmt: skip
    read = [(run.folder / f"{n}.safetensors").read_bytes() for n in ("default", "stated", "other")]
    assert read[0] == read[1] != read[2]


def test_values_per_module(run: Any, file: str) -> None:
    how = ("mix", "a", "b", "--operator", file, "--method", "my-ties")
    run.ok(*how, "--kept-share", "0.5:*attn*=0.2", "-o", "ruled.safetensors")
    for share in ("0.5", "0.2"):
        run.ok(*how, "--kept-share", share, "-o", f"{share}.safetensors")
    found, half, fifth = (values(run, name) for name in ("ruled", "0.5", "0.2"))
    for name, value in found.items():
        assert np.array_equal(value, (fifth if "attn" in name else half)[name])
    assert "same file" in run.ok("run", "--operator", file, "ruled.safetensors").out
    result = run(*how, "--kept-share", "*attn*=3")
    assert result.code == 2 and "kept_share (match *attn*) cannot be 3" in result.err


def test_it_merges_checkpoints(run: Any, file: str) -> None:
    base = small_models.weights(0, "F16")
    small_models.write(run.folder / "models" / "base", base)
    for number in (1, 2):
        change = small_models.weights(number, "F32", 0.1)
        tuned = {n: (v + change[n]).astype("float16") for n, v in base.items()}
        small_models.write(run.folder / "models" / f"tuned-{number}", tuned)
    how = ("merge", "models/tuned-1", "models/tuned-2", "--base", "models/base", "--operator", file,
           "--method", "my-ties")  # fmt: skip
    for name, share in (("half", "0.5"), ("fifth", "0.2"), ("ruled", "0.5:*layers.0*=0.2")):
        run.ok(*how, "--kept-share", share, "-o", name)
    half, fifth, ruled = (
        read_checkpoint(run.folder / name / small_models.FILE)[0]
        for name in ("half", "fifth", "ruled")
    )
    assert any(half[name].tobytes() != fifth[name].tobytes() for name in half)
    for name, value in ruled.items():
        assert value.tobytes() == (fifth if "layers.0" in name else half)[name].tobytes(), name
    assert "same file" in run.ok("run", "ruled", "--operator", file, "--input",
                                 "tuned-1=models/tuned-1", "--input", "tuned-2=models/tuned-2",
                                 "--input", "base=models/base").out  # fmt: skip


CORRECTION = """
import loramerge as lm


def half(result, changes):
    assert all(change.shape == result.shape for change in changes)
    return result / 2


@lm.operator(space="factors", correct=half)
def halved(terms, parameters):
    \"\"\"Half of the sum.\"\"\"
    return half(sum(w * core for w, core in zip(terms.weights, terms.values)), terms.values)
"""


def test_it_corrects_other_methods(run: Any) -> None:
    (run.folder / "half.py").write_text(CORRECTION, "utf-8")
    assert run("mix", "a", "b", "--correction", "halved").code == 2
    how = ("mix", "a", "b", "--operator", "half.py")
    for name, options in {
        "plain": (), "sum": ("--correction", "halved"), "own": ("--method", "halved"),
        "tsv": ("--method", "tsv-m", "--scale", "literal"),
        "half": ("--method", "tsv-m", "--scale", "literal", "--correction", "halved"),
    }.items():  # fmt: skip
        run.ok(*how, *options, "--dtype", "float32", "-o", f"{name}.safetensors")
    shared = (
        lm.load(run.folder / "a.safetensors").keys() & lm.load(run.folder / "b.safetensors").keys()
    )
    for whole, half in (("plain", "sum"), ("plain", "own"), ("tsv", "half")):
        found, expected = values(run, half), values(run, whole)
        for name in shared:
            assert np.allclose(found[name], expected[name] / 2, rtol=1e-4, atol=1e-6), (half, name)
    assert made(run, "half")["steps"]["result"]["mix"]["correction"] == "halved"
    assert "same file" in run.ok("run", "--operator", "half.py", "half.safetensors").out
    assert "--correction halved" in run.ok("operators", "halved", "--operator", "half.py").out


def test_wrong_values_are_refused(run: Any, file: str) -> None:
    how = ("mix", "a", "b", "--operator", file)
    assert run(*how, "--method", "my-ties", "--kept-share", "1.5").code == 2
    result = run(*how, "--kept-share", "0.5")
    assert result.code == 2 and "linear has no parameter 'kept_share'" in result.err
    assert "--method my-ties" in result.err
    result = run(*how, "--method", "my-ties", "--compat", "kohya")
    assert result.code == 2 and "compat" in result.err
    assert run("mix", "a", "--operator", "none.py").code == 3


def test_header_and_repetition(run: Any, file: str) -> None:
    run.ok("mix", "a", "b:0.5", "--operator", file, "--method", "my-ties", "-o", "out.safetensors")
    (step,) = made(run)["steps"].values()
    assert step["mix"]["method"] == "my-ties" and "kept_share" not in step["mix"]
    run.ok("mix", "a", "b:0.5", "--operator", file, "--method", "my-ties", "--kept-share", "0.5",
           "-o", "half.safetensors")  # fmt: skip
    (step,) = made(run, "half")["steps"].values()
    assert step["mix"]["kept_share"] == 0.5 and "mine" not in json.dumps(step)
    assert "same file" in run.ok("run", "--operator", file, "half.safetensors").out
    run.ok("mix", "a", "b:0.5", "-o", "linear.safetensors")
    (step,) = made(run, "linear")["steps"].values()
    assert not {"method", "kept_share"} & step["mix"].keys()


def test_a_header_runs_no_code(run: Any, file: str) -> None:
    """Files of operators are run only where the command line names them."""
    run.ok("mix", "a", "b", "--operator", file, "--method", "my-ties", "-o", "out.safetensors")
    OPERATORS._added.clear()
    result = run("run", "out.safetensors")
    assert result.code == 6 and "my-ties" in result.err


RECIPE = """
version: 1
inputs: {a: a.safetensors, b: b.safetensors}
steps:
  merged:
    mix: {adapters: [a, "b:0.5"], method: my-ties, kept_share: %s}
    save: out.safetensors
"""


def test_recipe_field_and_plan(run: Any, file: str) -> None:
    (run.folder / "r.yaml").write_text(RECIPE % 0.5, "utf-8")
    assert run("run", "r.yaml").code == 6
    plan = json.loads(run.ok("plan", "--operator", file, "r.yaml", "--json").out)
    (predicted,) = plan["tasks"].values()
    run.ok("run", "--operator", file, "r.yaml")
    run.ok("mix", "a", "b:0.5", "--operator", file, "--method", "my-ties", "--kept-share", "0.5",
           "-o", "command.safetensors")  # fmt: skip
    assert (run.folder / "out.safetensors").read_bytes() == (
        run.folder / "command.safetensors"
    ).read_bytes()
    ranks = lm.load(run.folder / "out.safetensors").ranks()
    assert {int(r): n for r, n in predicted["ranks"].items()} == ranks
    assert predicted["size"] >= (run.folder / "out.safetensors").stat().st_size
    (run.folder / "r.yaml").write_text(RECIPE % 1.5, "utf-8")
    result = run("run", "--operator", file, "r.yaml", "--fresh")
    assert result.code == 6 and "kept_share" in result.err


def test_a_saved_recipe_repeats_the_command(run: Any, file: str) -> None:
    run.ok("mix", "a", "b:0.5", "--operator", file, "--method", "my-ties", "--kept-share", "0.5",
           "-o", "out.safetensors", "--save-recipe", "saved.yaml")  # fmt: skip
    before = (run.folder / "out.safetensors").read_bytes()
    text = (run.folder / "saved.yaml").read_text("utf-8")
    assert "method: my-ties" in text and "kept_share: 0.5" in text
    run.ok("run", "--operator", file, "saved.yaml", "--force")
    assert (run.folder / "out.safetensors").read_bytes() == before


def test_a_changed_file_makes_results_out_of_date(run: Any, file: str) -> None:
    from loramerge.cli import options

    (run.folder / "r.yaml").write_text(RECIPE % 0.5, "utf-8")
    run.ok("run", "--operator", file, "r.yaml")
    assert "up to date" in run.ok("run", "--operator", file, "r.yaml").out
    source = (run.folder / file).read_text("utf-8")
    (run.folder / file).write_text(source.replace("total / np", "2 * total / np"), "utf-8")
    options._loaded.clear()
    assert "up to date" not in run.ok("run", "--operator", file, "r.yaml").out


def test_schema_and_docs_row(run: Any, file: str) -> None:
    load_file(run.folder / file)
    steps = json_schema()["properties"]["steps"]["additionalProperties"]["properties"]
    mix = steps["mix"]["properties"]
    assert "kept_share" in mix and "my-ties" in json.dumps(mix["method"])
    table = run.ok("operators").out
    assert "my-ties" in table and "--kept-share" in table and "elements" in table
    detail = run.ok("operators", "my-ties").out
    for words in ("elect a sign", "arXiv 2306.01708", "disagree", "default 0.2", "> 0 and ≤ 1"):
        assert words in detail
    assert "The order of the inputs does not matter." in detail
    assert (
        json.loads(run.ok("operators", "my-ties", "--json").out)["parameters"][0]["name"]
        == "kept_share"
    )


@pytest.mark.parametrize("name", ["orthogonal", tail("ties"), tail("dare"), tail("equal_norms")])
def test_laws(name: str, tmp_path: Path) -> None:
    shutil.copy(MADE_UP / f"{name}.py", tmp_path / "mine.py")
    (operator,) = load_file(tmp_path / "mine.py")
    assert operator.laws
    check_operator(operator)


def test_python(run: Any, file: str) -> None:
    load_file(run.folder / file)
    a, b = (lm.load(run.folder / f"{n}.safetensors") for n in "ab")
    merged = lm.mix([(a, 1.0), (b, 0.5)], method="my-ties", kept_share=0.5)
    lm.save(merged, run.folder / "python.safetensors")
    run.ok("mix", "a", "b:0.5", "--operator", file, "--method", "my-ties", "--kept-share", "0.5",
           "-o", "out.safetensors")  # fmt: skip
    assert same(values(run, "python"), values(run, "out"))
    with pytest.raises(UsageError, match="kept_share"):
        lm.mix([(a, 1.0)], method="my-ties", kept_share="much")
    with pytest.raises(UsageError, match="'densty' is not a parameter"):
        lm.mix([(a, 1.0)], method="my-ties", densty=0.5)


def test_entry_point(run: Any, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package offers it; it is looked for only where its name or option is not known."""
    monkeypatch.syspath_prepend(str(run.folder))
    point = EntryPoint("my-ties", "mine:ties", "loramerge.operators")
    looked: list[str] = []

    def entry_points(group: str) -> list[EntryPoint]:
        looked.append(group)
        return [point] if group == "loramerge.operators" else []

    monkeypatch.setattr("loramerge.discovery.entry_points", entry_points)
    run.ok("mix", "a", "b", "--method", "linear", "-o", "linear.safetensors")
    assert "loramerge.operators" not in looked
    run.ok("mix", "a", "b", "--kept-share", "0.5", "--method", "my-ties", "-o", "out.safetensors")
    assert "--kept-share" in run.ok("mix", "--help").out
    assert "my-ties" in run.ok("operators").out
    sys.modules.pop("mine", None)
