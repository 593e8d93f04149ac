"""unbake: the base comes back, to rounding or to the byte, and headers are believed."""

from __future__ import annotations

import numpy as np
import pytest

import loramerge as lm
from tests.builders.bases import ulp
from tests.builders.samples import read_safetensors


def arrays_of(path):
    return read_safetensors(path)[0]


@pytest.fixture
def baked(run):
    run.ok("bake", "-b", "base.safetensors", "a:0.7", "b:0.4", "-o", "baked.safetensors")
    return run


def test_the_base_comes_back_to_two_roundings(baked):
    """|unbake(bake(W)) − W| is at most half a step of each sum, in every number."""
    out = ("unbake", "baked.safetensors", "-l", "a:0.7", "-l", "b:0.4", "-o", "back.safetensors")
    found = baked.ok(*out, "--json").json
    before, between, after = (
        arrays_of(baked.folder / f"{name}.safetensors") for name in ("base", "baked", "back")
    )
    assert before.keys() == after.keys()
    changed = 0
    for name, value in before.items():
        if between[name].tobytes() == value.tobytes():
            assert after[name].tobytes() == value.tobytes(), name
            continue
        changed += 1
        gap = np.abs(after[name].astype("float64") - value.astype("float64"))
        steps = [ulp(x.astype("float64"), "F16") for x in (between[name], after[name], value)]
        assert (gap <= 0.5 * steps[0] + np.maximum(steps[1], steps[2])).all(), name
    assert changed == found["tensors"] > 0
    assert 0 < found["rounding"] < 1e-3


def test_with_the_base_its_bytes_come_back(baked):
    out = ("unbake", "baked.safetensors", "-l", "a:0.7", "-l", "b:0.4", "-o", "back.safetensors")
    found = baked.ok(*out, "--base", "base.safetensors", "--json").json
    assert found["restored"] == found["tensors"] > 0 and found["differing"] == 0
    before, after = (arrays_of(baked.folder / f"{n}.safetensors") for n in ("base", "back"))
    assert all(after[name].tobytes() == value.tobytes() for name, value in before.items())
    assert "same file" in baked.ok("run", "back.safetensors").out
    assert baked.ok("verify", "back.safetensors").code == 0


@pytest.mark.long_tail
def test_what_changed_since_is_subtracted_instead(baked):
    """A tensor that is not what the bake made of the base keeps what happened to it."""
    path = baked.folder / "baked.safetensors"
    raw = bytearray(path.read_bytes())
    arrays = arrays_of(path)
    name = next(n for n in arrays if n.endswith("attn1.to_q.weight"))
    place = raw.find(arrays[name].tobytes())
    raw[place : place + 2] = np.float16(1.0).tobytes()
    path.write_bytes(raw)
    out = ("unbake", "baked.safetensors", "-l", "a:0.7", "-l", "b:0.4", "-o", "back.safetensors")
    found = baked.ok(*out, "-b", "base.safetensors", "--json").json
    assert found["restored"] == found["tensors"] - 1 and found["differing"] == 1
    assert abs(arrays_of(baked.folder / "back.safetensors")[name][0, 0] - 1.0) < 0.2


@pytest.mark.parametrize(
    "storage", ["float8-scaled", pytest.param("int8", marks=pytest.mark.long_tail)]
)
def test_quantised_bases_come_back(run, storage):
    run.ok("bake", "-b", "base.safetensors", "--storage", storage, "-o", "q.safetensors")
    run.ok("bake", "-b", "q.safetensors", "a:0.7", "--allow-loss", "-o", "x.safetensors")
    found = run.ok("unbake", "x.safetensors", "-l", "a:0.7", "-b", "q.safetensors", "-o",
                   "back.safetensors", "--json").json  # fmt: skip
    assert found["restored"] == found["tensors"] and found["differing"] == 0
    assert "bit by bit" in run.ok("diff", "q.safetensors", "back.safetensors").out


@pytest.mark.long_tail
def test_one_of_two_is_taken_out(baked):
    baked.ok("unbake", "baked.safetensors", "-l", "b:0.4", "-o", "a-alone.safetensors")
    found = baked("verify", "a-alone.safetensors", "-b", "base.safetensors", "-l", "a", "-l", "b")
    assert "a is in it at strength 0.7" in found.out and "b is not in it" in found.out


def test_the_header_is_believed(baked):
    back = ("unbake", "baked.safetensors", "-l", "a:0.7", "-o", "back.safetensors")
    baked.ok(*back)
    again = ("unbake", "back.safetensors", "-l", "a:0.7", "-o", "more.safetensors")
    baked.refused(5, *again, says=("taken out of this checkpoint already", "--allow-unrecorded"))
    assert "taken out" in baked.ok(*again, "--allow-unrecorded").err
    baked.ok("resize", "a", "--rank", "1", "-o", "small.safetensors")
    other = ("unbake", "baked.safetensors", "-l", "small:0.7", "-o", "none.safetensors")
    baked.refused(5, *other, says="was not baked into this checkpoint")
    differs = baked.ok("unbake", "baked.safetensors", "-l", "a:0.5", "-o", "half.safetensors")
    assert "at the weight 0.7, and is subtracted at 0.5" in differs.err
    baked.ok("bake", "-b", "base.safetensors", "a", "--strip", "-o", "s.safetensors")
    unknown = baked.ok("unbake", "s.safetensors", "-l", "a", "-o", "t.safetensors")
    assert "does not say what is in the checkpoint" in unknown.err


