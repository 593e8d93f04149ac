"""A parameter of an operator takes values per module in the form of a weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapter import Adapter, Site
from loramerge.algebra.method import Method
from loramerge.algebra.mix import mix
from loramerge.algebra.operators import OPERATORS, find_operator
from loramerge.algebra.rules import rules_content, rules_of
from loramerge.algebra.weights import Weight
from loramerge.errors import UsageError
from loramerge.steps.rules import is_rules, rules_in_text
from tests.builders.deltas import adapter, dense, low_rank, site

NAMES = ("unet.a.attn.q", "unet.b.ff", "text_encoder.a.fc", "unet.b.attn.q")


def pair() -> list[tuple[Adapter, Weight]]:
    found = [
        adapter({name: low_rank((9, 8), 3, 7 * i + n) for n, name in enumerate(NAMES)})
        for i in range(2)
    ]
    return [(found[0], Weight(0.7)), (found[1], Weight(0.4))]


def mixed(method: str, **settings: Any) -> dict[Site, Any]:
    made = Method.of(find_operator(method), settings)
    return dense(mix(pair(), method=made, threads=1)[0])


RULES = {"default": 0.5, "te": 0.9, "match": {"*attn*": 0.2, "unet.b.*": 0.7}}
CHOSEN = dict(zip(NAMES, (0.2, 0.7, 0.9, 0.7), strict=True))  # the last pattern that matches


def test_each_module_has_its_own_value() -> None:
    found = mixed("ties", density=RULES)
    for name, value in CHOSEN.items():
        alone = mixed("ties", density=value)
        assert np.array_equal(found[site(name)], alone[site(name)]), name
    assert not np.array_equal(found[site(NAMES[0])], mixed("ties", density=0.5)[site(NAMES[0])])


@pytest.mark.parametrize("one", OPERATORS.shipped(), ids=lambda one: one.name)
def test_any_parameter_of_any_operator_takes_rules(one: Any) -> None:
    """One that says the same everywhere gives the same."""
    values: dict[str, Any] = {}
    for parameter in one.own_parameters:
        rules = {"default": parameter.default, "match": {"*attn*": parameter.default}}
        values[parameter.name] = rules
        rules_of(rules, parameter)
    plain, ruled = mixed(one.name), mixed(one.name, **values)
    assert plain.keys() == ruled.keys()
    assert all(np.array_equal(plain[place], ruled[place]) for place in plain)


def test_words_and_whole_numbers_are_chosen_too() -> None:
    found = mixed("ties", elect={"match": {"*ff": "equal"}}, divide_by={"te": "weights"})
    assert np.array_equal(found[site("unet.b.ff")], mixed("ties", elect="equal")[site("unet.b.ff")])
    other = mixed("ties", divide_by="weights")[site("text_encoder.a.fc")]
    assert np.array_equal(found[site("text_encoder.a.fc")], other)
    seeds = mixed("dare", seed={"default": 3, "unet": 4})
    assert np.array_equal(seeds[site(NAMES[0])], mixed("dare", seed=4)[site(NAMES[0])])
    assert np.array_equal(seeds[site(NAMES[2])], mixed("dare", seed=3)[site(NAMES[2])])


def test_what_no_rule_names_has_the_default_of_the_operator() -> None:
    found = Method.of(find_operator("ties"), {"density": {"te": 0.9}}).on(pair()[0][0])
    values = [found.at(site(name)).parameters.density for name in NAMES]
    assert values == [0.2, 0.2, 0.9, 0.2]


def test_blocks_and_depth() -> None:
    zuzu = lm.load("zuzu")
    vector = [0.1, *[0.3] * 12, 0.4, *[0.5] * 12]

    def found(rules: dict[str, Any]) -> set[float]:
        method = Method.of(find_operator("ties"), {"density": rules}).on(zuzu)
        return {method.at(place).parameters.density for place in zuzu.deltas}

    assert found({"blocks": vector}) == {0.3, 0.4, 0.5}
    assert found({"blocks": vector, "match": {"*": 0.9}}) == {0.9}
    depth = found({"depth": [0.2, 0.8]})
    assert 0.2 <= min(depth) < 0.5 < max(depth) <= 0.8 and len(depth) > 2
    with pytest.raises(UsageError, match="names blocks that tiny lacks"):
        found({"preset": "ALL"})


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"te": 1.5}, "density (te) cannot be 1.5"),
        ({"default": 0}, "density cannot be 0"),
        ({"match": {"*attn*": "much"}}, "density (match *attn*) cannot be 'much'"),
        ({"blocks": [0.5] * 16 + [2]}, "density (block OUT11) cannot be 2"),
        ({"depth": [0.5, 3]}, "density (depth) cannot be 3"),
        ({"blocks": [0.5] * 3}, "a block vector cannot have 3 values"),
        ({"teh": 0.5}, "'teh' is not a field of a value"),
        ({"preset": "OUTALL"}, "cannot be 0"),
    ],
)
def test_an_error_names_the_rule(rules: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Method.of(find_operator("ties"), {"density": rules})
    assert words in str(caught.value)


def test_values_that_cannot_be_interpolated() -> None:
    with pytest.raises(UsageError, match="depth interpolates"):
        Method.of(find_operator("dare"), {"seed": {"depth": [1, 2]}})


def test_modules_that_are_stored_as_one_need_one_value() -> None:
    method = Method.of(find_operator("ties"), {"density": {"match": {"*.k": 0.9}}})
    method = method.on(pair()[0][0])
    with pytest.raises(UsageError, match="stored as one, but their values of density differ"):
        method.at(Site(("unet.a.q", "unet.a.k"), "weight"))


def test_it_says_where_each_value_is_used() -> None:
    rules = {**RULES, "match": {**RULES["match"], "*nothing*": 0.3}}  # type: ignore[dict-item]
    first = pair()[0][0]
    method = Method.of(find_operator("ties"), {"density": rules}).on(first)
    counted, none = method.described(first.deltas)
    assert counted == "density: 0.2 in 1, 0.7 in 2, 0.9 in 1 of 4 modules"
    assert none == "density: '*nothing*' matches no module"


# ---- as the command line has them


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("0.5:te=0.9:*attn*=0.2:unet.b.*=0.7", RULES),
        ("te=0.9", {"te": 0.9}),
        ("0.1,0.2,0.3", {"blocks": [0.1, 0.2, 0.3]}),
        ("OUTALL:te=2", {"preset": "OUTALL", "te": 2}),
        ("depth=0.2,0.8", {"depth": [0.2, 0.8]}),
        ("weighted:unet=equal", {"default": "weighted", "unet": "equal"}),
    ],
)
def test_texts(text: str, content: dict[str, Any]) -> None:
    assert is_rules(text) and rules_in_text(text, "density") == content


def test_a_text_is_what_is_recorded_and_shown() -> None:
    (density,) = (p for p in find_operator("ties").own_parameters if p.name == "density")
    text = "0.5:unet=0.9:*attn*=0.2"
    assert rules_of(rules_in_text(text, "density"), density).text().startswith("0.5:unet=0.9")
    assert rules_content({"default": 0.2}, density) == 0.2
    assert not any(map(is_rules, ("0.5", "count", "1e-3")))


@pytest.mark.parametrize(
    ("text", "words"),
    [("0.5:tee=0.3", "'tee' is not a component"), ("0.5:0.6", "two values for default"),
     ("te=0.5:te=0.6", "two values for te")],
)  # fmt: skip
def test_texts_that_cannot_be_read(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        rules_in_text(text, "density")
    assert words in str(caught.value)


def test_command_recipe_file_and_python_say_the_same(run: Any) -> None:
    (run.folder / "d.yaml").write_text("default: 0.5\nunet: 0.9\nmatch: {'*attn*': 0.2}\n")
    text = "0.5:unet=0.9:*attn*=0.2"
    run.ok("mix", "a", "b", "--method", "ties", "--density", text, "-o", "text.safetensors",
           "--save-recipe", "saved.yaml")  # fmt: skip
    run.ok("mix", "a", "b", "--method", "ties", "--density", "d.yaml", "-o", "file.safetensors")
    (run.folder / "r.yaml").write_text(
        "version: 1\nsteps:\n  x:\n    mix:\n      adapters: [a, b]\n      method: ties\n"
        "      density: {default: 0.5, unet: 0.9, match: {'*attn*': 0.2}}\n    save: r.safetensors\n"
    )
    plan = run.ok("plan", "r.yaml").out
    assert "density: 0.2 in" in plan
    run.ok("run", "r.yaml")
    made = lm.mix(["a", "b"], method="ties", density={"default": 0.5, "unet": 0.9,
                                                     "match": {"*attn*": 0.2}})  # fmt: skip
    lm.save(made, "python.safetensors")
    read = [(run.folder / f"{n}.safetensors").read_bytes() for n in ("text", "file", "r", "python")]
    assert len(set(read)) == 1
    assert "same file" in run.ok("run", "text.safetensors").out
    run.ok("run", "saved.yaml", "--force")
    assert (run.folder / "text.safetensors").read_bytes() == read[0]


def test_mistakes_in_a_recipe_are_found_together(run: Any) -> None:
    (run.folder / "r.yaml").write_text(
        "version: 1\nsteps:\n  x:\n    mix:\n      adapters: [a, b]\n      method: ties\n"
        "      density: {unet: 1.5}\n      elect: {te: loud}\n    save: r.safetensors\n"
    )
    result = run("plan", "r.yaml")
    assert result.code == 6
    assert (
        "density (unet) cannot be 1.5" in result.err and "elect (te) cannot be 'loud'" in result.err
    )
    result = run(
        "mix", "a", "b", "--method", "ties", "--density", "unet=1.5", "-o", "x.safetensors"
    )
    assert result.code == 2 and "density (unet) cannot be 1.5" in result.err
    assert not (run.folder / "x.safetensors").exists()
