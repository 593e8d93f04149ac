"""`hf:` references: what is downloaded of a repository, by a stand-in for the hub."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from loramerge.errors import FileError, MissingExtra, NotFound, UsageError
from loramerge.library import hub
from loramerge.library.hub import Hub, hub_reference
from loramerge.library.lookup import find
from loramerge.library.patterns import files_of
from loramerge.steps.references import parse_reference
from tests.builders.logged import logged

ADAPTERS = {
    "org/one": ["README.md", "style.safetensors"],
    "org/two": ["a.safetensors", "b.safetensors"],
    "org/peft": ["adapter_config.json", "adapter_model.safetensors", "optimizer.pt"],
    "org/parts": [
        "unet/adapter_config.json",
        "unet/adapter_model.safetensors",
        "text_encoder/adapter_config.json",
        "text_encoder/adapter_model.safetensors",
    ],
    "org/pipeline": ["pytorch_lora_weights.safetensors", "image.safetensors"],
    "org/deep": ["runs/7/adapter_config.json", "runs/7/adapter_model.safetensors"],
    "org/none": ["README.md"],
    "org/model": [
        "model_index.json",
        "unet/config.json",
        "unet/weights.safetensors",
        "unet/weights.fp16.safetensors",
        "vae/config.json",
        "vae/weights.fp16.safetensors",
        "original.safetensors",
    ],
}


@pytest.fixture
def asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, str | None, list[str]]]:
    found: list[tuple[str, str | None, list[str]]] = []

    def download(repository: str, revision: str | None, names: Sequence[str]) -> Path:
        found.append((repository, revision, sorted(names)))
        return tmp_path / repository

    monkeypatch.setattr(hub, "connect", lambda: Hub(lambda name, _: ADAPTERS[name], download))
    return found


@pytest.mark.parametrize(
    ("name", "files", "place"),
    [
        ("org/one", ["style.safetensors"], "style.safetensors"),
        ("org/two/b.safetensors", ["b.safetensors"], "b.safetensors"),
        ("org/peft", ["adapter_config.json", "adapter_model.safetensors"], ""),
        ("org/peft/adapter_model.safetensors", ["adapter_config.json", "adapter_model.safetensors"],
         "adapter_model.safetensors"),
        ("org/parts", ADAPTERS["org/parts"], ""),
        ("org/pipeline", ["pytorch_lora_weights.safetensors"], "pytorch_lora_weights.safetensors"),
        ("org/deep/runs/7", ADAPTERS["org/deep"], "runs/7"),
    ],
)  # fmt: skip
def test_an_adapter_is_downloaded_with_what_belongs_to_it(
    name: str,
    files: list[str],
    place: str,
    asked: list[tuple[str, str | None, list[str]]],
    tmp_path: Path,
) -> None:
    repository = "/".join(name.split("/")[:2])
    assert find(f"hf:{name}@v1.2", "adapters") == tmp_path / repository / place
    assert asked == [(repository, "v1.2", sorted(files))]


def test_of_a_model_the_weights_of_one_variant_are_downloaded(
    asked: list[tuple[str, str | None, list[str]]],
) -> None:
    find("hf:org/model", "bases")
    ((_, revision, files),) = asked
    assert revision is None and "unet/weights.safetensors" in files
    assert "unet/weights.fp16.safetensors" not in files and "vae/weights.fp16.safetensors" in files
    assert "original.safetensors" not in files


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("org/two", "several files"),
        ("org/none", "no files"),
        ("org/one/stile.safetensors", "no file 'stile.safetensors'"),
    ],
)
def test_what_is_not_there_is_said(name: str, says: str) -> None:
    with pytest.raises(NotFound, match=says):
        find(f"hf:{name}", "adapters")


@pytest.mark.parametrize("name", ["hf:", "hf:org", "hf:org/repo/../x", "hf:org/repo@"])
def test_what_is_no_reference_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="repository of Hugging Face"):
        hub_reference(name)


def test_a_weight_stands_behind_it() -> None:
    reference = parse_reference("hf:org/repo/style.safetensors@main:0.7")
    assert reference.name == "hf:org/repo/style.safetensors@main" and reference.written == "0.7"
    assert reference.label == "style" and parse_reference("hf:org/repo").label == "repo"


def test_a_recipe_takes_what_is_in_the_cache_only(
    asked: list[tuple[str, str | None, list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(b"")
    kept = Hub(lambda *_: ["a.safetensors"], lambda *_: folder)
    monkeypatch.setattr(hub, "cached", lambda: kept)
    assert find("hf:org/one", "adapters", root=tmp_path) == folder / "a.safetensors" and not asked


def test_without_the_package_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match="huggingface_hub"):
        find("hf:org/repo", "adapters")


class _Package:
    """The functions of huggingface_hub, without a network."""

    asked = 0

    @staticmethod
    def list_repo_files(*_: object, **__: object) -> list[str]:
        _Package.asked += 1
        logging.getLogger("huggingface_hub.utils").warning("Retrying")
        raise ConnectionError("no route to the host")

    @staticmethod
    def snapshot_download(*_: object, **__: object) -> str:
        raise FileNotFoundError("not in the cache")


def test_without_a_network_or_a_copy_it_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", _Package)  # type: ignore[arg-type]
    _Package.asked = 0
    said = r"was not downloaded: no route to the host"
    with logged("huggingface_hub") as words, pytest.raises(FileError, match=said) as caught:
        files_of("hf:org/repo")
    assert _Package.asked == 1 and not isinstance(caught.value, NotFound)
    assert not words  # the package's own words about each attempt
    with pytest.raises(NotFound, match="recipes do not download"):
        find("hf:org/repo", "adapters", root=tmp_path)


@pytest.mark.parametrize(
    ("value", "offline"), [("1", True), ("yes", True), ("0", False), ("", False)]
)
def test_without_the_hub_its_cache_is_asked(
    value: str, offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    own = hub.cached()
    monkeypatch.setattr(hub, "cached", lambda: own)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert (hub.connect() is own) == offline
