"""The library's index on the command line: scan, search, show, similar, duplicates, own words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from loramerge.library.index import open_index


@pytest.fixture
def loras(run):
    """A folder of two adapters and a copy, with sidecars, known to the library and scanned."""
    folder = run.folder / "loras"
    (folder / "sub").mkdir(parents=True)
    shutil.copy("a.safetensors", folder / "sub/mimi.safetensors")
    shutil.copy("b.safetensors", folder / "other.safetensors")
    run.ok("mix", "a:0.7", "--to", "diffusers", "-o", "loras/quiet.safetensors")
    info = {"model": {"name": "Mimi <b>the</b> cat"}, "trainedWords": ["mimi cat"]}
    (folder / "sub/mimi.civitai.info").write_text(json.dumps(info), "utf-8")
    (folder / "sub/mimi.preview.png").write_bytes(b"\x89PNG")
    (folder / "other.json").write_text("{", "utf-8")
    run.ok("library", "add", "loras")
    run.ok("library", "scan")
    return run


def test_scan(loras):
    found = loras.ok("library", "scan", "--json").json
    assert (found["files"], found["new"], found["missing"]) == (3, [], [])
    shown = loras.ok("library", "scan").out
    assert "3 files: nothing has changed." in shown and "other.json: it is not JSON" in shown
    Path("loras/other.safetensors").unlink()
    assert "3 files" not in (shown := loras.ok("library", "scan", "loras").out)
    assert "1 missing" in shown and "missing: " in shown
    assert loras.ok("library", "scan", "-q").out == ""
    (entry,) = loras.ok("library", "list", "--json").json
    assert (entry["indexed"], entry["missing"], entry["files"]) == (3, 1, 2)


def test_search(loras):
    assert "sub/mimi.safetensors" in (shown := loras.ok("library", "search", "mimi").out)
    assert "mimi cat" in shown and "other" not in shown and "sd21" in shown
    every = loras.ok("library", "search", "--json").json
    assert [Path(one["path"]).name for one in every] == [
        "other.safetensors", "quiet.safetensors", "mimi.safetensors"
    ]  # fmt: skip
    sha256 = every[0]["file"]["sha256"]
    assert "other" in loras.ok("library", "search", sha256[:10].upper()).out
    assert loras.ok("library", "search", "nothing", "--json").json == []
    assert "Nothing was found" in loras.ok("library", "search", "nothing").out
    assert loras.ok("library", "search", "--family", "sdxl", "--json").json == []
    assert "2 more" in loras.ok("library", "search", "--most", "1").out
    loras.refused(2, "library", "search", "!!", says="nothing in this text is a word")


def test_own_words_stay_when_a_file_moves(loras):
    loras.ok("library", "tag", "mimi", "mine, red", "Mine")
    loras.ok("library", "note", "mimi", "best at 0.7")
    said = loras.ok("library", "rate", "mimi", "4", "--json").json
    assert said["tags"] == ["mine", "red"] and said["note"] == "best at 0.7" and said["rating"] == 4
    before = loras.state()
    shutil.move("loras/sub/mimi.safetensors", "loras/new name.safetensors")
    loras.ok("library", "scan")
    shown = loras.ok("library", "show", "new name").out
    assert "best at 0.7" in shown and "★★★★" in shown and "mine, red" in shown
    (one,) = loras.ok("library", "search", "--tag", "MINE", "--rating", "4", "--json").json
    assert Path(one["path"]).name == "new name.safetensors"
    # the former name leads to it, anywhere
    assert loras.ok("inspect", "mimi", "--json").json[0]["path"].endswith("new name.safetensors")
    loras.ok("mix", "mimi:0.5", "other", "-o", "out.safetensors")
    loras.ok("library", "tag", "mimi", "--remove", "red")
    assert loras.ok("library", "rate", "mimi", "0", "--json").json["tags"] == ["mine"]
    assert loras.ok("library", "note", "mimi", "", "--json").json["note"] is None
    assert loras.ok("library", "tag", "mimi", "--remove", "--json").json["tags"] == []
    changed = {path for path, state in loras.state().items() if before.get(path) != state}
    assert changed == {"loras/new name.safetensors", "out.safetensors"}


def test_own_words_of_files_that_are_gone_or_new(loras):
    loras.ok("library", "tag", "mimi", "mine")
    Path("loras/sub/mimi.safetensors").unlink()
    assert "mine" in loras.ok("library", "show", "mimi").out
    loras.ok("library", "scan")
    assert "was at" in (shown := loras.ok("library", "show", "sub/mimi").out) and "mine" in shown
    assert "(missing)" in loras.ok("library", "search", "mine", "--missing").out
    loras.ok("library", "tag", "b.safetensors", "new")  # also the tensors of other.safetensors
    assert "new" in loras.ok("library", "show", "other").out
    loras.refused(3, "library", "show", "nowhere", says="nowhere")
    loras.refused(2, "library", "tag", "b.safetensors", says="a tag is missing")
    loras.refused(2, "library", "rate", "b.safetensors", "6", says="6")


def test_show(loras):
    shown = loras.ok("library", "show", "mimi").out
    for words in ("Mimi the cat", "AutoV2", "AutoV3", "mimi.civitai.info", "mimi.preview.png"):
        assert words in shown
    found = loras.ok("library", "show", "mimi", "--json").json
    assert found["trigger_words"] == ["flat", "mimi cat"] and found["file"]["what"] == "adapter"
    assert "other.json: it is not JSON" in loras.ok("library", "show", "other").out


def test_similar_and_duplicates(loras):
    shown = loras.ok("library", "similar", "mimi").out
    assert "quiet.safetensors is mimi.safetensors times 0.7, converted" in shown
    found = loras.ok("library", "similar", "a.safetensors", "--json", "--most", "3").json
    kinds = {Path(one["path"]).stem: one["kind"] for one in found}
    assert kinds["quiet"] == "rescaled" and kinds["mimi"] == "same" and kinds["other"] is None
    shutil.copy("a.safetensors", "loras/twin.safetensors")
    loras.ok("library", "scan")
    shown = loras.ok("library", "duplicates").out
    assert "4 files: 1 file at several places, 1 pair of copies." in shown
    assert "the same file: " in shown and "times" in shown
    (pair,) = loras.ok("library", "duplicates", "--json").json["pairs"]
    assert pair["kind"] == "rescaled"
    assert "Nothing in the index is related" in loras.ok("library", "similar", "other").out


def test_two_files_of_one_former_name(loras):
    (loras.folder / "loras/x").mkdir()
    shutil.copy("b.safetensors", "loras/x/mimi.safetensors")
    loras.ok("library", "scan")
    shutil.move("loras/sub/mimi.safetensors", "loras/one.safetensors")
    shutil.move("loras/x/mimi.safetensors", "loras/two.safetensors")
    loras.ok("library", "scan")
    loras.refused(
        2, "inspect", "mimi", says=("several files", "one.safetensors", "other.safetensors")
    )


def test_a_folder_that_is_only_indexed(loras):
    (loras.folder / "far").mkdir()
    shutil.copy("a.safetensors", "far/distant.safetensors")
    loras.ok("library", "scan", "far")
    assert "only indexed" in loras.ok("library", "list").out
    loras.ok("inspect", "distant")
    loras.ok("library", "remove", "far")
    loras.refused(3, "inspect", "distant", says="distant")
    assert "only indexed" not in loras.ok("library", "list").out
    loras.ok("library", "remove", "loras")
    with open_index() as index:
        assert index.places() == []


def test_without_an_index(run):
    for words in (["search", "x"], ["similar", "a"], ["duplicates"]):
        run.refused(3, "library", *words, says="library scan FOLDER makes one")
    run.refused(2, "library", "scan", says="no folders of adapters")
    run.refused(3, "library", "scan", "nothing", says="nothing")


def test_recipes_find_moved_inputs_by_digest(loras):
    loras.ok("mix", "loras/sub/mimi.safetensors:0.5", "-o", "half.safetensors")
    (loras.folder / "far").mkdir()
    shutil.move("loras/sub/mimi.safetensors", "far/renamed.safetensors")
    Path("a.safetensors").unlink()
    loras.ok("library", "scan", "far")
    assert "same" in loras.ok("run", "half.safetensors").out
