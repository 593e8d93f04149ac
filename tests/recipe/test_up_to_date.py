"""A second run repeats only the steps that are not up to date."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import loramerge as lm
import loramerge.recipe.run as engine
from loramerge.errors import OutputExists
from tests.builders.samples import read_safetensors
from tests.builders.world import rewrite
from tests.recipe.outcomes import CHAIN, done, files, statuses


@pytest.fixture
def chain(recipe, work) -> Path:
    """A recipe that has been run."""
    path = recipe(CHAIN)
    assert done(lm.run(path)) == {"blend", "small", "other", "model"}
    return path


def test_a_second_run_does_nothing(chain, run, monkeypatch) -> None:
    before = run.state()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was run")

    monkeypatch.setattr(engine, "perform", refuse)
    assert set(statuses(lm.run(chain)).values()) == {"up to date"}
    run.ok("run", "recipe.yaml")
    assert run.state() == before


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"w": 0.25}, {"blend", "small", "model"}), ({"r": 2}, {"small", "model"}), ({}, set()),
    ],
)  # fmt: skip
def test_a_parameter_runs_what_depends_on_it(chain, change, again) -> None:
    assert done(lm.run(chain, set=change)) == again
    assert done(lm.run(chain, set=change)) == set()


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize(
    ("name", "again"),
    [("a", {"blend", "small", "model"}), ("b", {"blend", "small", "other", "model"}),
     ("base", {"model"})],
)  # fmt: skip
def test_a_changed_input_runs_what_depends_on_it(chain, name: str, again: set[str]) -> None:
    path = Path(f"{name}.safetensors")
    touched = path.read_bytes()
    path.unlink()  # it may be a link to the original
    path.write_bytes(touched)
    os.utime(path, (1, 1))
    assert done(lm.run(chain)) == set()  # content counts, not times

    def change(arrays: dict[str, Any], metadata: dict[str, str]) -> None:
        for key, array in arrays.items():
            if array.ndim >= 2:
                arrays[key] = (array * 1.5).astype(array.dtype)

    rewrite(path, path, change)
    assert done(lm.run(chain)) == again


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("name", ["blend", "small", "other", "model"])
def test_a_deleted_output_is_made_again_and_nothing_after_it(chain, name: str) -> None:
    """The same bytes come out, so what was made from them is still right."""
    before = files(Path())
    Path(f"{name}.safetensors").unlink()
    assert done(lm.run(chain)) == {name}
    assert files(Path()) == before


def test_an_edited_output_is_refused_and_made_again_with_force(chain, run) -> None:
    path = Path("blend.safetensors")
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    run.refused(3, "run", "recipe.yaml", says=("blend.safetensors", "was changed since", "--force"))
    assert done(lm.run(chain, force=True)) == {"blend"}
    assert path.read_bytes() == before


def test_upstream_run_again_with_the_same_bytes_leaves_downstream(chain) -> None:
    """A spelling of the same weight is another parameter, but not another file."""
    text = chain.read_text("utf-8").replace(
        '["a:${w}", b]', "[{adapter: a, weight: {default: 0.5}}, b]"
    )
    chain.write_text(text.replace("mix: {", "mix: {embeddings: first, "), "utf-8")
    result = lm.run(chain)
    assert done(result) >= {"blend"}
    # embeddings: first is in the header, so the bytes differ; without the header they do not
    lm.run(chain, strip=True)
    chain.write_text(chain.read_text("utf-8").replace("embeddings: first, ", ""), "utf-8")
    assert done(lm.run(chain, strip=True)) == {"blend"}


def test_fresh_runs_everything_and_gives_the_same(chain) -> None:
    before = files(Path())
    assert len(done(lm.run(chain, fresh=True))) == 4
    assert files(Path()) == before


def test_strip_is_part_of_what_is_asked_for(chain) -> None:
    assert done(lm.run(chain, strip=True)) == {"blend", "small", "other", "model"}
    assert "loramerge.recipe" not in read_safetensors(Path("small.safetensors"))[1]
    assert done(lm.run(chain, strip=True)) == set()


def test_other_code_runs_everything(chain, monkeypatch) -> None:
    monkeypatch.setattr("loramerge.recipe.state.package_digest", lambda: "another")
    assert len(done(lm.run(chain))) == 4


def test_threads_are_no_reason_to_run(chain) -> None:
    assert done(lm.run(chain, threads=1)) == set()


def test_unsaved_steps_are_run_only_where_they_are_needed(recipe, work) -> None:
    text = """
    version: 1
    vars: {r: 2}
    steps:
      blend: {mix: {adapters: [a.safetensors, b.safetensors]}}
      one: {resize: {adapter: blend, rank: "${r}"}, save: one.safetensors}
      two: {resize: {adapter: blend, rank: 3}, save: two.safetensors}
    """
    path = recipe(text)
    assert done(lm.run(path)) == {"blend", "one", "two"}
    assert statuses(lm.run(path)) == {
        "blend": "not needed",
        "one": "up to date",
        "two": "up to date",
    }
    assert done(lm.run(path, set={"r": 4})) == {"blend", "one"}


def test_a_recipe_that_is_no_file_keeps_no_state(work) -> None:
    content = {
        "version": 1,
        "steps": {"x": {"mix": {"adapters": ["a.safetensors"]}, "save": "x.safetensors"}},
    }
    assert done(lm.run(content)) == {"x"}
    assert not list(Path().glob("*.json"))
    with pytest.raises(OutputExists):
        lm.run(content)
    assert done(lm.run(content, force=True)) == {"x"}


def test_a_state_that_cannot_be_read_is_named(chain, run) -> None:
    Path("recipe.state.json").write_text("{", "utf-8")
    run.refused(3, "run", "recipe.yaml", says=("recipe.state.json", "delete it"))
