"""Every text that the page takes: a word, a name that is looked up, or a path that is checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest

pytest.importorskip("starlette")

from loramerge.errors import UsageError
from loramerge.page.actions import check_paths, written
from loramerge.page.forms import is_offered
from loramerge.page.places import Places
from loramerge.parameters import Doc, Parameter, parameters_of
from loramerge.verbs import known_verbs

# texts that no file is opened by: what they say is compared, parsed or written as it is
WORDS = {
    *("dtype", "keep_touched", "storage", "skip_missing", "max_size", "keep", "drop", "to", "only"),
    *("scale", "take", "layers", "set", "unset", "base_model", "license", "prompt", "negative"),
    *("weight", "trigger", "method", "targets", "include", "exclude", "rank_pattern"),
    *("alpha_pattern", "optimizer_option", "timesteps", "vram", "regularisation_prompt"),
    *("clip_skip", "save_every"),
    # the path of a class, which is imported from the packages of the known optimizers alone
    "optimizer",
}


def _texts(kind: type[Any]) -> Iterator[Parameter]:
    for one in parameters_of(kind, installed=True):
        plain = one.kind in (bool, int, float) or one.doc.choices is not None
        if is_offered(one) and not plain and "Literal" not in str(one.kind):
            yield one


def _unsorted(kind: type[Any]) -> list[str]:
    """Return the texts of a verb that are none of the three, or several."""
    sorts = {one.word: (one.word in WORDS, one.refers, one.doc.path) for one in _texts(kind)}
    return [word for word, sort in sorts.items() if sum(sort) != 1]


@pytest.mark.parametrize("name", sorted(known_verbs()))
def test_every_text_is_a_word_a_name_or_a_path(name: str) -> None:
    assert _unsorted(known_verbs()[name].parameters) == []


def test_a_new_text_is_found() -> None:
    made = make_dataclass(
        "Made", [("notes", Annotated[str, Doc("A file of notes.")], "")], frozen=True
    )
    assert _unsorted(made) == ["notes"]


def test_all_words_are_used() -> None:
    found = {one.word for verb in known_verbs().values() for one in _texts(verb.parameters)}
    assert found >= WORDS


@pytest.mark.parametrize("name", sorted(known_verbs()))
def test_every_path_and_name_is_checked(name: str, tmp_path: Path) -> None:
    """One parameter at a time leads out; a verb whose parameters are not looked at fails."""
    here = tmp_path / "here"
    here.mkdir()
    kind = known_verbs()[name].parameters
    for one in _texts(kind):
        if one.word in WORDS:
            continue
        value: Any = "../elsewhere"
        if one.weighted:
            value = one.kind(value)
        given = {p.name: _harmless(p) for p in parameters_of(kind) if p.required}
        parameters = kind(**{**given, one.name: (value,) if one.many else value})
        with pytest.raises(UsageError, match="may not use this path"):
            check_paths(parameters, Places(here))


def _harmless(one: Parameter) -> Any:
    value = one.kind("zuzu")
    return (value,) if one.many else value


def test_what_is_written_lies_where_the_page_may_write(tmp_path: Path) -> None:
    from loramerge.library.shipped import shipped

    @dataclass(frozen=True)
    class Made:
        output: Annotated[str, Doc("A file.", path=True)]
        shown: Annotated[str, Doc("A picture.", path=True)] = "x"

    place = str(shipped("zuzu"))
    assert written("output") and written("cache") and not written("shown")
    check_paths(Made("out", place), Places(tmp_path))
    with pytest.raises(UsageError, match="may not use this path"):
        check_paths(Made(place), Places(tmp_path))
