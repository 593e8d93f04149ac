"""Patterns of programs match the names that a plain search finds."""

import re

import pytest

from loramerge.dialects.programs import READERS
from loramerge.dialects.programs.spec import _alternatives, _matched
from loramerge.families import FAMILIES

PATTERNS = sorted(
    {
        text
        for program in READERS.known()
        for reads in program.reads
        for text in (reads.but, reads.unseen, reads.refuses, reads.told_by)
        if text
    }
)


@pytest.fixture(scope="module")
def names():
    found = [name for family in FAMILIES.values() for name, _ in family.modules()]
    return frozenset(found[::7]) | {"", "text_encoder", "text_encoderx", "unet.a|b", "text"}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_what_a_search_finds(pattern, names):
    assert _matched(pattern, names) == frozenset(filter(re.compile(pattern).search, names))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("^text_encoder", [("text_encoder", "^text_encoder")]),
        ("^ab?c|d", [("", "^ab?c"), ("", "d")]),
        (r"^a\|b|(c|(d|e)|f)|[|(]g", [("a", r"^a\|b"), ("", "(c|(d|e)|f)"), ("", "[|(]g")]),
        ("^unet.*x|^(?:a|b)", [("unet", "^unet.*x"), ("", "^(?:a|b)")]),
    ],
)
def test_alternatives_are_those_outside_of_parentheses(pattern, expected):
    assert _alternatives(pattern) == tuple(expected)
