"""What may stand for an adapter and its weight."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from loramerge.adapter.load import load
from tests.builders.samples import safetensors_bytes
from tests.builders.world import weights


@pytest.fixture
def library(run, tmp_path):
    folder = tmp_path / "loras"
    (folder / "sub").mkdir(parents=True)
    for name in ("style.safetensors", "detail_v1.1.safetensors", "sub/detail.safetensors"):
        shutil.copy("a.safetensors", folder / name)
    run.ok("library", "add", folder)
    return folder


@pytest.mark.parametrize(
    "name", ["style", "style.safetensors", "detail_v1.1", "sub/detail", "detail"]
)
def test_bare_names_are_looked_up_in_the_library(run, library, name):
    result = run.ok("mix", f"{name}:0.5", "-o", "out.safetensors", "--json")
    assert result.json["inputs"][0]["weight"] == "0.5"
    assert (
        weights(run.folder / "out.safetensors").keys()
        == weights(library / "style.safetensors").keys()
    )


def test_a_path_wins_over_the_library(run, library):
    shutil.copy("b.safetensors", "style.safetensors")
    assert run.ok("mix", "style", "-o", "o.safetensors", "--json").json["dialect"] == "diffusers"


def test_a_name_found_twice_lists_both(run, library):
    shutil.copy("a.safetensors", library / "sub" / "style.safetensors")
    first, second = library / "style.safetensors", library / "sub" / "style.safetensors"
    run.refused(2, "mix", "style:1", says=("several files", str(first), str(second), "hint"))
    run.ok("mix", "sub/style", "-o", "out.safetensors")


def test_a_name_not_found_says_the_nearest_and_where_it_looked(run, library):
    run.refused(3, "mix", "stile:0.3", says=("'stile'", "did you mean style?", str(library)))
    run.refused(3, "mix", "sub/detial", says="did you mean sub/detail?")
    shutil.copy("a.safetensors", "character.safetensors")
    run.refused(3, "mix", "charakter.safetensors", says="did you mean character?")
    run.refused(3, "mix", "nothing-like-it", says="loramerge library add")


@pytest.mark.parametrize("name", [r"C:\x", "C:\\x:0.5", r"\\server\share\x"])
def test_names_with_a_drive_are_names(run, name):
    result = run.refused(3, "mix", name)
    assert "weight" not in result.err


def test_drive_letters_and_colons_in_existing_names(run):
    if os.name == "nt":
        pytest.skip("colons cannot stand in names here")
    shutil.copy("a.safetensors", "C:x.safetensors")
    shutil.copy("a.safetensors", "a:0.8")
    for name in ("C:x.safetensors", "C:x.safetensors:0.5", "./C:x:0.5"):
        run.ok("mix", name, "-o", "out.safetensors", "--force")
    shown = run.ok("mix", "a:0.8", "-o", "out.safetensors", "--force", "--json").json["inputs"]
    assert shown[0]["weight"] == "1"  # the file of that very name


@pytest.mark.parametrize(
    ("text", "unet"),
    [
        ("a", 1.0), ("a:0.8", 0.8), ("a:.5", 0.5), ("a:-2", -2.0), ("a:1e-1", 0.1),
        ("a.safetensors:0.8", 0.8), ("a:unet=0.8:te=0", 0.8), ("a:te=0:unet=0.8", 0.8),
        ("a:te=0:0.7", 0.7), ("<lora:a:0.8>", 0.8), ("<lyco:a:0.8> ", 0.8), ("<lora:a>", 1.0),
        ("<lora:a:unet=0.25>", 0.25),
    ],
)  # fmt: skip
def test_weights(run, text, unet):
    run.ok("mix", text, "-o", "out.safetensors", "--dtype", "float32")
    before, after = weights(run.folder / "a.safetensors"), weights(run.folder / "out.safetensors")
    assert before.keys() == after.keys()
    for stem, value in before.items():
        np.testing.assert_allclose(after[stem], unet * value, rtol=1e-6, atol=1e-12)


def test_a_weight_per_component(run):
    run.ok("mix", "b:unet=0.5:te=0", "-o", "out.safetensors")
    assert all(stem.startswith("unet.") for stem in weights(run.folder / "out.safetensors"))
    result = run.ok("mix", "b:unet=0.5:te1=2", "--json").json
    assert result["outputs"] == ["b@unet=0.5@te1=2.safetensors"]
    assert result["inputs"][0]["weight"] == "unet=0.5:te1=2, the rest 1"
    for weight, words in (
        ("te=0", "at weights te=0, the rest 1\n"),
        ("te=0:0.5", "at weights 0.5:te=0\n"),
        ("unet=0.5:te=1", "at weights unet=0.5:te=1\n"),
    ):
        shown = run.ok(
            "bake", "-b", "base.safetensors", f"b:{weight}", "-o", "x.safetensors", "--force"
        )
        assert f"b.safetensors {words}" in shown.out.replace(" \n", "\n"), shown.out


def test_two_bare_numbers_are_refused_with_both_readings(run):
    run.refused(
        2, "mix", "a:0.8:0.5", says=("a:unet=0.8:te=0.5", "a:te=0.8:unet=0.5", "ComfyUI", "A1111")
    )
    run.refused(2, "mix", "<lora:a:0.8:0.5>", says="a:unet=0.8:te=0.5")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a:1,0,0,0.5", "cannot have 4 values"),
        ("a:nan", "finite"),
        ("a:inf", "finite"),
        ("a:1e400", "finite"),
        ("a:unet=nan", "finite"),
        ("a:unet=x", "'x' is not a number"),
        ("a:unit=1", "did you mean unet?"),
        ("a:unet=1:unet=2", "two weights"),
        ("a:te1=1:te=2", "two weights"),
        ("a:vae=0.5", ("'vae' is not a component", "--weights NAME=FILE.yaml")),
        ("a:*attn2*=0.5", ("'*attn2*=0.5' is not a weight", "--weights NAME=FILE.yaml")),
        ("a:vae.*=0.5", ("'vae.*=0.5' is not a weight", "--weights NAME=FILE.yaml")),
        ("a:OUTAL", ("'OUTAL' is not a weight", "a:unet=0.8:te=0")),
        ("a:0.5x", "'0.5x' is not a weight"),
        ("a:1_0", "'1_0' is not a weight"),
        ("a:", "'' is not a weight"),
        (":0.5", "has no name of an adapter"),
        ("", "has no name of an adapter"),
        ("  ", "has no name of an adapter"),
        ("<lora::0.5>", "has no name of an adapter"),
    ],
)
def test_weights_that_cannot_be_meant(run, text, words):
    run.refused(2, "mix", text, "-o", "out.safetensors", says=words)


@pytest.mark.parametrize(
    "name",
    ["face [v2].safetensors", "a b.safetensors", "ünïcode-猫.safetensors", "x*y.safetensors",
     "-dash.safetensors", "[red]bold[-red].safetensors", "per%cent.safetensors"],
)  # fmt: skip
def test_awkward_file_names(run, name):
    if os.name == "nt" and "*" in name:
        pytest.skip("not a name here")
    os.replace("a.safetensors", name)
    shown = run.ok("inspect", "--", name)
    assert name in shown.out
    run.ok("resize", "--rank", "2", "--", name)
    assert (
        run.folder / f"{name.removesuffix('.safetensors').replace('*', '_')}-r2.safetensors"
    ).is_file()
    run.ok("mix", "--", f"{name}:0.5")


def test_bytes_that_are_no_unicode(run):
    if os.name == "nt":
        pytest.skip("names are Unicode here")
    name = os.fsdecode(b"caf\xff.safetensors")
    try:
        os.replace("a.safetensors", name)
    except OSError:
        pytest.skip("names are Unicode on this file system")
    run.ok("inspect", name, "--json", "--json-file", "x.json")
    run.ok("mix", f"{name}:0.5")
    run.ok("bake", "--base", "base.safetensors", name, "-o", "out.safetensors")


def test_very_long_names_and_paths(run):
    run.refused(3, "mix", "x" * 5000)
    run.refused(3, "inspect", "x" * 5000 + "/y")
    run.refused(3, "bake", "--base", "x" * 5000, "a")
    deep = run.folder.joinpath(*["d" * 60] * 12)
    deep.mkdir(parents=True)
    shutil.copy("a.safetensors", deep / "a.safetensors")
    run.ok("resize", "--rank", "2", deep / "a.safetensors", "-o", deep / "out.safetensors")
    shown = run.ok("inspect", deep / "out.safetensors").out
    assert str(deep / "out.safetensors") in shown  # not broken over lines


@pytest.mark.parametrize("letter", ["m", "猫"])
def test_default_names_are_cut_with_a_hash(run, letter):
    name = letter * (200 if letter == "m" else 70)
    shutil.copy("a.safetensors", f"{name}.safetensors")
    outputs = [
        run.ok("mix", f"{name}:{w}", f"a:{w}", "--json").json["outputs"][0] for w in (0.25, 0.5)
    ]
    assert outputs[0] != outputs[1]
    for output in outputs:
        assert len(output) <= 120 and len(output.encode()) <= 255
        assert (run.folder / output).is_file()


def test_readable_default_names(run):
    shown = [
        run.ok(*command, "--json").json["outputs"][0]
        for command in (
            ("mix", "a:0.7", "b:0.3"),
            ("mix", "a", "b:0.3", "--rank", "8"),
            ("resize", "a", "--rank", "2"),
            ("resize", "a", "--max-size", "50%"),
            ("bake", "--base", "base.safetensors", "a:0.5"),
            ("bake", "--base", "base.safetensors", "a", "--lora", "b:0.5"),
        )
    ]
    assert shown == [
        "a@0.7+b@0.3.safetensors", "a+b@0.3-r8.safetensors", "a-r2.safetensors",
        "a-50pct.safetensors", "base+a@0.5.safetensors", "base+a+b@0.5.safetensors",
    ]  # fmt: skip


def test_folders_and_patterns(run):
    (run.folder / "x" / "y").mkdir(parents=True)
    for name in ("x/one.safetensors", "x/y/two.safetensors"):
        shutil.copy("a.safetensors", name)
    (run.folder / "x" / "notes.txt").write_text("no adapter")

    def seen(*names):
        return [
            entry["path"].replace(os.sep, "/") for entry in run.ok("inspect", *names, "--json").json
        ]

    assert seen("x") == ["x/one.safetensors", "x/y/two.safetensors"]
    assert seen("x/*.safetensors") == ["x/one.safetensors"]
    assert seen("x/*") == ["x/one.safetensors"]
    assert seen("x/**/t?o.safetensors") == ["x/y/two.safetensors"]
    assert seen("x", "x/one.safetensors") == ["x/one.safetensors", "x/y/two.safetensors"]
    run.refused(3, "inspect", "x/*.nothing", says="no adapter matches")
    (run.folder / "empty").mkdir()
    run.refused(3, "inspect", "empty", says="holds no adapters")


def test_a_base_is_not_an_adapter_and_the_other_way_round(run):
    for command in (("mix", "base:1"), ("resize", "--rank", "2", "base"), ("diff", "a", "base"),
                    ("bake", "--base", "base.safetensors", "base")):  # fmt: skip
        run.refused(4, *command, says="this is a checkpoint")
    run.refused(4, "bake", "--base", "a.safetensors", "a", says="this is an adapter")


def _require_vae_halved(run):
    """Require that a pattern halves the VAE's module alone, and that each can be kept."""
    keys = [f"{name}.lora_{half}.weight" for name in _OF_BOTH for half in "AB"]
    factors = np.ones((4, 4), np.float32)
    Path("v.safetensors").write_bytes(safetensors_bytes(dict.fromkeys(keys, factors)))
    Path("w.yaml").write_text("match: {'vae.*': 0.5}", "utf-8")
    run.ok("mix", "v", "--weights", "v=w.yaml", "-o", "h.safetensors")
    for word, norm in (("unet", 16.0), ("vae", 8.0)):
        run.ok("convert", "h", "--keep", word, "-o", f"{word}.safetensors")
        (only,) = load(f"{word}.safetensors").deltas.items()
        assert only[0].component == word
        assert np.linalg.norm(only[1].dense()) == pytest.approx(norm)


_OF_BOTH = ("unet.mid_block.attentions.0.proj_in", "vae.encoder.mid_block.attentions.0.to_q")


def test_modules_of_a_vae_have_weights_and_can_be_kept(run):
    _require_vae_halved(run)


@pytest.mark.parametrize("place", ["_names", "fnmatchcase"])
def test_a_vae_that_is_overlooked_is_found(run, monkeypatch, place):
    from loramerge.families.components import COMPONENT_WORDS
    from loramerge.verbs import convert

    if place == "_names":  # knows the words of components alone
        wrong = lambda word, site: site.component in COMPONENT_WORDS.get(word, ())  # noqa: E731
        monkeypatch.setattr(convert, "_names", wrong)
    else:
        monkeypatch.setattr("loramerge.algebra.per_module.fnmatchcase", lambda name, pattern: False)
    with pytest.raises(AssertionError):
        _require_vae_halved(run)
