"""verify: recipes in headers, adapters given, and words for what is wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import loramerge as lm
from tests.builders.world import rewrite, tune

KEYS = {
    "outputs", "path", "source", "verdict", "holds", "base", "notes", "twice", "adapters", "survived",
    "survived_expected", "unexplained", "rounding", "hidden_by_rounding", "dtypes", "faults", "missing",
    "elsewhere", "one_side",
}  # fmt: skip


@pytest.fixture
def baked(run):
    """The base with a:0.7 and b:0.4."""
    run.ok("bake", "-b", "base.safetensors", "a:0.7", "b:0.4", "-o", "baked.safetensors")
    return run


def test_a_bake_holds_its_recipe(baked):
    shown = baked.ok("verify", "baked.safetensors").out
    assert "It holds what it should." in shown and "a is in it at the weight 0.7." in shown
    assert "All of the change is there, apart from rounding to float16." in shown
    assert "least squares" not in shown and "unexplained" in shown
    found = baked.ok("verify", "baked.safetensors", "--json").json
    assert set(found) == KEYS and found["holds"] is True and found["source"] == "bake"
    assert [one["strength"] for one in found["adapters"]] == [0.7, 0.4]
    assert found["survived"] == pytest.approx(found["survived_expected"], abs=1e-4)


def test_strengths_are_found(baked):
    given = ("verify", "baked.safetensors", "-b", "base.safetensors")
    found = baked.ok(*given, "-l", "a", "-l", "b", "--json").json
    assert [one["strength"] for one in found["adapters"]] == pytest.approx([0.7, 0.4], rel=1e-3)
    wrong = baked(*given, "-l", "a:0.35", "-l", "b:0.4")
    assert wrong.code == 1 and "least squares" in wrong.out
    assert "a is in it at strength 0.7, 2 times the weight 0.35" in wrong.out
    alone = baked(*given, "-l", "a:0.7")
    assert alone.code == 1 and "no adapter changes" in alone.out  # b is in it, too


def test_an_adapter_that_is_not_in_it(run):
    tune(run.folder / "base.safetensors", run.folder / "tuned.safetensors")
    found = run("verify", "tuned.safetensors", "-b", "base.safetensors", "-l", "a")
    assert found.code == 1 and "a is not in it" in found.out


@pytest.mark.long_tail
def test_weights_by_component_and_block(run):
    weights = "unet=0.5:te=0.9"
    run.ok("bake", "-b", "base.safetensors", f"b:{weights}", "-o", "parts.safetensors")
    assert run.ok("verify", "parts.safetensors").code == 0
    found = run.ok("verify", "parts.safetensors", "-b", "base.safetensors", "-l", f"b:{weights}")
    assert "It holds what it should." in found.out
    other = run("verify", "parts.safetensors", "-b", "base.safetensors", "-l", "b:0.5")
    assert other.code == 1 and "text_encoder" in other.out


def test_a_damaged_module_is_named(baked):
    names = []

    def spoil(arrays, _):
        name = next(n for n in arrays if "middle_block" in n and n.endswith("attn1.to_q.weight"))
        names.append(name)
        arrays[name] = np.array(arrays[name]) * np.float16(1.5)

    rewrite(baked.folder / "baked.safetensors", baked.folder / "spoilt.safetensors", spoil)
    found = baked("verify", "spoilt.safetensors")
    assert found.code == 1 and "something else than the adapters" in found.out
    assert "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q" in found.out


@pytest.mark.long_tail
def test_a_double_bake_is_told_by_the_header(run):
    run.ok("bake", "-b", "base.safetensors", "a:0.5", "-o", "once.safetensors")
    run.ok("bake", "-b", "once.safetensors", "a:0.5", "--allow-again", "-o", "twice.safetensors")
    found = run("verify", "twice.safetensors")
    assert "a.safetensors was baked more than once: 0.5, 0.5, together 1" in found.out
    again = run("verify", "twice.safetensors", "-b", "base.safetensors", "-l", "a:0.5")
    assert again.code == 1 and "as if it had been baked twice" in again.out


@pytest.mark.parametrize(
    "command",
    [
        ("mix", "a:0.7", "b:0.3"),
        ("mix", "a:0.7", "b:0.3", "--rank", "3"),
        ("resize", "a", "--rank", "2"),
        ("convert", "b", "--to", "kohya"),
        pytest.param(("mix", "a", "b", "--method", "ties"), marks=pytest.mark.long_tail),
    ],
)
def test_adapters_hold_their_recipes(run, command):
    run.ok(*command, "-o", "out.safetensors")
    found = run.ok("verify", "out.safetensors", "--json").json
    assert found["holds"] is True and found["source"] == command[0]
    assert (found["lost"] is not None) == ("--rank" in command)

    def spoil(arrays, _):
        name = next(n for n in arrays if "up" in n or "lora_B" in n)
        arrays[name] = np.array(arrays[name]) * arrays[name].dtype.type(1.5)

    rewrite(run.folder / "out.safetensors", run.folder / "spoilt.safetensors", spoil)
    wrong = run("verify", "spoilt.safetensors")
    assert wrong.code == 1 and "1 module differs" in wrong.out


def test_an_adapter_without_a_module_or_rescaled(run):
    run.ok("mix", "a", "b", "-o", "out.safetensors")

    def lose(arrays, _):
        stem = next(n for n in arrays if n.endswith(".lora_down.weight")).rpartition(".lora_")[0]
        for name in [n for n in arrays if n.startswith(f"{stem}.")]:
            del arrays[name]

    def double(arrays, _):
        for name in arrays:
            if name.endswith(".lora_up.weight"):
                arrays[name] = 2 * np.array(arrays[name])

    for change, words in ((lose, "Missing: 1 module"), (double, "It is 2 times that.")):
        rewrite(run.folder / "out.safetensors", run.folder / "x.safetensors", change)
        found = run("verify", "x.safetensors")
        assert found.code == 1 and words in found.out


@pytest.mark.long_tail
def test_inputs_elsewhere(baked):
    (baked.folder / "base.safetensors").rename(baked.folder / "moved.safetensors")
    baked.refused(3, "verify", "baked.safetensors", says=("base", "--input base=PATH"))
    found = baked.ok("verify", "baked.safetensors", "--input", "base=moved.safetensors")
    assert "It holds what it should." in found.out
    other = baked("verify", "baked.safetensors", "-i", "base=moved.safetensors", "-i",
                  "a=b.safetensors")  # fmt: skip
    assert other.code == 1 and "is not the file that was used" in other.out


@pytest.mark.long_tail
def test_an_intermediate_step_is_computed_again(run):
    (run.folder / "r.yaml").write_text(
        "version: 1\ninputs: {base: base.safetensors, a: a.safetensors, b: b.safetensors}\nsteps:\n"
        "  blend: {mix: {adapters: ['a:0.5', 'b:0.5'], rank: 3}}\n"
        "  model: {bake: {base: base, adapters: ['blend:0.8']}, save: m.safetensors}\n",
        "utf-8",
    )
    run.ok("run", "r.yaml")
    assert "It holds what it should." in run.ok("verify", "m.safetensors").out


def test_refusals(baked):
    baked.refused(6, "verify", "base.safetensors", says=("no recipe", "--base BASE --lora NAME"))
    baked.refused(6, "verify", "a", says="no recipe")
    baked.refused(2, "verify", "baked.safetensors", "-l", "a", says="--base")
    baked.refused(2, "verify", "a", "-b", "base.safetensors", "-l", "b", says="this is an adapter")
    baked.refused(3, "verify", "nothing", says="nothing")
    slerp = ("merge", "base.safetensors:0.5", "baked.safetensors:0.5", "--method", "slerp")
    baked.ok(*slerp, "-o", "m.safetensors")
    baked.refused(6, "verify", "m.safetensors", says=("slerp", "loramerge run"))


@pytest.mark.parametrize(
    "models",
    [
        ("base.safetensors:0.5", "baked.safetensors:0.5"),
        pytest.param(("baked.safetensors", "tuned.safetensors:0.3"), marks=pytest.mark.long_tail),
        pytest.param(
            (
                "baked.safetensors",
                "tuned.safetensors:0.3",
                "--base",
                "base.safetensors",
                "lora:b:0.2",
            ),
            marks=pytest.mark.long_tail,
        ),
    ],
)
def test_merges_by_weights_hold_their_recipes(baked, models):
    tune(baked.folder / "base.safetensors", baked.folder / "tuned.safetensors")
    baked.ok("merge", *models, "-o", "m.safetensors")
    found = baked.ok("verify", "m.safetensors", "--json").json
    assert found["holds"] is True and found["source"] == "merge"
    if models[0].startswith("base"):
        half = baked.ok("verify", "m.safetensors", "-b", "base.safetensors", "-l", "a", "-l", "b")
        assert "a is in it at strength 0.35." in half.out and "strength 0.2." in half.out

    def spoil(arrays, _):
        name = next(n for n in arrays if "middle_block" in n and n.endswith("attn1.to_q.weight"))
        arrays[name] = np.array(arrays[name]) * np.float16(1.5)

    rewrite(baked.folder / "m.safetensors", baked.folder / "spoilt.safetensors", spoil)
    wrong = baked("verify", "spoilt.safetensors")
    assert wrong.code == 1 and "mid_block.attentions.0.transformer_blocks.0.attn1.to_q" in wrong.out


def test_it_is_a_step(run):
    (run.folder / "r.yaml").write_text(
        "version: 1\ninputs: {base: base.safetensors, a: a.safetensors}\nsteps:\n"
        "  model: {bake: {base: base, adapters: ['a:0.5']}, save: m.safetensors}\n"
        "  check: {verify: {file: model, base: base, lora: ['a:0.5']}, save: check.json}\n",
        "utf-8",
    )
    assert run.ok("plan", "r.yaml").code == 0
    run.ok("run", "r.yaml")
    assert '"holds": true' in (run.folder / "check.json").read_text("utf-8")


def test_an_adapter_that_is_gone_is_computed_again(run):
    run.ok("mix", "a:0.5", "b:0.5", "-o", "both.safetensors")
    run.ok("bake", "-b", "base.safetensors", "both", "-o", "baked.safetensors")
    (run.folder / "both.safetensors").unlink()
    (note,) = run.ok("verify", "baked.safetensors", "--json").json["notes"]
    assert note == (
        "both.safetensors is neither beside this file, nor in the current folder, nor in the "
        "library, and was computed again"
    )


def test_a_change_that_rounding_takes_is_told_in_percent(baked):
    found = lm.verify("baked.safetensors")
    assert "All of the change is there, apart from rounding to float16." in found.sentences()
    found.contents = replace(found.contents, kept=0.44, expected=0.441)
    said = "44 % of the whole change is in it; rounding to float16 would leave 44.1 %."
    assert said in found.sentences()
    found.contents = replace(found.contents, kept=0.997, expected=1.0)
    assert "99.7 % of the whole change" in found.verdict


def test_an_adapter_that_rounding_drowns_cannot_be_told(run):
    """A hundred times less than rounding: neither this weight nor any other one can be confirmed."""
    run.ok("bake", "-b", "tiny", "zuzu:0.001", "--dtype", "float8", "-o", "coarse")
    found = run("verify", "coarse")
    assert found.code == 1
    words = " ".join(found.out.split())
    assert "It is not known whether it holds what it should." in words
    assert "Rounding drowns zuzu: what is unexplained in its modules is" in words
    assert "It holds" not in words and "would leave" not in words
    for other in ("zuzu:0.002", "polka:0.001"):
        assert not run("verify", "coarse", "-b", "tiny", "-l", other, "--json").json["holds"]
    (adapter,) = run("verify", "coarse", "--json").json["adapters"]
    assert adapter["drowned_by"] > 10 and not adapter["holds"]

    run.ok("bake", "-b", "tiny", "zuzu:0.5", "polka:0.001", "--dtype", "float8", "-o", "two")
    told = run("verify", "two", "--json").json
    assert [one["holds"] for one in told["adapters"]] == [True, False] and not told["holds"]


def test_coarse_rounding_leaves_what_many_numbers_tell(run):
    run.ok("bake", "-b", "tiny", "zuzu:0.1", "--dtype", "float8", "-o", "coarse")
    found = run.ok("verify", "coarse", "--json").json
    assert found["holds"] and found["adapters"][0]["drowned_by"] is None
    assert not run("verify", "coarse", "-b", "tiny", "-l", "zuzu:0.3", "--json").json["holds"]
