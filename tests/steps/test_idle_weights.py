"""A weight for what an adapter does not have does nothing, which is said wherever weights are given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loramerge as lm
from loramerge.adapter import Adapter
from loramerge.algebra.blocks import VECTORS
from loramerge.algebra.unmatched import unmatched, unmatched_blocks
from loramerge.algebra.weights import Weight
from loramerge.events import Warn, ignore
from loramerge.families import FAMILIES
from loramerge.families.components import COMPONENT_WORDS
from loramerge.page.doing import plan as page_plan
from loramerge.steps.idle_weights import warn_of_idle
from loramerge.steps.references import Reference, parse_reference
from tests.builders.deltas import adapter, low_rank, site

MODULES = (
    "unet.down_blocks.0.attentions.0.proj_in", "unet.mid_block.attentions.0.proj_in",
    "text_encoder.one", "text_encoder_2.one", "transformer.blocks.0.x",
)  # fmt: skip
WORDS = ("unet", "te", "te1", "te2", "te3", "transformer_2")


def told(text: str, *modules: str) -> list[str]:
    """The rules in a reference that match none of some modules."""
    return list(unmatched(parse_reference(f"a:{text}").weight, [site(name) for name in modules]))


@pytest.mark.parametrize(
    ("text", "modules", "expected"),
    [
        ("te=0", ["unet.x"], ["te=0"]),
        ("te=0", ["unet.x", "text_encoder_2.x"], []),
        ("unet=0.5:te1=1:te2=0", ["text_encoder.x"], ["unet=0.5", "te2=0"]),
        ("unet=0.5", ["transformer.x"], []),
        ("te1=0.5:te2=0.5", ["text_encoder.x"], ["te2=0.5"]),
        ("0", ["unet.x"], []),
        ("0.5:unet=1", ["unet.x"], []),
    ],
)
def test_rules_by_hand(text: str, modules: list[str], expected: list[str]) -> None:
    assert told(text, *modules) == expected


def test_a_word_and_a_part_of_it_with_another_value() -> None:
    """As a recipe has it: `te: 0.5, te2: 0.3`."""
    of_te = dict.fromkeys(COMPONENT_WORDS["te"], 0.5) | {"text_encoder_2": 0.3}
    weight = Weight(1.0, of_te)
    assert list(unmatched(weight, [site("text_encoder.x")])) == ["te2=0.3"]
    assert list(unmatched(weight, [site("text_encoder_2.x")])) == ["te=0.5"]
    assert list(unmatched(weight, [site("unet.x")])) == ["te=0.5", "te2=0.3"]


def test_patterns_are_quoted() -> None:
    weight = Weight(match=(("*attn9*", 0.5), ("*.x", 2.0)))
    assert list(unmatched(weight, [site("unet.x")])) == ["'*attn9*'"]


def changes_nothing(word: str, modules: list[str]) -> bool:
    """The definition: whatever value it has, no module has another weight."""
    weights = [Weight(1.0, dict.fromkeys(COMPONENT_WORDS[word], value)) for value in (0.25, 0.75)]
    return all(len({one.of(site(name)) for one in weights}) == 1 for name in modules)


def check_component(word: str, modules: list[str], found: list[str]) -> None:
    assert (found == [f"{word}=0.25"]) == changes_nothing(word, modules)
    assert found in ([], [f"{word}=0.25"])


@settings(max_examples=60, database=None, derandomize=True)
@given(st.sampled_from(WORDS), st.lists(st.sampled_from(MODULES), min_size=1, unique=True))
def test_a_component_is_told_just_where_it_changes_nothing(word: str, modules: list[str]) -> None:
    check_component(word, modules, told(f"{word}=0.25", *modules))


def each_component_alone(weight: Weight, modules: list[str]) -> Iterator[str]:
    """Wrong: `te` would be told for the third text encoder that hardly any model has."""
    there = {site(name).component for name in modules}
    yield from (f"{name}={value}" for name, value in weight.components.items() if name not in there)


def test_components_one_by_one_fail_the_law() -> None:
    weight = parse_reference("a:te=0.25").weight
    modules = ["text_encoder.one"]
    with pytest.raises(AssertionError):
        check_component("te", modules, list(each_component_alone(weight, modules)))


# ---- blocks


def of_sd15(*modules: str) -> Adapter:
    found = adapter({name: low_rank((8, 8), 2, n) for n, name in enumerate(modules)})
    sd15 = replace(lm.load("zuzu").info.detection, candidates=(FAMILIES["sd15"],))
    return replace(found, info=replace(found.info, detection=sd15))


MID = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
IN01 = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def vector(**own: float) -> tuple[float, ...]:
    return tuple(own.get(name, 1.0) for name in VECTORS[17])


@pytest.mark.parametrize(
    ("blocks", "modules", "expected"),
    [
        (vector(MID=0.0), [IN01], ["MID=0"]),
        (vector(MID=0.0), [IN01, MID], []),
        (vector(MID=0.0, IN01=0.5), [MID], []),  # a vector has a number for every block
        (vector(BASE=0.0), [IN01, MID], ["BASE=0"]),
        (vector(), [IN01], []),
    ],
)
def test_blocks(blocks: tuple[float, ...], modules: list[str], expected: list[str]) -> None:
    assert list(unmatched_blocks(Weight(blocks=blocks), of_sd15(*modules))) == expected


def test_depth_is_told_as_it_was_written() -> None:
    only_text = of_sd15("text_encoder.text_model.encoder.layers.0.mlp.fc1")
    assert list(unmatched_blocks(Weight(depth=(1.0, 0.5)), only_text)) == ["depth=1,0.5"]
    assert list(unmatched_blocks(Weight(depth=(1.0, 0.5)), of_sd15(MID))) == []


def test_blocks_that_are_refused_elsewhere_are_not_told_here() -> None:
    assert list(unmatched_blocks(Weight(blocks=vector(MID=0.0)), lm.load("zuzu"))) == []


def test_the_half_that_a_weight_chooses_is_there() -> None:
    """Wan 2.2: `transformer=0:transformer_2=1` says which transformer an adapter is for."""
    second = next(f for f in FAMILIES.values() if any(one.second_of for one in f.components))
    detection = replace(lm.load("zuzu").info.detection, candidates=(second,))
    one = adapter({"transformer.x": low_rank((8, 8), 2)})
    one = replace(one, info=replace(one.info, detection=detection))
    said: list[Any] = []
    warn_of_idle(parse_reference("a:transformer=0:transformer_2=1"), one, said.append)
    assert said == []
    warn_of_idle(parse_reference("a:te=1"), one, said.append)
    assert [one.text for one in said] == [
        "a: te=1 matches no module; its only module is of transformer"
    ]


# ---- where weights are given

TEXT = "a: te=0 matches no module; its 64 modules are of unet"


@pytest.mark.parametrize(
    "command",
    [("mix", "a:te=0"), ("bake", "-b", "base", "a:te=0"), ("diff", "a:te=0", "b"),
     ("merge", "base", "a:te=0", "--base", "base", "-o", "m.safetensors")],
    ids=lambda c: c[0],
)  # fmt: skip
def test_commands_warn_of_it(command: tuple[str, ...], run: Any) -> None:
    result = run.ok(*command, "-q")
    assert result.err == f"warning: {TEXT}\n"


def test_a_checkpoint_without_the_component(run: Any) -> None:
    result = run.ok("merge", "base", "base:te2=0", "--base", "base", "-o", "m.safetensors", "-q")
    assert "base: te2=0 matches no module; its " in result.err
    assert "are of text_encoder, unet" in result.err


def test_what_matches_is_not_told(run: Any) -> None:
    for weight in ("b:te=0", "b:unet=0.5:te1=0", "a:0.5", "a:OUTALL"):
        assert run.ok("mix", weight, "-q", "--force", "-o", "x.safetensors").err == ""


def test_files_of_weights(run: Any) -> None:
    Path("w.yaml").write_text("match: {'*attn9*': 0.5}\n")
    err = run.ok("mix", "a", "--weights", "a=w.yaml", "-q").err
    assert "a: '*attn9*' matches no module; its 64 modules are of unet, such as unet." in err


RECIPE = "version: 1\nsteps:\n  x:\n    mix: {adapters: ['a:te=0', b]}\n    save: o.safetensors\n"


def test_recipes_plans_python_and_the_page(run: Any) -> None:
    Path("r.yaml").write_text(RECIPE)
    assert f"x: {TEXT}" in run.ok("plan", "r.yaml").out
    assert f"warning: {TEXT}" in run.ok("run", "r.yaml").err
    heard: list[Any] = []
    lm.mix(["a:te=0", "b"], notify=heard.append)
    assert [one.text for one in heard if isinstance(one, Warn)] == [TEXT]
    values = {"adapters": ["a:te=0", "b"]}
    found = page_plan.do({"verb": "mix", "values": values, "relations": True}, ignore)
    assert found["warnings"] == [TEXT] and TEXT not in found["remarks"]
    found = page_plan.do(
        {"verb": "bake", "values": {"base": "base", "adapters": ["a:te=0"]}}, ignore
    )
    assert found["warnings"] == [TEXT]


def test_a_weight_that_is_one_number_is_not_looked_at() -> None:
    said: list[Any] = []
    warn_of_idle(Reference("a", Weight(0.5)), adapter({}), said.append)
    assert said == []
