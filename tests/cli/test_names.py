"""base, library, dialects and families."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import pytest

from loramerge.dialects import DIALECTS
from loramerge.dialects.programs import readers_of
from loramerge.families import FAMILIES


def test_base(run):
    assert "No base is registered" in run.ok("base", "list").out
    shipped = [
        {"name": name, "path": None, "exists": True, "shipped": True}
        for name in ("tiny", "tiny-outlined")
    ]
    assert run.ok("base", "list", "--json").json == shipped
    place = str((run.folder / "base.safetensors").resolve())
    assert place in run.ok("base", "add", "sd21-custom", "base.safetensors").out
    assert run.ok("base", "list", "--json").json == [
        {"name": "sd21-custom", "path": place, "exists": True, "shipped": False},
        *shipped,
    ]
    run.ok("base", "add", "tiny", "base.safetensors")  # hides the one that comes with loramerge
    assert run.ok("base", "list", "--json").json[1:] == [
        {"name": "tiny", "path": place, "exists": True, "shipped": False},
        shipped[1],
    ]
    run.ok("base", "remove", "tiny")
    run.ok("base", "add", "sd21-custom", "base.safetensors")  # the same again
    run.refused(2, "base", "add", "sd21-custom", "a.safetensors", says=("--force", place))
    run.ok("base", "add", "sd21-custom", "a.safetensors", "--force")
    (run.folder / "a.safetensors").unlink()
    assert "missing" in run.ok("base", "list").out
    run.refused(3, "base", "remove", "sd21-costum", says="did you mean sd21-custom?")
    run.ok("base", "remove", "sd21-custom")
    assert run.ok("base", "list", "--json").json == shipped
    assert (run.folder / "base.safetensors").exists()


@pytest.mark.parametrize("name", ["", " x", "a:b", "a/b", "a\\b", "a?", "*"])
def test_names_a_base_cannot_have(run, name):
    run.refused(2, "base", "add", name, "base.safetensors", says="name of a base")


def test_bases_that_are_not_there(run):
    run.refused(3, "base", "add", "x", "nothing.safetensors", says="nothing.safetensors")
    run.refused(2, "base", "add", "x", says="Missing argument")


def test_library(run):
    found = run.ok("library", "list").out
    assert "empty" in found and "Adapters that come with loramerge: zuzu, polka" in found
    (run.folder / "loras" / "x").mkdir(parents=True)
    shutil.copy("a.safetensors", "loras/x/one.safetensors")
    assert "added" in run.ok("library", "add", "loras").out
    assert "already in the library" in run.ok("library", "add", "loras").out
    (entry,) = run.ok("library", "list", "--json").json
    assert entry == {"path": str((run.folder / "loras").resolve()), "holds": "both", "files": 1,
                     "indexed": 0, "missing": 0}  # fmt: skip
    run.ok("library", "add", "loras", "--holds", "bases")
    assert run.ok("library", "list", "--json").json[0]["holds"] == "bases"
    run.refused(3, "mix", "one", says="'one'")
    run.refused(3, "library", "remove", "other", says="other")
    run.ok("library", "remove", "loras")
    assert run.ok("library", "list", "--json").json == []
    assert (run.folder / "loras" / "x" / "one.safetensors").exists()


def test_library_refusals(run):
    run.refused(2, "library", "add", says="library add FOLDER")
    run.refused(3, "library", "add", "nothing", says="nothing")
    run.refused(3, "library", "add", "a.safetensors", says="a.safetensors")
    run.refused(2, "library", "add", ".", "--holds", "pictures", says="pictures")
    run.refused(3, "library", "add", "--comfyui", ".", says="models/loras")
    run.refused(3, "library", "add", "--a1111", "nothing", says="models/Lora")


def test_comfyui(run):
    root = run.folder / "ComfyUI"
    for folder in ("models/loras/sub", "models/checkpoints", "extra/Lora", "extra/LyCORIS"):
        (run.folder / "more" / folder if "extra" in folder else root / folder).mkdir(parents=True)
    shutil.copy("a.safetensors", root / "models/loras/sub/style.safetensors")
    shutil.copy("b.safetensors", run.folder / "more/extra/LyCORIS/other.safetensors")
    os.link("base.safetensors", root / "models/checkpoints/model.safetensors")
    (root / "extra_model_paths.yaml").write_text(
        "# comment\na111:\n    base_path: ../more/\n    is_default: true\n"
        "    loras: |\n         extra/Lora\n         extra/LyCORIS\n    checkpoints: nowhere\n",
        "utf-8",
    )
    run.ok("library", "add", "--comfyui", root)
    held = {
        os.path.basename(e["path"]): e["holds"] for e in run.ok("library", "list", "--json").json
    }
    assert held == {
        "loras": "adapters", "checkpoints": "bases", "Lora": "adapters", "LyCORIS": "adapters",
    }  # fmt: skip
    run.ok("bake", "--base", "model", "style:0.5", "other", "-o", "out.safetensors")


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [", "x: \x00", "\ttab: 1"])
def test_extra_paths_that_cannot_be_read(run, content):
    (run.folder / "models" / "loras").mkdir(parents=True)
    (run.folder / "extra_model_paths.yaml").write_text(content, "utf-8")
    run.refused(3, "library", "add", "--comfyui", ".", says="extra_model_paths.yaml")


def test_a1111(run):
    root = run.folder / "webui"
    for folder in ("models/Lora", "models/LyCORIS", "models/Stable-diffusion"):
        (root / folder).mkdir(parents=True)
    shutil.copy("a.safetensors", root / "models/Lora/style.safetensors")
    run.ok("library", "add", "--a1111", root)
    assert [e["holds"] for e in run.ok("library", "list", "--json").json] == [
        "adapters",
        "adapters",
        "bases",
    ]
    run.ok("mix", "<lora:style:0.8>")
    run.refused(3, "bake", "--base", "style", "style")  # no base lies there


def test_dialects(run):
    found = run.ok("dialects", "--json").json
    assert [d["name"] for d in found] == list(DIALECTS)
    assert all(d["title"] and d["example"] and d["writes"] for d in found)
    seen = {d["name"]: d["loads_in"] for d in found}
    assert {name: [p.title for p in readers_of(name)] for name in DIALECTS} == seen
    assert "ComfyUI" in seen["kohya"] and not seen["lycoris"]
    assert all(name in run.ok("dialects").out for name in DIALECTS)


def test_families(run):
    found = run.ok("families", "--json").json
    assert [f["name"] for f in found] == list(FAMILIES)
    assert all(f["verified"] and f["layouts"] and f["components"] for f in found)
    listed = run.ok("families").out
    assert all(name in listed and f.verified in listed for name, f in FAMILIES.items())
    assert FAMILIES["wan"].verified in run.ok("families", "wan").out


def test_a_family_that_is_verified_against_nothing_is_read_only(run):
    unproven = dataclasses.replace(FAMILIES["wan"], name="unproven", verified="")
    with FAMILIES.adding(unproven):
        found = {f["name"]: f for f in run.ok("families", "--json").json}
        assert found["unproven"]["read_only"] and found["unproven"]["verified"] is None
        assert not found["flux1"]["read_only"] and found["flux1"]["verified"]
        assert "read-only" in run.ok("families").out


def test_a_corrupt_registry_is_named(run, tmp_path):
    home = tmp_path / "loramerge-home"
    home.mkdir(exist_ok=True)
    for content in ("{", "[]", '{"bases": 1, "folders": []}', '{"bases": {}, "folders": [1]}'):
        (home / "registry.json").write_text(content, "utf-8")
        for command in (
            ("base", "list"),
            ("library", "list"),
            ("mix", "x"),
            ("bake", "-b", "x", "a"),
        ):
            run.refused(3, *command, says=("registry.json", "repair or delete it"))
        run.ok("mix", "a:0.5", "-o", "out.safetensors", "--force")  # paths need no registry
        (run.folder / "out.safetensors").unlink()


def test_json_files(run):
    run.ok("library", "list", "--json-file", "x.json")
    assert json.loads((run.folder / "x.json").read_text("utf-8")) == []


def test_a_file_before_what_comes_with_loramerge_is_noted(run):
    """And no verb makes one by itself: the default name is another."""
    assert "comes with loramerge" not in run.ok("inspect", "zuzu").err
    assert run.ok("mix", "zuzu", "--json").json["outputs"] == ["zuzu-copy.safetensors"]
    (run.folder / "zuzu-copy.safetensors").rename(run.folder / "zuzu.safetensors")
    note = "zuzu: the file zuzu.safetensors is taken, not the adapter that comes with loramerge"
    for command in (("inspect", "zuzu"), ("meta", "zuzu"), ("mix", "zuzu", "polka")):
        assert run.ok(*command).err.count(note) == 1, command
    run.ok("bake", "--base", "tiny", "zuzu", "-o", "tiny")
    found = run.ok("bake", "--base", "tiny", "polka", "-o", "two").err
    assert "tiny: the folder tiny is taken, not the base that comes with loramerge" in found
    assert "comes with loramerge" not in run.ok("inspect", "two", "zuzu.safetensors").err


def test_default_names_have_no_spaces(run):
    done = run.ok("mix", "zuzu:depth=0,1", "polka:0.5", "--json")
    assert done.json["outputs"] == ["zuzu@2-depths+polka@0.5.safetensors"]
