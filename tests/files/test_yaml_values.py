"""YAML of strangers: whatever is wrong with it is a ValueError, and soon."""

from __future__ import annotations

import pytest

from loramerge.errors import RecipeError
from loramerge.files.yaml_values import yaml_values
from loramerge.recipe.text import parse_text

BAD = {
    "deep lists": "[" * 200_000,  # read naively, minutes
    "deep mappings": '{"a": ' * 900 + "1" + "}" * 900,
    "open": "{a: [",
    "tab": "a:\n\tb: 1",
    "alias": "a: *b",
    "tag": "a: !!python/object:os.system x",
    "twice": "a: 1\na: 2",
}


@pytest.mark.parametrize("case", BAD)
def test_bad_yaml_is_refused(case: str) -> None:
    with pytest.raises(ValueError):
        yaml_values(BAD[case])


def test_a_recipe_nested_too_deeply_is_refused() -> None:
    for case in ("deep lists", "deep mappings"):
        with pytest.raises(RecipeError, match="too deep"):
            parse_text(BAD[case], "r.yaml")


def test_usual_values_are_read() -> None:
    text = 'a: [1, 2.5, x, null, true]\n"[[[": {b: "]"}\n'
    assert yaml_values(text) == {"a": [1, 2.5, "x", None, True], "[[[": {"b": "]"}}
    many = "[" + ", ".join(["[1]"] * 1001) + "]"
    assert len(yaml_values(many)) == 1001
