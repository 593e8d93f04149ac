"""A change that is unusually strong is described with the number that is usual, and never refused."""

from __future__ import annotations

import pytest

import loramerge as lm
from loramerge.algebra.weights import Weight
from loramerge.families import FAMILIES
from loramerge.steps.references import Reference
from loramerge.steps.strength import strong_change, strong_weights


@pytest.mark.parametrize(
    "weight",
    [Weight(7.0), Weight(-3.0), Weight(1.0, {"unet": 10.0}), Weight(blocks=(0.0,) * 16 + (5.0,)),
     Weight(depth=(0.0, 4.0)), Weight(match=(("*attn*", 2.5),))],
)  # fmt: skip
def test_a_large_weight_is_described(weight):
    (event,) = strong_weights([Reference("a"), Reference("b", weight)])
    assert "b at weight" in event and "0.3 to 1.2" in event
    assert "a at weight" not in event


@pytest.mark.parametrize("weight", [0.0, 0.7, 1.0, 1.5, -1.0, 2.0])
def test_usual_weights_are_not(weight):
    assert list(strong_weights([Reference("a", Weight(weight))])) == []


def test_a_mix_is_compared_with_its_strongest_input():
    said: list[object] = []
    lm.mix(["zuzu:7", "polka:0.5"], notify=lambda event: said.append(getattr(event, "text", "")))
    (text,) = (text for text in said if "usual weights" in str(text))
    alone = [lm.inspect(name, deep=True).norm for name in ("zuzu", "polka")]
    both = lm.inspect(lm.mix(["zuzu:7", "polka:0.5"]), deep=True).norm
    assert f"{both / max(alone):.3g} times as much" in str(text) and "zuzu at weight 7" in str(text)


def test_plan_says_it_before_anything_runs(run):
    text = "version: 1\nsteps:\n  x:\n    mix: {adapters: ['a:7', b]}\n    save: o.safetensors\n"
    (run.folder / "r.yaml").write_text(text)
    assert "x: a at weight 7: usual weights are 0.3 to 1.2" in run.ok("plan", "r.yaml").out


def test_a_change_is_compared_with_what_is_usual_in_its_family():
    (event,) = strong_change(3.3, "tiny")
    assert "330 %" in event and "31 % to 33 % (from 2 adapters)" in event
    (event,) = strong_change(0.5, "sdxl")
    assert "50 % of the norm" in event and "at weight 1" not in event
    assert list(strong_change(0.49, "tiny")) == list(strong_change(None, "tiny")) == []


@pytest.mark.parametrize("name", ["zuzu", "polka"])
def test_the_usual_range_is_what_was_measured(name, tmp_path):
    low, high, adapters = FAMILIES["tiny"].usual_change or (1.0, 0.0, 0)
    assert adapters == 2 and low <= lm.bake("tiny", name, tmp_path / "baked").change <= high


def test_bake_says_both(run):
    found = run.ok("bake", "--base", "tiny", "zuzu:7", "-o", "strong")
    assert "zuzu at weight 7" in found.err and "size of the change is 231 %" in found.err
    assert "usual" not in run.ok("bake", "--base", "tiny", "zuzu", "-o", "baked").err


def test_many_usual_weights_can_be_too_much_together():
    def said(adapters: list[str], **options: object) -> list[str]:
        found: list[str] = []
        lm.mix(
            adapters, notify=lambda event: found.append(str(getattr(event, "text", ""))), **options
        )
        return [text for text in found if "times as much" in text]

    (text,) = said(["zuzu"] * 4)
    assert "4 times as much as its strongest input" in text
    assert "0.25 times these weights would make it as strong" in text
    (text,) = said(["zuzu", "zuzu:-0.99"])
    assert "0.01 times as much" in text and "cancel" in text
    assert said(["zuzu", "polka"]) == said(["zuzu"] * 4, scale="norm-match") == []
    assert said(["zuzu", "polka:-1"]) == []
    (text,) = said(["zuzu", "polka"], method="dare", density=0.02, scale="literal")
    assert "times these weights" in text


def test_a_merge_that_changes_too_much_is_described(run):
    found = run.ok("merge", "tiny-outlined:40", "tiny-outlined", "--base", "tiny", "-o", "strong")
    assert "the size of the change is" in found.err
