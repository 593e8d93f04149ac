"""Variables in texts, and the cases of sweeps."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramerge.recipe.mistakes import Mistakes
from loramerge.recipe.variables import (
    case_label,
    cases_of,
    escape,
    project,
    substitute,
    variables_in,
    variables_of,
)

Case = dict[str, Any]


def fill(value: Any, **variables: Any) -> Any:
    mistakes = Mistakes("r", {})
    found = substitute(value, ("steps",), variables, mistakes)
    mistakes.refuse()
    return found


def cases(sweep: Any, root: Path = Path(), **overrides: Any) -> list[Case]:
    mistakes = Mistakes("r", {})
    found = cases_of(sweep, ("sweep",), overrides, root, mistakes)
    mistakes.refuse()
    return found


def problems(sweep: Any) -> str:
    mistakes = Mistakes("r", {})
    cases_of(sweep, ("sweep",), {}, Path(), mistakes)
    return "\n".join(mistakes.found.values())


values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
contents = st.recursive(
    values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


# ---- filling


@given(st.one_of(values, st.lists(values)))
def test_a_variable_alone_keeps_its_type(value: Any) -> None:
    found = fill("${w}", w=value)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:${w}", "a:0.5"), ("${w}:${w}", "0.5:0.5"), ("${n}", 3), ("r${n}.x", "r3.x"),
        ("${b}!", "true!"), ("$${w}", "${w}"), ("$$${w}", "$${w}"), ("${ w }", 0.5), ("$w", "$w"),
        ("{w}", "{w}"), ("${f.stem}", "x v1.2"), ("${f.name}", "x v1.2.safetensors"),
        ("out/${f.stem}-${w}.st", "out/x v1.2-0.5.st"), ("${f}", "d/x v1.2.safetensors"), ("$", "$"),
        ("a:${e}", "a:0.0001"), ("a:${long}", "a:0.30000000000000004"),
    ],
)  # fmt: skip
def test_inside_a_text_a_value_is_written_out(text: str, expected: Any) -> None:
    given = {"w": 0.5, "n": 3, "b": True, "f": "d/x v1.2.safetensors", "e": 1e-4, "long": 0.1 + 0.2}
    assert fill(text, **given) == expected


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_in_texts_lose_nothing(value: float) -> None:
    assert float(fill("a:${w}", w=value)[2:]) == value


def test_keys_and_depths() -> None:
    content = {"match": {"*${what}*": "${w}"}, "list": ["${w}", {"x": ["${w}"]}], "n": 1}
    assert fill(content, what="attn2", w=0.5) == {
        "match": {"*attn2*": 0.5}, "list": [0.5, {"x": [0.5]}], "n": 1,
    }  # fmt: skip
    assert set(variables_in(content)) == {"what", "w"}


@given(contents)
def test_text_without_variables_stays_unchanged(content: Any) -> None:
    if any(variables_in(content)) or "$$" in str(content):
        return
    assert fill(content) == content


dollars = st.text(st.sampled_from("${}aw.")) | st.text()


@given(st.recursive(dollars, lambda inner: st.lists(inner, max_size=3)
       | st.dictionaries(dollars, inner, max_size=3)))  # fmt: skip
def test_escaped_variables_stay_text(content: Any) -> None:
    assert not any(variables_in(escape(content)))
    assert fill(escape(content)) == content


def test_a_path_of_windows_has_the_same_parts() -> None:
    assert fill("${f.stem}", f="C:\\loras\\x.safetensors") == "x"


@pytest.mark.parametrize(
    ("text", "words"),
    [("${wieght}", "did you mean weight?"), ("${weight.stem}", "no part 'stem'"),
     ("${f.suffix}", ".stem and .name"), ("${}", "there is no variable ''")],
)  # fmt: skip
def test_unknown_variables_and_parts_are_refused(text: str, words: str) -> None:
    mistakes = Mistakes("r", {})
    substitute({"k": [text]}, ("steps", "a"), {"weight": 1, "f": "x.y"}, mistakes)
    assert words in next(iter(mistakes.found.values()))


def test_escapes_use_nothing() -> None:
    assert list(variables_in("$${w} ${v.stem} $${x}")) == ["v"]


# ---- vars


def test_values_from_outside_come_first() -> None:
    mistakes = Mistakes("r", {})
    assert variables_of({"w": 1, "v": 2}, ("vars",), {"w": "x"}, mistakes) == {"w": "x", "v": 2}
    assert not mistakes.found


@pytest.mark.parametrize(
    ("content", "words"),
    [([1], "vars must be a mapping"), ({"a b": 1}, "letters, digits"), ({"1a": 1}, "letters, digits"),
     ({"a": "${b}", "b": 1}, "cannot use another variable")],
)  # fmt: skip
def test_mistakes_of_vars(content: Any, words: str) -> None:
    mistakes = Mistakes("r", {})
    variables_of(content, ("vars",), {}, mistakes)
    assert words in "".join(mistakes.found.values())


# ---- sweeps

ranges = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.lists(st.integers(0, 5), min_size=1, max_size=4),
    max_size=3,
)


@given(ranges)
def test_a_mapping_is_all_combinations(sweep: dict[str, list[int]]) -> None:
    found = cases(sweep)
    distinct = {name: set(values) for name, values in sweep.items()}
    assert {tuple(c.items()) for c in found} == {
        tuple(zip(distinct, combination, strict=True))
        for combination in itertools.product(*distinct.values())
    }
    assert len(found) == len({tuple(c.items()) for c in found})


@given(ranges, st.sets(st.sampled_from(["a", "b", "c", "z"])))
def test_projections_keep_values_and_order(sweep: dict[str, list[int]], names: set[str]) -> None:
    for case in cases(sweep):
        part = project(case, sorted(names))
        assert part.items() <= case.items()
        assert list(part) == [name for name in case if name in names]
        assert project(part, sorted(names)) == part


def test_the_last_variable_turns_fastest() -> None:
    assert [tuple(c.values()) for c in cases({"a": [1, 2], "b": "x"})] == [(1, "x"), (2, "x")]
    found = [tuple(c.values()) for c in cases({"a": [1, 2], "b": ["x", "y"]})]
    assert found == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]


def test_a_list_is_its_cases() -> None:
    listed = [{"m": "x", "d": 0.2}, {"m": "y", "d": 0.5}, {"m": "x", "d": 0.2}]
    assert cases(listed) == listed[:2]


def test_overrides_fix_a_variable() -> None:
    assert cases({"a": [1, 2], "b": [3, 4]}, a=9) == [{"a": 9, "b": 3}, {"a": 9, "b": 4}]
    assert cases({"a": [1, 2]}, a=[5, 6, 5]) == [{"a": 5}, {"a": 6}]
    assert cases([{"a": 1, "b": 3}, {"a": 2, "b": 3}], a=9) == [{"a": 9, "b": 3}]


def test_files_of_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in ("d/b.safetensors", "d/a.safetensors", "d/note.txt"):
        (tmp_path / name).write_bytes(b"")
    found = cases({"f": {"files": "d/*.safetensors"}}, tmp_path)
    assert found == [{"f": "d/a.safetensors"}, {"f": "d/b.safetensors"}]


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        (3, "sweep must be"), ([], "sweep must be"), ([1], "sweep must be"),
        ({"a": []}, "no values"), ({"a b": [1]}, "not a valid name"),
        ({"a": {"file": "*"}}, "{files: PATTERN}"), ({"a": {"files": 3}}, "{files: PATTERN}"),
        ({"a": {"files": "nothing/*.x"}}, "nothing"), ([{"a": 1}, {"b": 2}], "no value for b"),
        ([{"a": 1}, {"b": 2}], "no value for a"),
        ({"a": list(range(101)), "b": list(range(100))}, "10100 cases, and 10000 is the limit"),
    ],
)  # fmt: skip
def test_mistakes_of_sweeps(sweep: Any, words: str) -> None:
    assert words in problems(sweep)


def test_labels() -> None:
    assert case_label({}) == ""
    assert case_label({"w": 0.5, "m": "x", "on": True}) == "[w=0.5,m=x,on=true]"
