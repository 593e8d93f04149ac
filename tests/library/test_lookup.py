"""Names to files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loramerge.errors import NotFound, UsageError
from loramerge.library.lookup import find, names_in_library
from loramerge.library.paths import bare, is_adapter_folder
from loramerge.library.patterns import expand
from loramerge.library.registry import Folder, NameRegistry


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("lib/one.safetensors", "lib/sub/two.pt", "lib/.hidden/x.safetensors",
                 "lib/.y.safetensors",
                 "lib/notes.txt", "lib/v1.5/adapter_config.json", "lib/v1.5/adapter_model.safetensors",
                 "lib/both/unet/adapter_config.json", "lib/both/unet/adapter_model.safetensors",
                 "bases/model.safetensors", "bases/pipe/model_index.json",
                 "bases/pipe/unet/x.safetensors"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


@pytest.fixture
def registry(folder):
    return NameRegistry(
        {"named": str(folder / "bases" / "model.safetensors"), "gone": str(folder / "gone")},
        [Folder(str(folder / "lib"), "adapters"), Folder(str(folder / "bases"), "bases")],
    )


def test_files_of_a_library_are_found(registry):
    def names(holds):
        return sorted(name for name, _ in names_in_library(registry, holds))

    assert names("adapters") == ["both", "one.safetensors", "sub/two.pt", "v1.5"]
    assert names("bases") == ["model.safetensors", "pipe"]


@pytest.mark.parametrize(
    ("name", "found"),
    [("one", "one.safetensors"), ("one.safetensors", "one.safetensors"), ("two", "sub/two.pt"),
     ("sub/two", "sub/two.pt"), ("sub\\two", "sub/two.pt"), ("v1.5", "v1.5"), ("both", "both")],
)  # fmt: skip
def test_adapters_by_name(folder, registry, name, found):
    assert find(name, "adapters", registry) == folder / "lib" / found


@pytest.mark.parametrize(
    ("name", "found"),
    [("named", "model.safetensors"), ("model", "model.safetensors"), ("pipe", "pipe")],
)
def test_bases_by_name(folder, registry, name, found):
    assert find(name, "bases", registry) == folder / "bases" / found


def test_paths_come_first(folder, registry):
    (folder / "named").write_bytes(b"")
    assert find("named", "bases", registry) == Path("named")
    (folder / "one.safetensors").write_bytes(b"")
    assert find("one", "adapters", registry) == Path("one.safetensors")
    (folder / "one").write_bytes(b"")
    assert find("one", "adapters", registry) == Path("one")  # the whole name first
    assert find(str(folder / "lib" / "one"), "adapters", registry).name == "one.safetensors"


def test_the_whole_name_before_an_added_suffix(folder, registry):
    for name in ("detail_v1.1", "detail_v1.1.safetensors"):
        (folder / "lib" / name).write_bytes(b"")
    assert find("detail_v1.1", "adapters", registry).name == "detail_v1.1.safetensors"
    (folder / "lib" / "detail_v1.safetensors").write_bytes(b"")
    assert find("detail_v1", "adapters", registry).name == "detail_v1.safetensors"


@pytest.mark.parametrize("name", ["", " ", "\0", "x" * 5000, "x\ny", "x/" * 3000])
def test_texts_no_file_system_could_hold(registry, name):
    with pytest.raises((NotFound, UsageError)):
        find(name, "adapters", registry)


def test_not_found(folder, registry):
    with pytest.raises(NotFound) as caught:
        find("tow", "adapters", registry)
    assert str(folder / "lib") in str(caught.value) and str(folder / "bases") not in str(
        caught.value
    )
    assert caught.value.hint == "did you mean two?"
    with pytest.raises(NotFound, match=r"registered bases \(2\)") as caught:
        find("nmaed", "bases", registry)
    assert caught.value.hint == "did you mean named?"
    with pytest.raises(NotFound, match="gone"):
        find("gone", "bases", registry)


def test_found_twice(folder, registry):
    (folder / "lib" / "sub" / "one.safetensors").write_bytes(b"")
    with pytest.raises(UsageError) as caught:
        find("one", "adapters", registry)
    assert str(folder / "lib" / "one.safetensors") in str(caught.value.found)
    assert str(folder / "lib" / "sub" / "one.safetensors") in str(caught.value.found)
    assert find("sub/one", "adapters", registry).parent.name == "sub"


def test_one_file_by_two_ways_is_found_once(folder, registry):
    registry.folders.append(Folder(str(folder / "lib" / "sub"), "both"))
    assert find("two", "adapters", registry).name == "two.pt"


def test_adapter_folders(folder):
    assert is_adapter_folder(folder / "lib" / "v1.5") and is_adapter_folder(folder / "lib" / "both")
    assert not is_adapter_folder(folder / "lib") and not is_adapter_folder(folder / "nothing")


def test_expanding(folder, registry):
    def expanded(*names):
        return [(p.as_posix(), r.as_posix()) for p, r in expand(names)]

    assert expanded("lib") == [
        ("lib/one.safetensors", "one.safetensors"), ("lib/both", "both"),
        ("lib/sub/two.pt", "sub/two.pt"), ("lib/v1.5", "v1.5"),
    ]  # fmt: skip
    assert expanded("lib/*") == [
        ("lib/both", "both"), ("lib/one.safetensors", "one.safetensors"), ("lib/v1.5", "v1.5"),
    ]  # fmt: skip
    assert expanded("lib/**/t[wx]o.*") == [("lib/sub/two.pt", "sub/two.pt")]
    assert expanded("l?b/*/*.pt") == [("lib/sub/two.pt", "lib/sub/two.pt")]
    assert expanded("lib/v1.5", "lib/v1.5/") == [("lib/v1.5", "v1.5")]
    os.chdir("lib/v1.5")
    assert expanded(".") == [(".", "v1.5")]


def test_bare():
    assert [bare(n) for n in ("a.safetensors", "a.SafeTensors", "a.v1", "a.pt", "x/a.ckpt", "a")] == [
        "a", "a", "a.v1", "a", "x/a", "a",
    ]  # fmt: skip


def test_folders_of_the_same_name_are_no_answer(folder, registry):
    """A folder that is neither adapter nor checkpoint is meant only if nothing else is."""
    (folder / "one").mkdir()
    (folder / "named").mkdir()
    assert find("one", "adapters", registry) == folder / "lib" / "one.safetensors"
    assert find("named", "bases", registry) == folder / "bases" / "model.safetensors"
    (folder / "here").mkdir()
    (folder / "here.safetensors").write_bytes(b"")
    assert find("here", "adapters", registry) == Path("here.safetensors")
    (folder / "alone").mkdir()
    assert find("alone", "adapters", registry) == Path("alone")


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_linked_folders_are_part_of_the_library(folder, registry):
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "linked.safetensors").write_bytes(b"")
    (folder / "lib" / "link").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder / "lib")  # a circle ends
    assert find("linked", "adapters", registry).name == "linked.safetensors"


@pytest.mark.parametrize("name", ["models/tiny", "my/own/tiny", "models/mine"])
def test_the_last_part_of_a_path_may_be_a_known_base(name, tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(b"")
    registry = NameRegistry(bases={"mine": str(tmp_path / "mine.safetensors")})
    with pytest.raises(NotFound) as caught:
        find(name, "bases", registry, tmp_path / "elsewhere")
    assert caught.value.hint == f"did you mean {name.rpartition('/')[2]}?"
    with pytest.raises(NotFound) as caught:
        find("models/other", "bases", registry, tmp_path / "elsewhere")
    assert caught.value.hint == "hf:models/other downloads it from Hugging Face"