def test_without_a_weight_it_is_that_of_the_bake(baked):
    """To the byte what the weights say, also where there are several, and in Python."""
    more = ("-b", "baked.safetensors", "a:OUTALL", "--allow-again")
    baked.ok("bake", *more, "-o", "deep.safetensors")
    for name, weights in (("baked", ("a:0.7",)), ("deep", ("a:0.7", "a:OUTALL"))):
        for out, given in ((f"{name}-plain", ("a",)), (f"{name}-stated", weights)):
            options = [word for one in given for word in ("-l", one)]
            done = baked.ok("unbake", f"{name}.safetensors", *options, "-o", f"{out}.safetensors")
            assert "is subtracted at 1" not in done.err
            assert ("at the weight of the bake, 0.7" in done.err) == (given == ("a",))
        plain, stated = (baked.folder / f"{name}-{one}.safetensors" for one in ("plain", "stated"))
        assert plain.read_bytes() == stated.read_bytes()
        assert "same file" in baked.ok("run", plain).out
        again = ("unbake", plain, "-l", "a", "-o", "more.safetensors")
        baked.refused(5, *again, says="taken out of this checkpoint already")
    found = lm.unbake("baked.safetensors", ["a.safetensors"], "python.safetensors")
    assert found.adapters[0]["weight"] == "0.7"
    found = lm.unbake("baked.safetensors", [("a.safetensors", 1.0)], "1.safetensors", dry_run=True)
    assert found.adapters[0]["weight"] == "1"
    plain = baked.folder / "baked-plain.safetensors"
    assert (baked.folder / "python.safetensors").read_bytes() == plain.read_bytes()


def test_a_stated_1_stays_1(baked):
    """On the command line, in the recipe that is saved of it, in other recipes, and in a header."""
    options = ("-l", "a:1", "--save-recipe", "r.yaml", "-o", "one.safetensors")
    done = baked.ok("unbake", "baked.safetensors", *options)
    assert "at the weight 0.7, and is subtracted at 1" in done.err
    one = baked.folder / "one.safetensors"
    before = one.read_bytes()
    assert "same file" in baked.ok("run", one).out
    assert "a:1" in (baked.folder / "r.yaml").read_text("utf-8")
    one.unlink()
    baked.ok("run", "r.yaml")
    assert one.read_bytes() == before
    (baked.folder / "s.yaml").write_text(
        "version: 1\ninputs: {baked: baked.safetensors, a: a.safetensors}\nsteps:\n  back: {unbake: "
        "{checkpoint: baked, lora: [{adapter: a, weight: 1}]}, save: two.safetensors}\n",
        "utf-8",
    )
    baked.ok("run", "s.yaml")
    assert (baked.folder / "two.safetensors").read_bytes() == before
    (baked.folder / "ones.yaml").write_text("default: 1\n", "utf-8")
    baked.ok(
        "unbake",
        "baked.safetensors",
        "-l",
        "a",
        "--weights",
        "a=ones.yaml",
        "-o",
        "three.safetensors",
    )
    assert (baked.folder / "three.safetensors").read_bytes() == before


def test_a_dry_run_and_refusals(baked):
    shown = baked.ok("unbake", "baked.safetensors", "-l", "a:0.7", "--dry-run").out
    assert "would write" in shown and not (baked.folder / "baked-a@0.7.safetensors").exists()
    baked.refused(2, "unbake", "baked.safetensors", says="lora")
    baked.refused(4, "unbake", "a", "-l", "a", says="this is an adapter")
    baked.refused(3, "unbake", "baked.safetensors", "-l", "nothing", says="nothing")
    baked.ok("unbake", "baked.safetensors", "-l", "a:0.7", "-o", "o.safetensors")
    baked.refused(
        3, "unbake", "baked.safetensors", "-l", "a:0.7", "-o", "o.safetensors", says="exist"
    )


def test_it_is_a_step(run):
    (run.folder / "r.yaml").write_text(
        "version: 1\ninputs: {base: base.safetensors, a: a.safetensors}\nsteps:\n"
        "  model: {bake: {base: base, adapters: ['a:0.5']}, save: m.safetensors}\n"
        "  back: {unbake: {checkpoint: model, lora: ['a:0.5'], base: base}, save: back.safetensors}\n",
        "utf-8",
    )
    assert run.ok("plan", "r.yaml").code == 0
    run.ok("run", "r.yaml")
    assert "bit by bit" in run.ok("diff", "base.safetensors", "back.safetensors").out
