"""The path that a verb writes to is known before it runs, from the function that the run itself uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import loramerge as lm
from loramerge.events import ignore
from loramerge.steps import engine
from loramerge.steps.parameters import Context, Verb
from loramerge.verbs import known_verbs
from tests.builders.commands import state_of, work, world  # noqa: F401
from tests.builders.pictures import folder_of
from tests.builders.world import tune, write_folder
from tests.tail import tail

A, B = "a.safetensors", "b.safetensors"
SHORT = {"steps": 1, "sample_every": 0, "rank": 1, "resolution": 32}

# verb → values that do not say where the result goes
CASES: dict[str, list[dict[str, Any]]] = {
    "mix": [
        {"adapters": [f"{A}:0.7", B]},
        {"adapters": [A, f"{B}:unet=0.5:te=0"], "rank": 2, "to": "peft"},
        {"adapters": [A, "sub/a.safetensors:-1"], "max_size": "50%", "method": "ties"},
        {"adapters": [f"{name}:0.123456789" for name in (A, B) * 9]},
    ],
    "resize": [{"adapter": A, "rank": 2}, {"adapter": B, "energy": 0.9, "to": "peft"}],
    "convert": [
        {"adapter": A, "to": "diffusers"},
        {"adapter": A, "dtype": "float32"},
        {"adapter": "peft", "for": "comfyui", "to_lora": True, "rank": 1},
    ],
    "heal": [{"adapter": "sick.safetensors"}, {"adapter": "sick"}],
    "extract": [
        {"tuned": "tuned.safetensors", "base": "base", "rank": 2},
        {"tuned": "tuned.safetensors", "base": "base.safetensors", "full": True},
    ],
    "bake": [
        {"base": "base.safetensors", "adapters": [f"{A}:0.5", B]},
        {"base": "base", "adapters": [A]},
        {"base": "base.safetensors", "dtype": "bfloat16"},
        {
            "base": "base.safetensors",
            "adapters": [A],
            "storage": ["float8-scaled"],
            "allow_loss": True,
        },
    ],
    "merge": [
        {"models": ["base.safetensors", "tuned.safetensors:0.3"]},
        {"models": ["base", "base:0.5", f"{A}:0.5"]},
        {
            "models": ["base.safetensors", "tuned.safetensors:0.5"],
            "take": ["unet.mid_block.*=base"],
        },
    ],
    "unbake": [{"checkpoint": "baked.safetensors", "lora": [f"{A}:0.5"]}],
    "preview": [
        {"base": ["tiny"], "adapters": ["zuzu:0.5"], "steps": 1},
        {"base": ["tiny"], "steps": 1},
    ],
    "card": [{"file": "sub/a.safetensors"}, {"file": "peft"}, {"file": "zuzu"}],
    "train": [
        {"base": "tiny", "images": "pictures", **SHORT},
        {"base": "tiny", "images": "pictures", "trigger": "a b", "to": "peft", **SHORT},
    ],
}


def writing(verbs: Mapping[str, Verb]) -> Iterator[Verb]:
    """Yield the verbs whose runs write a file or a folder of a name that they choose themselves."""
    return (verb for verb in verbs.values() if verb.gives != "report")


def silent(verbs: Mapping[str, Verb]) -> set[str]:
    """Return the names of the verbs that do not say where their result goes, or have no case here."""
    return {one.name for one in writing(verbs) if one.output_path is None or one.name not in CASES}


def test_every_writing_verb_says_where_its_result_goes() -> None:
    verbs = known_verbs()
    assert silent(verbs) == set() and set(CASES) == {one.name for one in writing(verbs)}
    mute = {**verbs, "mix": replace(verbs["mix"], output_path=None)}
    new = {**verbs, "flip": replace(verbs["heal"], name="flip")}
    assert silent(mute) == {"mix"} and silent(new) == {"flip"}


@pytest.fixture
def inputs(work: Path) -> Path:  # noqa: F811
    """The current folder, with what the cases name."""
    tune(Path("base.safetensors"), Path("tuned.safetensors"))
    write_folder(Path("base.safetensors"), Path("base"))
    lm.bake("base.safetensors", [f"{A}:0.5"], "baked.safetensors")
    lm.save(lm.load(A), "peft", dialect="peft")
    _write_sick()
    Path("sub").mkdir()
    lm.save(lm.load(A), "sub/a.safetensors")
    folder_of(Path("pictures"))
    return work


def _write_sick() -> None:
    """Write a file and a folder of an adapter with a module that changes nothing, so needs repair."""
    adapter = lm.load(A)
    site, delta = next(iter(adapter.deltas.items()))
    sick = adapter.with_deltas({**adapter.deltas, site: delta.scaled(0.0)})
    lm.save(sick, "sick.safetensors")
    lm.save(sick, "sick", dialect="peft")


def miss(verb: Verb, values: Mapping[str, Any], said: Callable[[Any, Context], Path]) -> str | None:
    """Return how what `said` tells beforehand differs from what a run writes; None if it does not."""
    parameters, context = engine.parameters_from(verb.parameters, values), Context(notify=ignore)
    before = state_of(Path.cwd())
    path = said(parameters, context)
    if state_of(Path.cwd()) != before:
        return f"{path} was told by writing"
    result = verb.run(parameters, context)
    wrong = str(path) != str(result.output) or not path.exists() or str(path) in before
    return f"{path} was told, {result.output} was written" if wrong else None


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (tail if place else pytest.param)(name, values)
        for name, several in CASES.items()
        for place, values in enumerate(several)
    ],
)
def test_the_path_is_that_of_the_run(name: str, values: dict[str, Any], inputs: Path) -> None:
    verb = known_verbs()[name]
    assert verb.output_path is not None
    assert miss(verb, values, verb.output_path) is None
    # where something is, and where the user says it
    parameters = engine.parameters_from(verb.parameters, values)
    assert verb.output_path(parameters, Context()).exists()
    named = replace(parameters, output="elsewhere/x.safetensors")
    assert verb.output_path(named, Context()) == Path("elsewhere/x.safetensors")


WRONG: dict[str, Callable[[Path], Path]] = {
    "without the weight": lambda path: path.with_name(path.name.replace("@0.7", "")),
    "without the ending": lambda path: path.with_suffix(""),
    "without the other input": lambda path: Path("a@0.7.safetensors"),
    "in another folder": lambda path: "sub" / path,
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_path_is_found(fault: str, inputs: Path) -> None:
    verb, values = known_verbs()["mix"], CASES["mix"][0]
    assert verb.output_path is not None
    path = verb.output_path

    def wrong(parameters: Any, context: Context) -> Path:
        return WRONG[fault](path(parameters, context))

    assert miss(verb, values, wrong) is not None
