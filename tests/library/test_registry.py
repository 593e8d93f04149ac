"""The registry, the digests, and other programs' folders."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from loramerge.errors import CorruptFile, FileError, NotFound, UsageError
from loramerge.library import digests
from loramerge.library.digests import digest_of, digest_of_files
from loramerge.library.programs import PROGRAM_FOLDERS, program_folders
from loramerge.library.registry import Folder, NameRegistry, home, load_registry


def test_round_trip(tmp_path):
    assert load_registry() == NameRegistry()
    registry = NameRegistry()
    (tmp_path / "ü b").mkdir()
    registry.add_base("sd2.1 (mine)", tmp_path / "ü b")
    assert registry.add_folder(tmp_path / "ü b", "adapters")
    assert not registry.add_folder(tmp_path / "ü b" / ".." / "ü b", "adapters")
    registry.save()
    assert load_registry() == registry
    assert registry.add_folder(tmp_path / "ü b", "bases") and len(registry.folders) == 1
    registry.remove_base("sd2.1 (mine)")
    registry.remove_folder(tmp_path / "ü b")
    registry.save()
    assert load_registry() == NameRegistry()


def test_refusals(tmp_path):
    registry = NameRegistry()
    registry.add_base("x", tmp_path)
    with pytest.raises(UsageError, match="already registered"):
        registry.add_base("x", tmp_path / "other")
    registry.add_base("x", tmp_path / "other", force=True)
    for wrong in (lambda: registry.remove_base("y"), lambda: registry.remove_folder(tmp_path),
                  lambda: registry.add_folder(tmp_path / "nothing")):  # fmt: skip
        with pytest.raises(NotFound):
            wrong()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "1", '{"bases": {}}', '{"bases": [], "folders": []}', "\ufeff{}"]
)
def test_corrupt_registries(content):
    home().mkdir(parents=True)
    (home() / "registry.json").write_text(content, "utf-8")
    with pytest.raises(CorruptFile, match=r"registry\.json"):
        load_registry()


def test_a_home_that_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORAMERGE_HOME", str(tmp_path / "file"))
    with pytest.raises(FileError):
        NameRegistry().save()


def test_home(monkeypatch, tmp_path):
    monkeypatch.setenv("LORAMERGE_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("LORAMERGE_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert home().name == "loramerge"


# --- digests --------------------------------------------------------------------------------------


class _Forgetful(dict):
    """What a new process remembers."""

    def __setitem__(self, key, value):
        pass


@pytest.fixture(autouse=True)
def _cache_on_disk(monkeypatch):
    """Small files are looked up, and in the file alone."""
    monkeypatch.setattr(digests, "_WORTH", 0)
    monkeypatch.setattr(digests, "_this_process", _Forgetful())


def test_small_files_need_no_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_WORTH", 100)
    file = tmp_path / "small"
    file.write_bytes(b"abc")
    assert digest_of(file) == hashlib.sha256(b"abc").hexdigest()
    assert not (home() / "digests.json").exists()


def test_a_process_hashes_a_file_once(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_this_process", {})
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    first = digest_of(file)
    monkeypatch.setattr(digests, "sha256_of_file", lambda path: "again")
    (home() / "digests.json").unlink()
    assert digest_of(file) == first
    file.write_bytes(b"abcd")
    assert digest_of(file) == "again"


@pytest.fixture
def counted(monkeypatch):
    """Counts how often a file is really hashed."""
    seen = []

    def sha(path):
        seen.append(Path(path).name)
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()

    monkeypatch.setattr(digests, "sha256_of_file", sha)
    return seen


def test_a_file_is_hashed_once_and_again_when_it_changed(tmp_path, counted):
    file = tmp_path / "x"
    file.write_bytes(b"one")
    expected = hashlib.sha256(b"one").hexdigest()
    assert digest_of(file) == digest_of(file) == expected and counted == ["x"]
    os.utime(file, ns=(1, 1))
    assert digest_of(file) == expected and counted == ["x", "x"]
    file.write_bytes(b"two")  # as long as before
    os.utime(file, ns=(2, 2))
    assert digest_of(file) == hashlib.sha256(b"two").hexdigest() and len(counted) == 3


def test_a_replaced_file_of_the_same_time_and_size(tmp_path, counted):
    file, other = tmp_path / "x", tmp_path / "y"
    file.write_bytes(b"one")
    other.write_bytes(b"two")
    for path in (file, other):
        os.utime(path, ns=(5, 5))
    digest_of(file)
    os.replace(other, file)
    assert digest_of(file) == hashlib.sha256(b"two").hexdigest()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 1}'])
def test_a_broken_cache_is_forgotten(tmp_path, content, counted):
    home().mkdir(parents=True)
    (home() / "digests.json").write_text(content)
    file = tmp_path / "x"
    file.write_bytes(b"one")
    assert digest_of(file) == digest_of(file) and counted == ["x"]


def test_entries_of_another_form(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b"one")
    home().mkdir(parents=True)
    for entry in (1, None, [1, 2], "text", [1, 2, 3, 4, 5]):
        (home() / "digests.json").write_text(json.dumps({os.path.realpath(file): entry}))
        assert digest_of(file) == hashlib.sha256(b"one").hexdigest()


def test_a_home_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORAMERGE_HOME", str(tmp_path / "file" / "home"))
    assert digest_of(tmp_path / "file") == hashlib.sha256(b"").hexdigest()


def test_the_cache_does_not_grow_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_MOST", 3)
    for i in range(5):
        (tmp_path / str(i)).write_bytes(bytes([i]))
        digest_of(tmp_path / str(i))
    kept = json.loads((home() / "digests.json").read_text())
    assert [os.path.basename(k) for k in kept] == ["2", "3", "4"]


def test_digests_of_folders(tmp_path):
    for name in ("b/x", "a/y"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(name.encode())
    files = [tmp_path / "b/x", tmp_path / "a/y"]
    one = digest_of_files(tmp_path, files)
    assert one == digest_of_files(tmp_path, files[::-1])
    os.replace(tmp_path / "a/y", tmp_path / "a/z")
    assert one != digest_of_files(tmp_path, [tmp_path / "b/x", tmp_path / "a/z"])


# --- programs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAM_FOLDERS)
def test_programs(tmp_path, program):
    with pytest.raises(NotFound):
        program_folders(program, tmp_path)
    for below, _ in PROGRAM_FOLDERS[program]:
        (tmp_path / below).mkdir(parents=True)
    found = program_folders(program, tmp_path)
    assert found == [
        Folder(str((tmp_path / b).resolve()), holds) for b, holds in PROGRAM_FOLDERS[program]
    ]


def test_extra_model_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "me"))
    for name in ("me/webui/Lora", "me/webui/SD", "beside"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "extra_model_paths.yaml").write_text(
        "a:\n  base_path: ~/webui\n  loras: Lora\n  checkpoints: |\n    SD\n    nothing\n"
        "b:\n  loras: beside\nc: 5\nd:\n  loras:\n"
    )
    found = {Path(f.path).name: f.holds for f in program_folders("comfyui", tmp_path)}
    assert found == {"Lora": "adapters", "SD": "bases", "beside": "adapters"}


@pytest.mark.parametrize("content", ["", "# nothing\n"])
def test_extra_model_paths_without_content(tmp_path, content):
    (tmp_path / "extra_model_paths.yaml").write_text(content)
    with pytest.raises(NotFound):
        program_folders("comfyui", tmp_path)


def test_updates_at_once_are_all_kept(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from loramerge.library.registry import changed_registry

    def add(number):
        (tmp_path / f"f{number}").mkdir()
        with changed_registry() as registry:
            registry.add_base(f"b{number}", tmp_path)
        with changed_registry() as registry:
            registry.add_folder(tmp_path / f"f{number}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, range(12)))
    registry = load_registry()
    assert len(registry.bases) == 12 and len(registry.folders) == 12


def test_an_update_that_fails_changes_nothing(tmp_path):
    from loramerge.library.registry import changed_registry

    with pytest.raises(NotFound), changed_registry() as registry:
        registry.add_base("x", tmp_path)
        registry.remove_base("y")
    assert load_registry() == NameRegistry()
