"""The text of recipes: YAML 1.2, places, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loramerge.errors import LoramergeError, MissingFile, RecipeError
from loramerge.parameters import LARGEST_WHOLE
from loramerge.recipe.mistakes import Mark
from loramerge.recipe.text import parse_text, read_text, scalar_of
from loramerge.recipe.writing import yaml_text


def value(text: str) -> Any:
    """What `k: TEXT` says of k, without mistakes."""
    content, mistakes = parse_text(f"k: {text}", "r.yaml")
    mistakes.refuse()
    return content["k"]


# ---- values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4", 1e-4), ("1E+3", 1000.0), ("-2.5", -2.5), (".5", 0.5), ("7", 7), ("-7", -7),
        ("0x1F", 31), ("0o17", 15), ("true", True), ("False", False), ("null", None), ("~", None),
        ("", None), ("[1, a, 2.5]", [1, "a", 2.5]), ("{x: 1}", {"x": 1}),
    ],
)  # fmt: skip
def test_values(text: str, expected: Any) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    "text",
    ["on", "off", "yes", "no", "On", "NO", "y", "n", "2024-01-31", "12:30:45", "1_000", "0b101x",
     "1.2.3", "v1", "'1'", '"true"', "a:0.5", "a:unet=0.8:te=0", "<<", "="],
)  # fmt: skip
def test_words(text: str) -> None:
    """What YAML 1.1 took for switches, dates and sexagesimals are words."""
    assert value(text) == text.strip("'\"")


@pytest.mark.parametrize("key", ["1", "1e-4", "true", "null", "on", "2024-01-31", "~", "'a b'"])
def test_keys_are_text(key: str) -> None:
    content, mistakes = parse_text(f"{key}: 1", "r.yaml")
    assert content == {key.strip("'"): 1}
    assert not mistakes.found


def test_a_leading_zero_is_no_octal_number() -> None:
    assert value("017") in (17, "017")
    assert value("017") != 15


def test_text_of_several_lines() -> None:
    assert parse_text("k: |\n  a\n  b\n", "r")[0] == {"k": "a\nb\n"}
    assert parse_text("k: >-\n  a\n  b\n", "r")[0] == {"k": "a b"}


def test_anchors_and_aliases() -> None:
    content, mistakes = parse_text("a: &x {r: 1}\nb: *x\n", "r")
    assert content == {"a": {"r": 1}, "b": {"r": 1}}
    assert not mistakes.found


@pytest.mark.parametrize("word", ["größe", "日本語", "emoji 🎨", "a\u0301"])
def test_unicode(word: str) -> None:
    content, _ = parse_text(f"{word}: {word}\n", "r")
    assert content == {word: word}


@pytest.mark.parametrize("text", ["1e-4", "on", "[1, 2]", "a:0.5", "''", "null", "1e400"])
def test_scalars_of_the_command_line(text: str) -> None:
    expected: Any = {"1e-4": 1e-4, "[1, 2]": [1, 2], "''": "", "null": None, "1e400": float("inf")}
    assert scalar_of(text) == expected.get(text, text)


def test_an_empty_value_is_an_empty_text() -> None:
    assert scalar_of("") == ""
    assert scalar_of("  ") == ""


# ---- files


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_bom_and_crlf(tmp_path, ends: str, mark: bytes) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(mark + "version: 1\nsteps:\n  a: {b: c}\n".replace("\n", ends).encode())
    content, mistakes = parse_text(read_text(path), "r.yaml")
    assert content == {"version": 1, "steps": {"a": {"b": "c"}}}
    assert mistakes.mark(("steps", "a", "b")) == Mark(3, 7)
    assert mistakes.mark(("version",)) == Mark(1, 1)


def test_files_that_are_no_recipes(tmp_path) -> None:
    path = tmp_path / "r.yaml"
    with pytest.raises(MissingFile, match="there is no such recipe"):
        read_text(path)
    path.write_bytes(b"version: 1\n\xff\xfe")
    with pytest.raises(RecipeError, match="UTF-8"):
        read_text(path)
    path.write_bytes(b"#" * (1 << 20) + b"#")
    with pytest.raises(RecipeError, match="too large"):
        read_text(path)
    with pytest.raises(LoramergeError):
        read_text(tmp_path)


# ---- mistakes


def test_a_key_twice_names_both_places() -> None:
    content, mistakes = parse_text("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\na: 2\n", "r.yaml")
    assert content == {"a": 1, "b": {"c": 1, "d": 2}}
    assert list(mistakes.found.values()) == [
        "r.yaml:5:3: 'c' occurs twice; first in line 3",
        "r.yaml:6:1: 'a' occurs twice; first in line 1",
    ]


@pytest.mark.parametrize(
    "text",
    ["k: !!python/object:os.system x", "k: !!python/name:os.system", "k: !mine 1", "k: !!set {a, b}",
     "k: !!binary aGVsbG8=", "k: !!omap [a: 1]", "- !<tag:example.org,2024:x> 1"],
)  # fmt: skip
def test_tags_are_refused(text: str) -> None:
    try:
        _, mistakes = parse_text(text, "r.yaml")
    except RecipeError as error:
        assert "r.yaml:1:" in str(error)
        return
    with pytest.raises(RecipeError, match=r"r\.yaml:1:\d+: .*type"):
        mistakes.refuse()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: [1, 2", "1:9"), ("a: 1\n b: 2", "2:3"), ("a: 'x", "1:6"), ("a: 1\n\tb: 2", "2:1"),
        ("a: *nowhere", "1:4"), ("a: @x", "1:4"), ("a: 1\n---\nb: 2", "2:1"), ("{a: 1}}", "1:7"),
    ],
)  # fmt: skip
def test_bad_yaml_names_the_place(text: str, place: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_text(text, "r.yaml")
    assert caught.value.exit_code == 6
    line = place.partition(":")[0]
    assert f"r.yaml:{line}:" in str(caught.value), str(caught.value)


def test_aliases_cannot_blow_up() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(RecipeError, match="too large or too deep"):
        parse_text("\n".join(lines), "r.yaml")


@pytest.mark.parametrize("text", ["a: &x [*x]", "&x {k: *x}"])
def test_aliases_cannot_go_in_rings(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_text(text, "r.yaml")


@pytest.mark.parametrize("depth", [60, 600])
def test_depth_is_limited(depth: int) -> None:
    with pytest.raises(RecipeError):
        parse_text("[" * depth + "]" * depth, "r.yaml")
    with pytest.raises(RecipeError):
        parse_text("\n".join(" " * i + "a:" for i in range(depth)), "r.yaml")


@pytest.mark.parametrize("text", ["!!int x", "!!float", "!!bool maybe", "9" * 5000])
def test_a_tagged_number_must_be_a_number(text: str) -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml:1:4: this cannot be read as"):
        value(text)


@pytest.mark.parametrize("text", ["? [a, b]\n: 1", "? {a: 1}\n: 1", "[a]: 1"])
def test_keys_must_be_words(text: str) -> None:
    _, mistakes = parse_text(text, "r.yaml")
    assert [*mistakes.found.values()] == ["r.yaml:1:1: a key must be text"]


# ---- laws

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
printable = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=12)


# beyond these a number is refused: see test_whole_numbers_beyond_64_bits_are_refused
whole = st.integers(-LARGEST_WHOLE, LARGEST_WHOLE)


@pytest.mark.parametrize("number", [2**63 - 1, 1 - 2**63, 2**63, -(2**63), 10**30])
def test_whole_numbers_beyond_64_bits_are_refused(number: int) -> None:
    found, mistakes = parse_text(yaml_text({"a": number}), "r.yaml")
    if abs(number) <= LARGEST_WHOLE:
        assert not mistakes.found and found == {"a": number}
    else:
        assert "this cannot be read as int" in next(iter(mistakes.found.values()))


@settings(max_examples=60)
@given(st.dictionaries(printable, whole | st.floats(allow_nan=False) | printable | st.none()
       | st.booleans() | st.lists(printable), max_size=5))  # fmt: skip
def test_written_yaml_is_read_back(content: dict[str, Any]) -> None:
    found, mistakes = parse_text(yaml_text(content), "r.yaml")
    assert not mistakes.found
    assert found == content
    assert [type(v) for v in found.values()] == [type(v) for v in content.values()]


YAMLISH = st.lists(
    st.sampled_from(
        ["a", "b: ", "- ", ": ", "\n", "\n  ", "? ", "&x ", "*x", "!t ", "!!int ", "!!float ", "{",
         "}", "[", "]", ",", "'", '"', "|\n", ">\n", "#", "%YAML 1.1\n", "---\n", "...\n", "1e-4",
         "0x", "\\", "\t", "<<: ", "\u2028", "\x85", "\ufeff", "é", "~", "@", "`", "\x00", "0o9",
         "!!null ", "!!bool ", "!!timestamp ", "!!map ", "!!seq ", "!!str ", "_", "1", ".", "e9"]
    ),
    max_size=14,
).map("".join)  # fmt: skip


@settings(max_examples=600)
@given(st.text(max_size=40) | YAMLISH)
@example("!!float x: 1")
@example("a: !!int x")
@example("a: !!bool x")
@example("!!map [a]")
@example("!!seq {a: 1}")
@example("!!str [a]")
@example("%YAML 9.9\n--- a")
@example("%YAML x\n--- a")
@example("%TAG ! tag:\n--- a")
@example("a: \ud800")
@example("a: " + "9" * 5000)
@example("a: 1" + "0" * 5000 + ".0e5")
@example("a: 0x" + "f" * 9000)
def test_any_text_is_read_or_raises_our_error(text: str) -> None:
    try:
        content, mistakes = parse_text(text, "r.yaml")
        mistakes.refuse()
    except LoramergeError as error:
        assert str(error)
        return
    assert _plain(content)


def _plain(content: Any) -> bool:
    if isinstance(content, dict):
        return all(isinstance(k, str) and _plain(v) for k, v in content.items())
    if isinstance(content, list):
        return all(map(_plain, content))
    return content is None or type(content) in (str, int, float, bool)
