"""Every mistake a recipe can have: where it is said to be, and what is said."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from loramerge.errors import RecipeError, UsageError
from loramerge.recipe.recipe import load_recipe, recipe_of

GOOD = """
version: 1
vars: {w: 0.5}
inputs:
  a: a.safetensors
  b: {path: b.safetensors}
steps:
  blend:
    mix: {adapters: ["a:${w}", b]}
  small:
    resize: {adapter: blend, rank: 2}
    save: out/small.safetensors
"""
MIX = "version: 1\nsteps:\n  m:\n    mix: {adapters: [a.safetensors]}\n    save: m.safetensors\n"


def marked(text: str) -> tuple[str, list[str]]:
    """A text without its § signs, and the line:column where each stood."""
    places = []
    lines = []
    for number, line in enumerate(dedent(text).strip("\n").split("\n"), 1):
        while "§" in line:
            column = line.index("§")
            places.append(f"{number}:{column + 1}")
            line = line.replace("§", "", 1)
        lines.append(line)
    return "\n".join(lines) + "\n", places


def mistakes_of(path: Path) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert caught.value.exit_code == 6
    return caught.value.mistakes


def one(step: str) -> str:
    """A recipe whose only saved step is given, two inputs and a step to use."""
    return f"""
version: 1
vars: {{w: 0.5}}
inputs: {{alpha: a.safetensors, beta: b.safetensors}}
steps:
  first:
    mix: {{adapters: [alpha, beta]}}
  use:
    resize: {{adapter: first, rank: 2}}
    save: use.safetensors
{step}
"""


def saved(step: str) -> str:
    """The same with a step x that saves."""
    return one(f"  x: {{{step}, save: x.safetensors}}\n")


CASES = {
    "version absent": ("§steps:\n  m: {mix: {adapters: [a.safetensors]}, save: m.safetensors}",
                       "no version (add version: 1)"),
    "version unknown": (MIX.replace("1", "§2", 1), "version 2 is not known"),
    "version a switch": (MIX.replace("1", "§true", 1), "version True is not known"),
    "version a text": (MIX.replace("1", "§'1'", 1), "version '1' is not known"),
    "word unknown": (MIX + "§sweeps: {}\n", "recipes have no 'sweeps' (did you mean sweep?)"),
    "steps absent": ("§version: 1", "steps must be a mapping of names to steps"),
    "steps empty": ("version: 1\n§steps: {}", "steps must be a mapping of names to steps"),
    "steps a list": ("version: 1\n§steps: [a]", "steps must be a mapping of names to steps"),
    "no mapping": ("§- a\n- b", "a recipe must be a mapping with version and steps"),
    "vars a list": (MIX + "§vars: [1]\n", "vars must be a mapping of names to values"),
    "vars named badly": (MIX + "vars: {§1st: 1}\n", "'1st' is not a valid name of a variable"),
    "vars from vars": (MIX + "vars: {x: 1, y: §'${x}'}\n", "the value of y cannot use another variable"),
    "sweep over vars": (MIX + "vars: {x: 1}\n§sweep: {x: [1]}\n", "the variable 'x' is also in vars"),
    "sweep of nothing": (MIX + "sweep: {§x: []}\n", "this list has no values"),
    "sweep of other words": (MIX + "sweep: {§x: {fils: '*'}}\n", "{files: PATTERN}"),
    "sweep no sweep": (MIX + "§sweep: 3\n", "sweep must be a mapping of variables"),
    "case incomplete": (MIX + "sweep: [{x: 1, y: 2}, §{x: 2}]\n", "this case has no value for y"),
    "key twice": (MIX + "§version: 1\n", "'version' occurs twice; first in line 1"),
    "step twice": (MIX + "  §m: {}\n", "'m' occurs twice; first in line 3"),
    "a tag": (MIX + "vars: {x: §!mine 3}\n", "values of the type !mine are not allowed"),
    # inputs
    "inputs a list": (MIX + "inputs: [a]\n", "inputs must be a mapping of names to paths"),
    "input of a number": (MIX + "inputs: {§x: 3}\n", "the input 'x' must be a path, or a mapping"),
    "input without path": (MIX + "inputs: {§x: {sha256: " + "a" * 64 + "}}\n", "'x' needs a path"),
    "input not there": (MIX + "inputs: {x: §c.safetensors}\n", "the input 'x' was not found"),
    "input word": (MIX + "inputs: {x: {path: a.safetensors, §sha: q}}\n", "did you mean sha256?"),
    "input digest": (MIX + "inputs: {x: {path: a.safetensors, sha256: §q}}\n", "64 hexadecimal"),
    "input changed": (MIX + "inputs: {x: {path: a.safetensors, §sha256: " + "a" * 64 + "}}\n",
                      "'x' has changed: a.safetensors has sha256"),
    "input named badly": (MIX + "inputs: {§'x:1': a.safetensors}\n", "'x:1' is not a valid name"),
    # steps
    "step a text": (
        one("  §x: resize\n"),
        "a step must be a mapping with one of bake, card, compare, convert, diff, extract, heal, "
        "inspect, merge, mix, preview, resize, train",
    ),
    "step empty": (one("  §x: {}\n"), "a step does exactly one thing, and 'x' does nothing"),
    "step only saves": (one("  §x: {save: x.safetensors}\n"), "a step does exactly one thing"),
    "step of two things": (one("  §x: {mix: {adapters: [alpha]}, resize: {adapter: alpha, rank: 1}}\n"),
                           "a step does exactly one thing, and 'x' does 2"),
    "verb unknown": (one("  x: {§resise: {adapter: alpha}}\n"), "did you mean resize?"),
    "word beside a verb": (saved("§saves: x, mix: {adapters: [alpha]}"), "did you mean save?"),
    "verb of a text": (one("  x: {§mix: alpha}\n"), "mix takes a mapping of parameters to values"),
    "step named badly": (one("  §'x/y': {mix: {adapters: [alpha]}, save: x.safetensors}\n"),
                         "'x/y' is not a valid name of a step"),
    "step named as an input": (one("  §alpha: {mix: {adapters: [beta]}, save: x.safetensors}\n"),
                               "an input has the name 'alpha', too"),
    "parameter unknown": (saved("resize: {adapter: alpha, §rnak: 3, rank: 1}"),
                          "resize has no 'rnak' (did you mean rank?)"),
    "parameter of the command line": (saved("mix: {adapters: [alpha], §output: q}"),
                                      "mix has no 'output'"),
    "parameter absent": (saved("§resize: {rank: 3}"), "resize needs 'adapter'"),
    "number a text": (saved("resize: {adapter: alpha, rank: §'3'}"),
                      "rank: expected a valid integer, found '3'"),
    "number a fraction": (saved("resize: {adapter: alpha, rank: §2.5}"),
                          "rank: expected a valid integer, found 2.5"),
    "number a switch": (saved("resize: {adapter: alpha, rank: §true}"), "found true"),
    "number too small": (saved("resize: {adapter: alpha, rank: §0}"),
                         "rank: expected greater than or equal to 1, found 0"),
    "number too large": (saved("resize: {adapter: alpha, energy: §1.5}"),
                         "less than or equal to 1, found 1.5"),
    "a choice": (saved("mix: {adapters: [alpha], method: §linaer}"),
                 "method: expected 'linear'"),
    "a variable of the wrong type": (saved("resize: {adapter: alpha, rank: §'${w}'}"),
                                     "found 0.5"),
    "no criterion": (saved("§resize: {adapter: alpha}"), "a rank option"),
    "two targets": (saved("§mix: {adapters: [alpha], to: kohya, for: comfyui}"),
                    "only one of them can choose the dialect"),
    "a dialect": (saved("§mix: {adapters: [alpha], to: kohia}"),
                  "did you mean kohya?"),
    "a size": (saved("§resize: {adapter: alpha, max_size: 10 bananas}"),
               "is not a size"),
    "no adapters": (saved("§mix: {adapters: []}"), "at least one adapter"),
    "nothing to bake": (saved("§bake: {base: base.safetensors}"),
                        "bake needs an adapter"),
    "a dtype without a file": (one("  x: {§mix: {adapters: [alpha], dtype: float16}}\n"
                                   "  y: {mix: {adapters: [x]}, save: y.safetensors}\n"),
                               "this step does not write one (add save: FILE, or leave them out)"),
    # references
    "a name": (saved("mix: {§adapters: [frist]}"),
               "'frist' is not a step, an input or a file (did you mean first?)"),
    "a name of an input": (saved("mix: {§adapters: [aplha]}"),
                           "did you mean alpha?"),
    "two weights": (saved("mix: {adapters: [§'alpha:0.5:0.7']}"),
                    "gives two weights"),
    "a weight": (saved("mix: {adapters: [§{adapter: alpha, weight: heavy}]}"),
                 "weight"),
    "a weight of 13 blocks": (one("  x: {mix: {adapters: [§{adapter: alpha, weight: {blocks: ["
                                  + "1, " * 12 + "1]}}]}, save: x.safetensors}\n"), "13 values"),
    "a reference's word": (saved("mix: {adapters: [§{adaptor: alpha}]}"),
                           "did you mean adapter?"),
    "a reference of nothing": (saved("mix: {adapters: [§{weight: 1}]}"),
                               "a reference must have exactly one of adapter and each"),
    "a reference of a number": (saved("mix: {adapters: [§3]}"),
                                "expected a name"),
    "adapters no list": (saved("mix: {adapters: §alpha}"), "valid list"),
    "each of one": (saved("resize: {§adapter: {each: first}, rank: 2}"), "each"),
    "each of no step": (saved("mix: {§adapters: [{each: frist}]}"),
                        "there is no step 'frist' (did you mean first?)"),
    "a variable": (saved("mix: {adapters: [§'alpha:${ww}']}"),
                   "there is no variable 'ww' (did you mean w?)"),
    "a variable in save": (one("  x: {mix: {adapters: [alpha]}, save: §'${ww}.safetensors'}\n"),
                           "there is no variable 'ww'"),
    # the graph
    "a cycle": (one("  §x: {mix: {adapters: [y]}}\n"
                    "  y: {resize: {adapter: x, rank: 1}, save: y.safetensors}\n"),
                "steps need each other: x → y → x"),
    "a step that needs itself": (one("  §x: {mix: {adapters: [x]}, save: x.safetensors}\n"),
                                 "steps need each other: x → x"),
    "a step unused": (one("  §x: {mix: {adapters: [alpha]}}\n"), "nothing uses the step 'x'"),
    "one path twice": (one("  x: {mix: {adapters: [alpha]}, save: §use.safetensors}\n"),
                       "'x' and 'use' save to the same file"),
    "one path, otherwise": (one("  x: {mix: {adapters: [alpha]}, save: §./d/../use.safetensors}\n"),
                                        "'x' and 'use' save to the same file"),
    "onto an input": (one("  x: {mix: {adapters: [beta]}, save: §a.safetensors}\n"),
                      "this would replace 'alpha', which the recipe reads"),
    "a bake without a file": (one("  §x: {bake: {base: base.safetensors, adapters: [alpha]}}\n"),
                              "bake always writes a file, but the step names none (add save: FILE)"),
    "a report as an adapter": (one("  y: {inspect: {files: [alpha]}}\n"
                                   "  x: {mix: {§adapters: [y]}, save: x.safetensors}\n"),
                               "adapters takes an adapter, but the step 'y' gives a report"),
    "a checkpoint as an adapter": (one("  y: {bake: {base: base.safetensors, adapters: [alpha]}, "
                                       "save: y.safetensors}\n"
                                       "  x: {mix: {§adapters: [y]}, save: x.safetensors}\n"),
                                   "the step 'y' gives a checkpoint"),
    "an adapter as a base": (saved("bake: {§base: first, adapters: [alpha]}"),
                             "base takes a checkpoint, but the step 'first' gives an adapter"),
    "a report saved as weights": (one("  x: {inspect: {files: [alpha]}, save: §x.safetensors}\n"),
                                  "inspect writes a JSON file, whose name ends in .json (save: x.json)"),
    "a file for a folder": (one("  x: {mix: {adapters: [alpha], to: peft}, save: §x.safetensors}\n"),
                            "a PEFT adapter is a folder"),
    "a folder for a file": (one("  x: {mix: {adapters: [alpha], to: kohya}, save: §x}\n"),
                            "adapters are written as safetensors files"),
    "a save of a number": (one("  x: {mix: {adapters: [alpha]}, save: §3}\n"),
                         "save takes the name of a file, found 3"),
    "cases onto one path": (one("  x: {mix: {adapters: ['alpha:${v}']}, save: §x.safetensors}\n"
                                "sweep: {v: [1, 2]}\n"),
                            "save to the same file (use its variables in the name: ${v})"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_mistake_is_found_where_it_stands(name: str, recipe, run) -> None:
    """One mistake, one line, at the right place, in the right words; and nothing is written."""
    text, places = marked(CASES[name][0])
    path = recipe(text)
    found = mistakes_of(path)
    assert len(found) == 1, found
    assert CASES[name][1] in found[0]
    if places:
        assert found[0].startswith(f"{path}:{places[0]}: "), (found[0], places)
    run.refused(6, "run", path, says="1 mistake, and nothing was done")
    run.refused(6, "plan", path, says="1 mistake, and nothing was done")


def test_the_good_recipe_has_none(recipe, work) -> None:
    assert list(load_recipe(recipe(GOOD)).tasks) == ["blend", "small"]


SEVEN = """
version: 1
vars: {w: 0.5}
inputs:
  a: a.safetensors
  gone: §nowhere.safetensors
