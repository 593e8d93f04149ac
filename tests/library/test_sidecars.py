"""Files of other programs beside an adapter are read, however broken, and never written."""

from __future__ import annotations

import json
import os

import pytest

from loramerge.library.sidecars import SidecarFacts, sidecar_facts


@pytest.fixture
def beside(tmp_path):
    """Write sidecars beside an adapter, and read them."""
    adapter = tmp_path / "cat v1.2.safetensors"
    adapter.write_bytes(b"")

    def read(**files):
        for suffix, content in files.items():
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            (tmp_path / f"cat v1.2{suffix}").write_bytes(raw)
        return sidecar_facts(adapter)

    return read


VERSION = {
    "name": "v1.2",
    "baseModel": "SDXL 1.0",
    "trainedWords": ["zuzu cat", "zuzu cat", "sitting,", 7, None],
    "description": None,
    "model": {
        "name": "Zuzu",
        "tags": ["animal", "cat"],
        "description": "<p>A <b>cat</b> &amp; more.</p><script>alert(1)</script><p>Use it.</p>",
    },
}


def test_every_program(beside):
    manager = {
        "model_name": "Zuzu the cat",
        "base_model": "Unknown",
        "notes": "mine",
        "tags": ["cat"],
        "civitai": VERSION,
        "usage_tips": '{"strength": 0.8}',
    }
    found = beside(**{".metadata.json": manager})
    assert (found.title, found.version, found.notes) == ("Zuzu the cat", "v1.2", "mine")
    assert found.trigger_words == ("zuzu cat", "sitting") and found.tags == ("cat",)
    assert (found.base, found.weight) == (None, 0.8)
    assert found.description == "A cat & more.\nUse it."
    user = {"activation text": "zuzu, red collar", "preferred weight": 0.6, "sd version": "SDXL"}
    found = beside(**{".json": user, ".civitai.info": VERSION})
    assert found.trigger_words == ("zuzu cat", "sitting", "zuzu", "red collar")
    assert found.tags == ("cat", "animal") and found.weight == 0.8 and found.base == "SDXL"
    assert len(found.sources) == 3 and not found.problems


def test_stability_matrix(beside):
    found = beside(**{".cm-info.json": {"ModelName": "Zuzu", "TrainedWords": ["zuzu"], "Tags": 1}})
    assert found == SidecarFacts(
        title="Zuzu", trigger_words=("zuzu",), sources=("cat v1.2.cm-info.json",)
    )


def test_previews(beside, tmp_path):
    assert beside().preview is None
    (tmp_path / "cat v1.2.preview.PNG").mkdir()
    assert beside().preview is None  # a folder is not a picture
    assert beside(**{".webp": b"RIFF"}).preview == tmp_path / "cat v1.2.webp"
    assert beside(**{".jpeg": b"\xff"}).preview == tmp_path / "cat v1.2.jpeg"
    assert beside().json()["preview"] == str(tmp_path / "cat v1.2.jpeg")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe{", "UTF-8"),
        (b"{" * 100, "not JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b"[1]", "object"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
    ],
    ids=["empty", "utf-16", "cut off", "deep", "list", "digits"],
)
def test_broken_ones_are_reported(beside, content, says):
    found = beside(**{".metadata.json": content, ".civitai.info": VERSION})
    assert len(found.problems) == 1 and says in found.problems[0]
    assert found.problems[0].startswith("cat v1.2.metadata.json: ") and found.title == "Zuzu"


@pytest.mark.parametrize("value", [[], {}, 1, True, None, "", "\ud800\0", [[]], 1e999, -0.0])
def test_values_of_any_type_do_no_harm(beside, value):
    keys = (
        "model_name",
        "base_model",
        "notes",
        "tags",
        "modelDescription",
        "usage_tips",
        "civitai",
    )
    found = beside(**{".metadata.json": dict.fromkeys(keys, value)})
    assert (found.title or "").encode("utf-8") is not None  # what is found can be stored
    assert not found.problems and found.weight is None
    found = beside(
        **{".metadata.json": {"civitai": dict.fromkeys(VERSION, value), "tags": [value]}}
    )
    assert not found.problems


def test_huge_ones_are_not_read(beside, monkeypatch):
    monkeypatch.setattr("loramerge.library.sidecars._LARGEST", 1 << 20)
    assert "larger than" in beside(**{".json": b" " * (1 << 20) + b"{}"}).problems[0]
    words = ["w" * 50_000] + [f"{n}" for n in range(10_000)]
    found = beside(**{".civitai.info": {"trainedWords": words}})
    assert len(found.trigger_words) == 500 and len(found.trigger_words[0]) == 20_000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(beside, tmp_path):
    os.mkfifo(tmp_path / "cat v1.2.json")
    assert "regular file" in beside().problems[0]


def test_json_of_another_program_says_nothing(beside):
    assert beside(**{".json": {"r": 8, "alpha": 16}}) == SidecarFacts()
