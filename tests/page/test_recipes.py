"""Recipes on the page: read, saved and run, and kept inside the places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.page.serving import Served

pytest.importorskip("starlette")

from loramerge.library.shipped import shipped
from loramerge.page.doing import recipe as doing
from loramerge.recipe.picture import edges, nodes
from loramerge.recipe.recipe import load_recipe

pytestmark = pytest.mark.xdist_group("page")
TWO = """
version: 1
vars: {w: 0.5}
inputs: {character: zuzu}
steps:
  blend:
    mix: {adapters: [character, "polka:${w}"]}
  small:
    resize: {adapter: blend, rank: 4}
    save: "%s"
"""


def _open(page: Served, **asked: Any) -> dict[str, Any]:
    found = page.post("/api/recipe", asked)
    assert found.status == 200, found
    return dict(found.body)


def _run(page: Served, **asked: Any) -> dict[str, Any]:
    return page.until(page.post("/api/jobs", asked).body["id"])


def test_a_text_shows_its_tasks_variables_and_graph(page: Served) -> None:
    found = _open(page, text=TWO % "two.safetensors")
    assert (found["mistakes"], found["variables"]) == ([], {"w": 0.5})
    assert found["inputs"] == {"character": "zuzu"}
    small = found["tasks"][1]
    assert (small["name"], small["verb"], small["needs"]) == ("small", "resize", ["blend"])
    assert (small["state"], small["ranks"], small["refused"]) == ("will run", {"4": 84}, None)
    assert found["graph"]["edges"] == [
        ["character", "blend"], ["polka", "blend"], ["blend", "small"],
    ]  # fmt: skip


def test_the_graph_is_that_of_the_command_line(page: Served) -> None:
    (page.folder / "graph.yaml").write_text(TWO % "graph.safetensors")
    recipe = load_recipe(page.folder / "graph.yaml")
    found = _open(page, path="graph.yaml")["graph"]
    assert [tuple(one.values()) for one in found["nodes"]] == list(nodes(recipe))
    assert [tuple(one) for one in found["edges"]] == list(edges(recipe))


def test_the_recipes_that_come_along_can_be_opened(page: Served) -> None:
    from loramerge.recipe.shipped import shipped_recipes

    offered = page.get("/api/about").body["recipes"]
    assert [one["name"] for one in offered] == [one.name for one in shipped_recipes()]
    for one in offered:
        assert one["summary"] and _open(page, text=one["text"])["text"] == one["text"]


def test_mistakes_are_listed_together_with_the_text(page: Served) -> None:
    text = "version: 2\nsteps:\n  a: {mixx: {}}\n  b: {resize: {adapter: nothing, rank: 0}}\n"
    found = _open(page, text=text)
    assert len(found["mistakes"]) >= 3 and found["tasks"] == []
    assert found["text"] == text
    assert len(_open(page, text="a: [")["mistakes"]) == 1
    assert _open(page, text="")["mistakes"] != []
    assert "no variable 'v'" in _open(page, text=TWO % "a", set={"v": 1})["mistakes"][0]


def test_a_recipe_is_saved_run_and_up_to_date(page: Served) -> None:
    text = TWO % "saved.safetensors"
    saved = page.post("/api/recipe/save", {"path": "recipes/saved.yaml", "text": text})
    assert saved.body["reference"] == "recipes/saved.yaml"
    assert (page.folder / "recipes" / "saved.yaml").read_text() == text
    assert (
        "exists" in page.post("/api/recipe/save", {"path": "recipes/saved.yaml", "text": "x"}).error
    )
    job = _run(page, recipe="recipes/saved.yaml", set={"w": "0.25"})
    assert job["state"] == "done", job["error"]
    assert job["command"] == "loramerge run recipes/saved.yaml --set w=0.25"
    assert job["outputs"] == ["recipes/saved.safetensors"]
    states = [
        one["state"] for one in _open(page, path="recipes/saved.yaml", set={"w": 0.25})["tasks"]
    ]
    assert states == ["not needed", "up to date"]
    assert _open(page, path="recipes/saved.yaml")["tasks"][1]["state"] == "will run"


def test_a_changed_text_starts_from_the_folder_of_its_file(page: Served) -> None:
    text = "version: 1\ninputs: {a: own.safetensors}\n"
    text += "steps: {s: {resize: {adapter: a, rank: 2}, save: b.safetensors}}"
    (page.folder / "deep").mkdir()
    (page.folder / "deep" / "r.yaml").write_text(text)
    (page.folder / "deep" / "own.safetensors").write_bytes(shipped("zuzu").read_bytes())
    assert _open(page, path="deep/r.yaml")["mistakes"] == []
    assert _run(page, recipe="deep/r.yaml")["state"] == "done"
    found = _open(page, text=text + "\n# changed", beside="deep/r.yaml")
    assert (found["mistakes"], found["tasks"][0]["state"]) == ([], "up to date")
    assert found["text"].endswith("# changed")
    assert _open(page, text=text)["mistakes"] != []  # as before: from the current folder
    asked = {"text": text, "beside": "../elsewhere/r.yaml"}
    assert "may not use" in page.post("/api/recipe", asked).error


@pytest.mark.parametrize("path", ["a.txt", "../a.yaml", "/tmp/a.yaml", "a\nb.yaml", "", None, 1])
def test_a_recipe_is_saved_as_yaml_inside_of_the_places(path: Any, page: Served) -> None:
    found = page.post("/api/recipe/save", {"path": path, "text": "version: 1\n"})
    assert found.status == 400


@pytest.mark.parametrize("asked", [{}, {"path": "a", "text": "b"}, {"path": 1}, {"text": []},
                                   {"path": "../x.yaml"}, {"path": "none.yaml"},
                                   {"text": "version: 1", "set": []}])  # fmt: skip
def test_a_request_without_a_recipe_is_refused(asked: dict[str, Any], page: Served) -> None:
    assert page.post("/api/recipe", asked).status == 400


OUTSIDE = {
    "a save": TWO % "../elsewhere/made.safetensors",
    "an absolute save": TWO % "/tmp/loramerge-made.safetensors",
    "a save through a link": TWO % "linked/made.safetensors",
    "an input": "inputs: {a: ../elsewhere/secret.safetensors}\nsteps: {s: {inspect: {files: a}}}",
    "an input by a variable": "vars: {v: ../elsewhere}\ninputs: {a: '${v}/secret.safetensors'}\n"
    "steps: {s: {inspect: {files: a}}}",
    "an adapter": "steps: {s: {mix: {adapters: [../elsewhere/secret.safetensors]}, save: m}}",
    "a base": "steps: {s: {bake: {base: ../elsewhere/secret.safetensors, adapters: [zuzu]}, save: b}}",
    "a pattern": "sweep: {f: {files: '../elsewhere/*'}}\n"
    "steps: {s: {resize: {adapter: '${f}', rank: 1}, save: '${f.stem}-1.safetensors'}}",
    "a value of a sweep": "sweep: {f: ['../elsewhere/secret.safetensors', zuzu]}\n"
    "steps: {s: {resize: {adapter: '${f}', rank: 1}, save: 'x-${f.stem}.safetensors'}}",
    "the folder of a run": "steps: {s: {train: {base: tiny, images: ., folder: ../elsewhere}, "
    "save: t.safetensors}}",
    "a caption elsewhere": "steps: {s: {train: {base: tiny, images: captioned}, "
    "save: t.safetensors}}",
    "a picture": "steps: {s: {card: {file: zuzu, picture: [../elsewhere/a.png]}, save: c.md}}",
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_recipe_that_leads_outside_is_refused_before_anything_runs(
    name: str, page: Served
) -> None:
    elsewhere = page.folder.parent / "elsewhere"
    if not (page.folder / "linked").is_symlink():
        (page.folder / "linked").symlink_to(elsewhere)
        (page.folder / "captioned").mkdir()
        (page.folder / "captioned" / "a.txt").symlink_to(elsewhere / "secret.safetensors")
    text = (
        OUTSIDE[name] if name.endswith("save") or "link" in name else f"version: 1\n{OUTSIDE[name]}"
    )
    before = sorted(elsewhere.iterdir())
    found = _open(page, text=text + "\n")
    assert "may not use this path" in found["mistakes"][0]
    assert found["tasks"] == []
    assert sorted(elsewhere.iterdir()) == before


def test_the_run_of_such_a_recipe_fails_and_writes_nothing(page: Served) -> None:
    text = TWO % "first.safetensors" + "  last:\n    resize: {adapter: zuzu, rank: 1}\n" + (
        "    save: ../elsewhere/last.safetensors\n"
    )  # fmt: skip
    job = _run(page, recipe=text)
    assert job["state"] == "failed" and "may not use this path" in job["error"]["text"]
    assert not (page.folder / "first.safetensors").exists()
    (page.folder / "sub").mkdir(exist_ok=True)
    (page.folder / "sub" / "up.yaml").write_text(TWO % "../up.safetensors")
    job = _run(page, recipe="sub/up.yaml")  # inside of the places, but not of the recipe's folder
    assert "writes outside of its folder" in job["error"]["text"]


def test_without_the_check_the_recipe_writes_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault of the tests above."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    asked = {"text": TWO % "../made.safetensors", "run": True, "opened": [], "force": False}
    with pytest.raises(doing.UsageError):
        doing.do(asked, lambda event: None)
    monkeypatch.setattr(doing._RecipeText, "_check", lambda *_: None)
    doing.do(asked, lambda event: None)
    assert (tmp_path / "made.safetensors").exists()


def test_the_digest_of_a_file_elsewhere_is_not_told(page: Served) -> None:
    place = page.folder.parent / "elsewhere" / "secret.safetensors"
    text = f"version: 1\ninputs: {{a: {{path: '{place}', sha256: '{'0' * 64}'}}}}\n"
    found = _open(page, text=text + "steps: {s: {inspect: {files: a}}}\n")
    assert "sha256" not in json.dumps(found["mistakes"])
