"""Python use: what stands for an adapter, how results look, and what wrong use is told."""

from __future__ import annotations

from pathlib import Path

import pytest

import loramerge as lm
from loramerge.errors import FormatError, UsageError


@pytest.fixture
def a(tmp_path, monkeypatch) -> lm.Adapter:
    monkeypatch.chdir(tmp_path)
    return lm.load("zuzu")


def same(one: lm.Adapter, other: lm.Adapter) -> bool:
    return not lm.diff(one, other).differs


def test_names_paths_and_texts_stand_for_adapters(a):
    b = lm.load("polka")
    expected = lm.mix([(a, 0.7), (b, 0.3)])
    lm.save(a, "here.safetensors")
    for given in (
        ["zuzu:0.7", (b, 0.3)], ["zuzu:0.7", "polka:0.3"], [("zuzu", 0.7), ("polka", 0.3)],
        [(Path("here.safetensors"), 0.7), "<lora:polka:0.3>"], iter([(a, 0.7), [b, 0.3]]),
    ):  # fmt: skip
        assert same(lm.mix(given), expected)
    for one in (a, "zuzu", Path("here.safetensors"), ["zuzu"], (a, 1), ("here.safetensors", 1.0)):
        assert same(lm.mix(one), a)
    assert same(lm.resize("zuzu:0.5", rank=4), lm.resize(0.5 * a, rank=4))
    assert same(lm.convert(Path("here.safetensors"), rescale=2.0), 2.0 * a)
    assert lm.save("zuzu:0.5", "half.safetensors") > 0
    assert same(lm.load("half.safetensors"), 0.5 * a)
    assert lm.diff("here.safetensors", a).differs is False
    assert lm.inspect("zuzu").json()["what"] == "adapter"
    single, several = lm.bake("tiny", "zuzu:0.8", "one"), lm.bake("tiny", [(a, 0.8)], "two")
    assert single.survived == several.survived


def test_checkpoints_are_told_apart(a):
    lm.bake("tiny", a, "model")
    assert lm.inspect("model").what == "checkpoint"
    with pytest.raises(
        FormatError, match=r"model(.|\n)*checkpoint(.|\n)*hint: only bake and inspect"
    ):
        lm.load("model")
    with pytest.raises(FormatError, match="checkpoint"):
        lm.mix(["model"])


def test_a_checkpoint_in_one_file_is_refused(work):
    with pytest.raises(
        FormatError, match=r"base\.safetensors: this is a checkpoint, and an adapter"
    ):
        lm.load("base.safetensors")


WRONG = {
    "no adapters": (lambda a: lm.mix([]), "at least one adapter"),
    "a number": (lambda a: lm.mix(3), "does not stand for an adapter"),  # type: ignore[arg-type]
    "None": (lambda a: lm.mix([None]), "does not stand for an adapter"),  # type: ignore[list-item]
    "half a pair": (lambda a: lm.mix([(a,)]), "a pair is an adapter and its weight"),
    "a text as weight": (lambda a: lm.mix([(a, "x")]), "a weight must be a number"),
    "True as weight": (lambda a: lm.mix([(a, True)]), "a weight must be a number"),
    "NaN as weight": (lambda a: lm.mix([(a, float("nan"))]), "finite"),
    "two weights": (lambda a: lm.mix([("zuzu:0.5", 2)]), "gets two weights"),
    "None in a pair": (lambda a: lm.mix([(None, 1.0)]), "does not stand for an adapter"),
    "no criterion": (lambda a: lm.resize(a), "needs a rank option"),
    "several to resize": (lambda a: lm.resize([a, a], rank=2), "resize takes one adapter"),
    "a text as rank": (lambda a: lm.resize(a, rank="8"), "rank cannot be '8'"),
    "a misspelt rank": (lambda a: lm.resize(a, rnak=8), "did you mean rank"),
    "an output": (lambda a: lm.resize(a, rank=8, output="x"), "save writes the result"),
    "nothing to bake": (lambda a: lm.bake("tiny", [], "x"), "bake needs an adapter"),
    "a base in memory": (lambda a: lm.bake(a, [a], "x"), "base cannot be"),
    "no path": (lambda a: lm.bake("tiny", [a], None), "the path of its output"),
    "swapped": (lambda a: lm.save("x", a), "the adapter first"),
    "a dialect": (lambda a: lm.save(a, "x.safetensors", dialect=3), "'3' is not a dialect"),
    "no text to load": (lambda a: lm.load(3), "takes a path or a name"),
    "an adapter to load": (lambda a: lm.load(a), "takes a path or a name"),
    "numbers to keep": (lambda a: lm.convert(a, keep=[None]), "keep cannot be None"),
    "None to inspect": (lambda a: lm.inspect(None), "inspect takes one adapter"),
    "text for deep": (lambda a: lm.inspect(a, deep="x"), "deep cannot be 'x'"),
    "one to compare": (lambda a: lm.diff(a, 3), "diff takes one adapter"),
    "no base": (lambda a: lm.preview([], a), "preview needs a base"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_told_what_is_wrong(name, a):
    call, says = WRONG[name]
    with pytest.raises(UsageError, match=says):
        call(a)
    assert not Path("x").exists()


def test_a_text_is_a_list_of_one(a):
    assert lm.convert(a, keep="*attn2*").keys() == lm.convert(a, keep=["*attn2*"]).keys()
    assert len(lm.convert(a, keep="*attn2*")) < len(a)


def test_results_are_one_line_and_a_table(a):
    recipe = {
        "version": 1,
        "steps": {"<b>": {"mix": {"adapters": ["zuzu"]}, "save": "x.safetensors"}},
    }
    recipe["steps"] = {"x": recipe["steps"]["<b>"]}  # type: ignore[index]
    results = [
        lm.diff(a, a),
        lm.inspect(a),
        lm.plan(recipe),
        lm.run(recipe),
        lm.bake("tiny", a, "m"),
    ]
    for result in results:
        assert "\n" not in repr(result) and len(repr(result)) < 300, repr(result)
        assert repr(result).startswith(type(result).__name__ + "(")
        html = result._repr_html_()
        assert html.startswith("<table>") and html.endswith("</table>")


def test_tables_are_escaped(a):
    found = lm.inspect(a)
    found.family = "<script>"
    assert "<script>" not in found._repr_html_()
    assert "&lt;script&gt;" in found._repr_html_()


def test_previews_show_themselves_and_write_nothing(a):
    pytest.importorskip("diffusers")
    before = sorted(Path().iterdir())
    shown = lm.preview("tiny", [a, "polka:0.5"], prompt="zuzu", steps=2, seed=[0, 1])
    assert sorted(Path().iterdir()) == before
    assert shown.output is None and shown.columns[0] == "base"
    assert [len(row) for row in shown.images] == [3, 3]
    assert (shown._repr_png_() or b"").startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="a preview is a PNG file"):
        shown.save("x.jpg")
    shown.save("x.png")
    assert Path("x.png").read_bytes() == shown._repr_png_()
    with pytest.raises(lm.LoramergeError, match="exist"):
        shown.save("x.png")
    assert "\n" not in repr(shown)
