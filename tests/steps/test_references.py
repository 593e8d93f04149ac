"""`A:0.8` and its kin, as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramerge.adapter import Site
from loramerge.algebra.weights import Weight, weight_of
from loramerge.errors import LoramergeError, UsageError
from loramerge.steps.references import Reference, parse_reference


@pytest.mark.parametrize(
    ("text", "name", "written"),
    [
        ("A", "A", "1"), ("A:0.8", "A", "0.8"), ("A:1", "A", "1"), ("A:1.0", "A", "1"),
        ("A:-.5", "A", "-0.5"), ("A:+2e-1", "A", "0.2"), ("A:0.123456789", "A", "0.123456789"),
        ("C:\\x", "C:\\x", "1"), ("C:\\x:0.8", "C:\\x", "0.8"),
        ("C:/x.safetensors:2", "C:/x.safetensors", "2"),
        ("a:b", "a:b", "1"), ("a:b:0.5", "a:b", "0.5"), ("x_v1.5", "x_v1.5", "1"), ("0.5", "0.5", "1"),
        ("A:unet=0.8:te=0", "A", "unet=0.8:te=0"), ("A:0.7:te=0", "A", "0.7:te=0"),
        ("A:te=0:0.7", "A", "0.7:te=0"), ("<lora:A:0.8>", "A", "0.8"), ("  <lora:A:0.8>  ", "A", "0.8"),
        ("<lora:a b (v2):0.8>", "a b (v2)", "0.8"), ("A:1_0", "A:1_0", "1"), ("A:٣", "A:٣", "1"),
        ("http://x/y", "http://x/y", "1"),
    ],
)  # fmt: skip
def test_names_and_weights(text, name, written):
    found = parse_reference(text)
    assert (found.name, found.written) == (name, written)
    assert parse_reference(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "A", "A:0.8", "lora:A:0.5", "A:OUTALL", "A:1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,0.25",
        "A:unet=0.5:te=0", "A:0.7:te2=-1", "A:depth=0,1,0.5", "A:te=0.8:depth=0.1,1",
        "C:\\x:te1=0.1:unet=0.3:MIDD",
    ],
)  # fmt: skip
def test_the_text_of_a_reference_is_read_as_it(text):
    """A shorter form, such as `A:17 blocks` of tables, would be a name of another file."""
    found = parse_reference(text)
    again = parse_reference(found.text())
    assert (again.name, again.weight, again.adapter) == (found.name, found.weight, found.adapter)


def test_a_weight_that_only_a_file_states_has_its_words():
    found = Reference("A", Weight(0.5, match=(("*attn*", 0.0),)), "quiet attention")
    assert found.text() == "A:quiet attention"
    assert Reference("A", Weight(0.5, depth=(0.0, 1.0)), "both").text() == "A:both"


def test_depth():
    weight = parse_reference("A:te=0.25:depth=0,1,0.5").weight
    assert (weight.depth, weight.components["text_encoder"]) == ((0.0, 1.0, 0.5), 0.25)
    assert weight == weight_of({"te": 0.25, "depth": [0, 1, 0.5]}, "a recipe")


def test_components():
    weight = parse_reference("A:0.7:unet=0.5:te2=0").weight

    def of(component):
        return weight.of(Site((f"{component}.x",)))

    assert [of(c) for c in ("unet", "transformer", "text_encoder", "text_encoder_2")] == [
        0.5,
        0.5,
        0.7,
        0.0,
    ]


@pytest.mark.parametrize(
    "text",
    ["A:0.8:0.5", "A:1:1:0.5", "A:1,0,0", "A:nan", "A:-inf", "A:1e999", "", " ", ":1", "<lora::1>",
     "A:foo=1", "A:depth=x", "A:depth=1", "A:0.5:depth=0,1", "A:depth=0,1:OUTALL", "A:depth=0,nan",
     "A:unet=", "A:unet=a", "A:te=1:te1=2", "A:te=1:te=1", "A:0.5:te=0:0.3"],
)  # fmt: skip
def test_refusals(text):
    with pytest.raises(UsageError) as caught:
        parse_reference(text)
    assert caught.value.exit_code == 2


def test_labels():
    assert [parse_reference(t).label for t in ("x/y.safetensors:2", "x/v1.5", "C:\\x\\y.pt", "y")] == [
        "y", "v1.5", "y", "y",
    ]  # fmt: skip


@given(st.text())
def test_any_text_is_a_reference_or_refused(text):
    try:
        found = parse_reference(text)
    except LoramergeError as error:
        assert error.exit_code == 2
    else:
        assert found.name.strip()


FLOAT32 = (2 - 2**-23) * 2.0**127  # the largest weight there is


@given(
    st.text(st.characters(blacklist_characters=":<>=,", codec="utf-8"), min_size=1).filter(
        str.strip
    ),
    st.floats(-FLOAT32, FLOAT32),
)
def test_every_number_survives(name, weight):
    found = parse_reference(f"{name}:{weight!r}")
    assert (found.name, found.weight.default) == (name, weight)
    assert parse_reference(f"x:{found.written}").weight.default == weight


@pytest.mark.parametrize(("text", "meant"), [("zuzu:0,7", "zuzu:0.7"), ("a:b:-1,25", "a:b:-1.25")])
def test_a_decimal_comma_is_answered_with_a_point(text, meant):
    with pytest.raises(UsageError, match="a block vector cannot have 2 values") as caught:
        parse_reference(text)
    assert caught.value.hint == f"did you mean {meant}?"
