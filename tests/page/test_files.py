"""The files that one may choose from, by what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.samples import safetensors_bytes
from tests.page.serving import Served, served

pytest.importorskip("starlette")

from loramerge.library.shipped import shipped
from loramerge.page.listing import holds, listing
from loramerge.page.places import Places

pytestmark = pytest.mark.xdist_group("page")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one of everything."""
    base = {"model.diffusion_model.out.2.weight": np.zeros((2, 2), "f4")}
    metadata = {"loramerge.recipe": '{"lora_down.weight":{"a": 1}}'}
    (tmp_path / "base.safetensors").write_bytes(safetensors_bytes(base, metadata))
    (tmp_path / "adapter.safetensors").write_bytes(shipped("zuzu").read_bytes())
    (tmp_path / "other.safetensors").write_bytes(safetensors_bytes({"x": np.zeros(1, "f4")}))
    (tmp_path / "short.safetensors").write_bytes(b"123")
    for name in ("a.png", "b.JPG", "r.yaml", "s.yml", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text("{}")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    (tmp_path / "pictures").mkdir()
    return tmp_path


def _names(found: dict[str, Any], word: str) -> list[str]:
    return [one["name"] for one in found[word]]


@pytest.mark.parametrize(
    ("kind", "files", "folders"),
    [
        ("adapters", ["adapter.safetensors", "other.safetensors", "peft", "short.safetensors"],
         ["model", "pictures"]),
        ("bases", ["base.safetensors", "model", "other.safetensors", "short.safetensors"],
         ["peft", "pictures"]),
        ("images", ["a.png", "b.JPG"], ["model", "peft", "pictures"]),
        ("recipes", ["r.yaml", "s.yml"], ["model", "peft", "pictures"]),
        ("folders", [], ["model", "peft", "pictures"]),
    ],
)  # fmt: skip
def test_files_are_listed_by_what_they_hold(
    kind: str, files: list[str], folders: list[str], folder: Path
) -> None:
    found = listing(str(folder), kind, Places(folder))
    assert (_names(found, "files"), _names(found, "folders")) == (files, folders)


def test_metadata_tells_nothing_of_what_a_file_holds(folder: Path) -> None:
    assert holds(str(folder / "base.safetensors")) == "bases"
    assert holds(str(folder / "adapter.safetensors")) == "adapters"
    assert holds(str(folder / "other.safetensors")) is None


def test_real_adapters_are_never_taken_for_bases(shared_data: Path) -> None:
    found = {p.name: holds(str(p)) for p in (shared_data / "adapters").rglob("*.safetensors")}
    assert [name for name, sort in found.items() if sort == "bases"] == []


def test_one_goes_up_as_far_as_the_places_reach(folder: Path) -> None:
    with served(folder / "pictures", folder, store=folder / "jobs") as page:
        found = page.get("/api/files").body
        assert found["parent"] == str(folder)
        above = page.get(f"/api/files?folder={folder}&kind=images").body
        assert above["parent"] is None
        assert above["files"][0] == {
            "name": "a.png", "path": str(folder / "a.png"), "reference": str(folder / "a.png"),
            "size": 0,
        }  # fmt: skip
        assert page.get("/api/files?kind=programs").status == 400
        assert page.get("/api/files?folder=none").status == 400


def test_an_opened_file_is_a_place_of_its_own(folder: Path) -> None:
    opened = folder / "adapter.safetensors"
    with served(folder / "pictures", opened, store=folder / "jobs") as page:
        values = {"adapter": str(opened), "rank": 2, "output": "small.safetensors"}
        assert page.post("/api/action", {"verb": "resize", "values": values}).status == 200
        values["adapter"] = str(folder / "other.safetensors")
        assert page.post("/api/action", {"verb": "resize", "values": values}).status == 400
        beside = page.post("/api/action", {"verb": "card", "values": {"file": str(opened)}})
        assert "may not use" in beside.error  # a card lands beside its adapter
        card = {"file": str(opened), "output": "card.md"}
        assert page.post("/api/action", {"verb": "card", "values": card}).status == 200
        assert page.post("/api/action", {"verb": "card", "values": {"file": "zuzu"}}).status == 200


def test_an_uploaded_adapter_is_an_input(folder: Path, page: Served) -> None:
    data = (folder / "adapter.safetensors").read_bytes()
    found = page.ask("POST", "/api/upload?name=mine.safetensors", raw=data)
    values = {"adapter": found.body["reference"], "rank": 2, "output": "mine-2.safetensors"}
    job = page.until(page.start("resize", **values))
    assert job["state"] == "done"
