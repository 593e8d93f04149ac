"""Words of recipes that were renamed are still read, in recipes and in the headers of older files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from loramerge.parameters import Doc, in_current_words, parameters_of
from loramerge.verbs import known_verbs


@dataclass(frozen=True)
class Example:
    """Parameters of which one was renamed."""

    size: Annotated[int, Doc("Size.", former=("length",))] = 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"length": 2}, {"size": 2}),
        ({"size": 3}, {"size": 3}),
        ({"other": 4}, {"other": 4}),
        ({"length": 2, "size": 3}, {"length": 2, "size": 3}),  # refused later, as an unknown word
    ],
)
def test_a_former_word_means_the_one_of_today(content: Any, expected: Any) -> None:
    assert in_current_words(Example, content) == expected


def test_a_former_word_is_no_word_of_another_parameter() -> None:
    for verb in known_verbs().values():
        words = [one.word for one in parameters_of(verb.parameters)]
        former = [old for one in parameters_of(verb.parameters) for old in one.doc.former]
        assert len({*words, *former}) == len(words) + len(former), verb.name


def test_an_old_recipe_of_training_is_read() -> None:
    from loramerge.recipe.mistakes import Mistakes
    from loramerge.recipe.schema import validate

    verb = known_verbs()["train"]
    step = {"base": "tiny", "images": "pictures", "clip": 0.5, "lr": 2e-3}
    found = validate(verb, step, ("steps", "a"), None, Mistakes("recipe", {}))
    assert (found.max_grad_norm, found.lr) == (0.5, 2e-3)
