"""The scores of the proving ground on made-up answers, and the operators in its tables."""

from __future__ import annotations

import math
import random
import re

import numpy as np
import pytest

from benchmarks.proving.cases import operator_cases, parameter_cases, scale_cases
from benchmarks.proving.evidence import best_key, default_table, order_table, verdict
from benchmarks.proving.page import fill
from benchmarks.proving.scores import Interval, groups, interval, retention
from benchmarks.proving.tables import resize_table
from benchmarks.shapebench.page import PAGE, TEXT, tables_of
from benchmarks.shapebench.pictures import AXES, CONCEPTS, draw, random_pictures, seen_on, shows
from loramerge.algebra.operators import OPERATORS


def test_retention_is_one_alone_nought_as_the_base_and_negative_below_it():
    assert retention(base=0.4, alone=0.2, merged=0.2) == 1
    assert retention(base=0.4, alone=0.2, merged=0.4) == 0
    assert retention(base=0.4, alone=0.2, merged=0.5) == pytest.approx(-0.5)
    assert retention(base=0.25, alone=1.0, merged=0.625) == 0.5  # shares of right answers


def test_an_interval_is_students():
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3
    assert found.half == pytest.approx(2.776 * math.sqrt(2.5 / 5))
    assert str(interval([0.5])) == "0.50"
    assert str(interval([-0.5, -0.5])) == "−0.50 ± 0.00"


@pytest.mark.parametrize("size", [2, 4, 8])
def test_each_adapter_is_in_one_group(size):
    made = groups(list(CONCEPTS), size, seed=3)
    assert [len(one) for one in made] == [size] * (8 // size)
    assert sorted(name for one in made for name in one) == sorted(CONCEPTS)
    assert made != groups(list(CONCEPTS), size, seed=4)
    with pytest.raises(ValueError, match="groups of 3"):
        groups(list(CONCEPTS), 3, seed=0)


@pytest.mark.parametrize("word", CONCEPTS)
def test_true_drawings_are_recognised_and_others_are_not(word):
    concept = CONCEPTS[word]
    (asked,) = random_pictures(1, "asked", [word])
    (plain,) = random_pictures(1, "asked")
    noise = np.random.default_rng(0).normal(0, 0.05, (24, 24, 3))
    assert shows(draw(asked), asked, AXES if concept.axis != "kind" else ["kind", "ground"])
    assert shows(draw(asked) + noise, asked, [concept.axis])
    assert seen_on(concept.axis, draw(plain) + noise, asked) == getattr(plain, concept.axis)
    assert not shows(draw(plain), asked, [concept.axis])


def test_words_say_all_that_a_picture_shows():
    drawn = random.Random(0).sample(list(CONCEPTS), 3)
    for word in drawn:
        (picture,) = random_pictures(1, "words", [word])
        assert word in picture.words()
        assert ("red" not in picture.words()) or picture.kind not in ("zuzu", "kiki")


def made_up(key, table, *values, method=None):
    """Return figures of a case, one for each seed."""
    return [
        {"key": key, "n": 8, "table": table, "method": method or key, "seed": seed, "mean": value}
        for seed, value in enumerate(values)
    ]


def test_an_order_is_taken_at_the_best_scales_and_paired_by_seed():
    rows = [
        *made_up("iso-c", "operators", 0.1, 0.3),
        *made_up("iso-c scale=literal", "scales", 0.5, 0.7, method="iso-c"),
        *made_up("ties", "operators", 0.4, 0.6),
    ]
    assert best_key(rows, "iso-c", 8) == "iso-c scale=literal"
    (line,) = (one for one in order_table(rows, 8) if "`ties`" in one)
    assert line.endswith("| 0.10 ± 0.00 | yes |")
    assert default_table(rows, [8])[2:] == ["| `iso-c` | 8 | `scale=literal` | 0.40 ± 0.00 |"]


@pytest.mark.parametrize(
    ("found", "equal", "words"),
    [
        (Interval(0.2, 0.1), False, "yes"),
        (Interval(0.1, 0.2), False, "not certain"),
        (Interval(-0.2, 0.1), False, "no: the reverse"),
        (Interval(0.1, 0.2), True, "yes"),
        (Interval(0.2, 0.1), True, "no"),
        (Interval(0.2, math.nan), False, "not certain"),  # a single seed
    ],
)
def test_a_lead_is_certain_if_its_interval_is_on_one_side(found, equal, words):
    assert verdict(found, equal=equal) == words


def test_every_operator_and_scale_is_tried():
    tried = [*operator_cases(), *scale_cases(), *parameter_cases(64)]
    assert len({one.key for one in tried}) == len(tried)
    assert {one.method for one in tried if one.table == "operators"} == set(OPERATORS)
    assert {one.method for one in tried if one.table == "scales"} == set(OPERATORS)


def test_the_tables_name_every_operator():
    """A new operator is one file; until its figures are there this is skipped, and names it."""
    shipped, measured = {one.name for one in OPERATORS.shipped()}, set()
    if PAGE.exists():
        text = PAGE.read_text("utf-8")
        part = re.search(r"<!-- shapes operators -->\n(.*?)<!-- end -->", text, re.DOTALL)
        assert part
        measured = set(re.findall(r"^\| `([a-z0-9-]+)` \|", part[1], re.MULTILINE))
    assert measured <= shipped, "the page names operators that are no more"
    if missing := sorted(shipped - measured):
        pytest.skip(f"not measured yet: {', '.join(missing)}; run python -m benchmarks.shapebench")


def test_a_table_takes_the_place_of_the_one_before():
    text = "a\n<!-- one -->\nold\n<!-- end -->\n<!-- two -->\n<!-- end -->\n"
    filled = fill(text, "one", ["new"])
    assert filled == text.replace("old", "new")
    assert fill(filled, "two", ["| b |"]).endswith("<!-- two -->\n| b |\n<!-- end -->\n")
    with pytest.raises(ValueError, match="no part 'three'"):
        fill(text, "three", [])


def test_rules_of_resize_are_spelled_as_they_are_given():
    figures = {"key": "resize", "n": 8, "table": "resize", "of": "mix", "seed": 0}
    scores = {"size": 0.5, "mean": 0.9, "worst": 0.7}
    rows = [
        figures | scores | {"rule": rule, "value": value}
        for rule, value in (("energy", 0.9), ("max_size", 4), ("rank fair", 8))
    ]
    assert resize_table(rows, "mix")[2:] == [
        "| `energy=0.9` | 0.50 | 0.90 | 0.70 |",
        "| `max_size` of rank 4 | 0.50 | 0.90 | 0.70 |",
        "| `rank=8`, fair | 0.50 | 0.90 | 0.70 |",
    ]
    assert len(resize_table(rows, "one")) == 2


def test_the_text_has_a_place_for_every_table():
    parts = tables_of(made_up("linear", "operators", 0.5, 0.6))
    text = TEXT.read_text("utf-8")
    for name, lines in parts.items():
        assert "\n".join(lines) in fill(text, name, lines)
    assert len(re.findall("<!-- end -->", text)) == len(parts)
    assert any("0.55 ± 0.64" in line for line in parts["shapes operators"])