steps:
  §one:
    mix: {adapters: [two]}
  two:
    resize: {adapter: one, rank: 3}
  three:
    resize: {adapter: a, §rnk: 3, rank: 2}
    save: x.safetensors
  four:
    resize: {adapter: a, rank: §high}
    save: four.safetensors
  five:
    mix: {adapters: [§"a:${ww}"]}
    save: §x.safetensors
  §six:
    mix: {adapters: [a, a]}
"""


def test_seven_different_mistakes_are_seven_lines(recipe, run) -> None:
    text, places = marked(SEVEN)
    path = recipe(text)
    found = mistakes_of(path)
    assert [line.split(": ")[0] for line in found] == [f"{path}:{place}" for place in places]
    words = (
        "was not found", "one → two → one", "did you mean rank?", "expected a valid integer",
        "there is no variable 'ww' (did you mean w?)", "'five' and 'three' save to the same file",
        "nothing uses the step 'six'",
    )  # fmt: skip
    for line, said in zip(found, words, strict=True):
        assert said in line
    result = run.refused(6, "run", "recipe.yaml", says="7 mistakes, and nothing was done")
    for place in places:
        assert f"recipe.yaml:{place}: " in result.err
    assert not list(run.folder.glob("*.json"))


def test_mistakes_of_different_steps_do_not_hide_each_other(recipe, work) -> None:
    """Any two single mistakes of steps, put into one recipe, are both reported."""
    chosen = [n for n in CASES if "\n  x: " in CASES[n][0] and "y:" not in CASES[n][0]
              and "sweep" not in CASES[n][0] and
              "use" not in CASES[n][0].split("\n  x: ")[1]]  # fmt: skip
    text, words = one(""), []
    for index, name in enumerate(chosen):
        step = CASES[name][0].split("\n  x: ")[1].replace("§", "").strip()
        step = step.replace("save: x.safetensors", f"save: x{index}.safetensors")
        text += f"  s{index}: {step}\n"
        words.append(
            CASES[name][1].replace("'x'", f"'s{index}'").replace("x.json", f"x{index}.json")
        )
    found = mistakes_of(recipe(text.replace("\n\n", "\n")))
    assert len(chosen) > 20
    for name, said in zip(chosen, words, strict=True):
        assert any(said in line for line in found), (name, found)


def test_mistakes_of_a_recipe_that_is_no_text_are_named_by_their_path() -> None:
    content = {"version": 1, "steps": {"x": {"resize": {"adapter": "q", "rank": 0}}}}
    with pytest.raises(RecipeError) as caught:
        recipe_of(content, Path())
    assert any(line.startswith("steps.x.resize.rank") for line in caught.value.mistakes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "ww=1"), "no variable 'ww'"), (("--input", "aa=x"), "no input 'aa'"),
        (("--set", "w"), "is not NAME=VALUE"), (("--set", "w=1", "--set", "w=2"), "twice"),
        (("--set", "=1"), "is not NAME=VALUE"), (("--output", "x"), "--output is only for repeating"),
    ],
)  # fmt: skip
def test_mistakes_of_the_command_line(arguments, words: str, recipe, run) -> None:
    recipe(GOOD)
    run.refused(2, "run", "recipe.yaml", *arguments, says=words)


def test_names_from_outside_are_checked_in_python_too(recipe, work) -> None:
    with pytest.raises(UsageError, match="did you mean w"):
        load_recipe(recipe(GOOD), set={"ww": 1})


def test_no_such_recipe(run) -> None:
    run.refused(3, "run", "absent.yaml", says="there is no such recipe")
