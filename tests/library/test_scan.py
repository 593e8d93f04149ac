"""The index follows folders: new, changed, moved and vanished files, by one process or by many."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from loramerge.adapter.save import save
from loramerge.errors import FileError, LoramergeError, NotFound
from loramerge.files.writer import write_tensors
from loramerge.library import contents, index, scanning
from loramerge.library.entries import entry, indexed_paths, search, with_digest
from loramerge.library.index import Own, open_index
from loramerge.library.scanning import ScanResult, scan_file
from loramerge.library.sketches import Sketches
from tests.algebra.test_ingredients import generated
from tests.builders.commands import ROOT
from tests.builders.deltas import rng, tensor

SHAPES = {"unet.a": (12, 10), "unet.b": (8, 14)}


def write(path: Path, seed: int, **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save(generated(seed, 2, SHAPES), path, force=True, metadata=metadata)
    return path


@pytest.fixture
def folder(tmp_path):
    for seed in range(3):
        write(tmp_path / "loras" / "sub" / f"style{seed}.safetensors", seed)
    return tmp_path / "loras"


def scanned(*folders: Path, **options) -> ScanResult:
    with open_index() as opened:
        return scanning.scan(opened, list(folders), threads=1, **options)


def names(paths: list[str]) -> list[str]:
    return [Path(path).name for path in paths]


def read_files(monkeypatch) -> list[Path]:
    """Return a list that grows with every file that is read."""
    found: list[Path] = []
    digests = scanning.digests
    monkeypatch.setattr(scanning, "digests", lambda path: (found.append(path), digests(path))[1])
    return found


def test_only_what_is_new_or_changed_is_read(folder, monkeypatch):
    assert names(scanned(folder).new) == [f"style{n}.safetensors" for n in range(3)]
    read = read_files(monkeypatch)
    again = scanned(folder)
    assert (again.files, again.new, again.changed, read) == (3, [], [], [])
    write(folder / "sub/style1.safetensors", 7)
    write(folder / "style9.safetensors", 9)
    found = scanned(folder)
    assert names(found.changed) == ["style1.safetensors"] == names(found.changed)
    assert names(found.new) == ["style9.safetensors"] and len(read) == 2
    assert scanned(folder, fresh=True).changed == [] and len(read) == 6


def test_facts(folder):
    path = write(
        folder / "x.safetensors",
        5,
        ss_output_name="Zuzu 猫",
        ss_tag_frequency='{"10_zuzu cat": {"red": 3}}',
        ss_training_comment="for cats",
    )
    scanned(folder)
    with open_index() as opened:
        (one,) = search(opened, ["zuzu"])
    assert one.path == path and one.trigger_words == ["zuzu cat"] and one.rank == "2"
    assert one.facts["tags"] == [["red", 3]] and one.facts["title"] == "Zuzu 猫"
    raw = path.read_bytes()
    import hashlib

    start = 8 + int.from_bytes(raw[:8], "little")
    assert one.facts["autov2"] == hashlib.sha256(raw).hexdigest()[:10]
    assert one.facts["autov3"] == hashlib.sha256(raw[start:]).hexdigest()[:12]
    assert one.facts["sha256"] == hashlib.sha256(raw).hexdigest()


def test_moved_files_keep_what_was_said_of_them(folder, tmp_path, monkeypatch):
    scanned(folder)
    moved = folder / "sub/style1.safetensors"
    with open_index() as opened, opened.writing():
        facts = opened.facts(scan_file_content(opened, moved))
        opened.put_own(facts["identity"], Own(("mine",), "good", 4))
    read = read_files(monkeypatch)
    other = folder / "elsewhere" / "new name.safetensors"
    other.parent.mkdir()
    shutil.move(moved, other)
    found = scanned(folder)
    assert names(found.moved) == ["new name.safetensors"] and not found.new
    assert names(found.missing) == ["style1.safetensors"]
    assert read == []  # a renamed file is the same by size, time and inode
    with open_index() as opened:
        (one,) = search(opened, ["mine"])
        assert one.own == Own(("mine",), "good", 4) and one.path == other and not one.missing
        assert [o.path for o in search(opened, ["style1"])] == [other]  # by its former name, too
    # copied to another disk: another inode, the same content
    shutil.copy(other, tmp_path / "copy.safetensors")
    other.unlink()
    shutil.move(tmp_path / "copy.safetensors", folder / "third.safetensors")
    assert names(scanned(folder).moved) == ["third.safetensors"]
    assert indexed_paths(lambda name: name == "sub/style1.safetensors") == [
        folder / "third.safetensors"
    ]


def scan_file_content(opened, path):
    (found,) = opened.places("path = ?", str(path))
    return found.content


def words_stay_with_the_tensors(folder: Path) -> None:
    """Other metadata keep one's own words; other tensors do not."""
    path = folder / "sub/style0.safetensors"
    scanned(folder)

    def said() -> Own:
        with open_index() as opened:
            found = entry(opened, scan_file(opened, path).content)
            return found.own

    with open_index() as opened, opened.writing():
        opened.put_own(opened.facts(scan_file_content(opened, path))["identity"], Own(note="x"))
    assert said() == Own(note="x")
    write(path, 0, title="another title")
    assert said() == Own(note="x")
    write(path, 8)
    assert said() == Own()
    write(path, 0)
    assert said() == Own(note="x")


def test_what_was_said_stays_with_the_tensors(folder):
    words_stay_with_the_tensors(folder)


@pytest.mark.parametrize("wrong", [lambda known: known.sha256, lambda known: "all alike"])
def test_words_of_files_or_of_places_would_be_noticed(folder, monkeypatch, wrong):
    monkeypatch.setattr(contents.Digests, "identity", property(wrong))
    with pytest.raises(AssertionError):
        words_stay_with_the_tensors(folder)


def test_vanished_files_are_missing_and_not_forgotten(folder):
    scanned(folder)
    shutil.rmtree(folder)
    assert len(scanned(folder).missing) == 3
    with open_index() as opened:
        assert search(opened) == [] and len(search(opened, missing=True)) == 3
    write(folder / "sub/style0.safetensors", 0)
    assert len(scanned(folder).missing) == 2
    with open_index() as opened:
        assert [one.path.name for one in search(opened)] == ["style0.safetensors"]
        with pytest.raises(NotFound):
            scanning.scan(opened, [folder / "nothing"])


def test_folders_in_folders_are_one_index(folder):
    assert len(scanned(folder / "sub").new) == 3
    found = scanned(folder)
    assert found.files == 3 and found.new == []
    (folder / "sub/style0.safetensors").unlink()
    assert names(scanned(folder).missing) == ["style0.safetensors"]
    (folder / "sub/style1.safetensors").unlink()
    assert len(scanned(folder, folder / "sub").missing) == 2


def test_a_file_that_changes_while_it_is_read_is_read_again(folder, monkeypatch):
    path = folder / "sub/style0.safetensors"
    read = scanning.read

    def and_write(place: Path, known: contents.Digests) -> contents.Read:
        found = read(place, known)
        if place == path:
            write(path, 9)
        return found

    monkeypatch.setattr(scanning, "read", and_write)
    assert "changed while" in "".join(scanned(folder).unreadable.values())
    monkeypatch.setattr(scanning, "read", read)
    assert scanned(folder).unreadable == {}
    with open_index() as opened:
        found = opened.facts(scan_file_content(opened, path))
    assert found["sha256"] == contents.digests(path).sha256


def test_broken_files_are_reported_and_read_again_only_when_they_change(folder, monkeypatch):
    (folder / "bad.safetensors").write_bytes(b"no")
    (folder / "pipe.json").write_bytes(b"{")
    (folder / "sub/style0.metadata.json").write_bytes(b"[")
    (folder / "old.pt").write_bytes(b"not read, as that needs torch")
    for _ in range(2):
        found = scanned(folder)
        assert names(list(found.unreadable)) == ["bad.safetensors"]
        (problem,) = found.sidecar_problems.values()
        assert "style0.metadata.json" in problem[0]
    read = read_files(monkeypatch)
    write(folder / "bad.safetensors", 6)
    assert scanned(folder).unreadable == {} and len(read) == 1
    with open_index() as opened:
        assert search(opened, ["old"])[0].facts["what"] == "pickle"
        with pytest.raises(LoramergeError):
            (folder / "bad.safetensors").write_bytes(b"no")
            scan_file(opened, folder / "bad.safetensors")


def test_sidecars_are_read_again_when_they_change(folder, monkeypatch):
    scanned(folder)
    read = read_files(monkeypatch)
    before = (folder / "sub/style0.safetensors").stat()
    beside = folder / "sub/style0.civitai.info"
    for word in ("first", "second"):
        beside.write_text(json.dumps({"trainedWords": [word]}), "utf-8")
        raw = beside.read_bytes()
        scanned(folder)
        with open_index() as opened:
            assert [one.path.name for one in search(opened, [word])] == ["style0.safetensors"]
        assert beside.read_bytes() == raw
    beside.unlink()
    scanned(folder)
    with open_index() as opened:
        assert search(opened, ["second"]) == [] and read == []
    assert (folder / "sub/style0.safetensors").stat() == before


def write_peft(folder: Path) -> None:
    folder.mkdir()
    arrays = {
        "base_model.model.layers.0.mlp.lora_A.weight": rng(1).standard_normal((2, 8)),
        "base_model.model.layers.0.mlp.lora_B.weight": rng(2).standard_normal((8, 2)),
    }
    tensors = {name: tensor(array) for name, array in arrays.items()}
    write_tensors(folder / "adapter_model.safetensors", tensors.items(), {})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["mlp"]}
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")


def test_adapters_in_folders(folder):
    write_peft(folder / "peft one")
    (folder / "peft one.json").write_text('{"notes": "a folder"}', "utf-8")
    found = scanned(folder)
    assert found.files == 4 and "peft one" in names(found.new)
    with open_index() as opened:
        (one,) = search(opened, ["folder"])
        assert one.path == folder / "peft one" and one.facts["dialect"] == "peft"
    shutil.move(folder / "peft one", folder / "renamed")
    assert names(scanned(folder).moved) == ["renamed"]


def test_digests_are_found(folder):
    scanned(folder)
    path = folder / "sub/style2.safetensors"
    sha256 = contents.digests(path).sha256
    assert with_digest(sha256) == [path] and with_digest("0" * 64) == []
    path.unlink()
    assert with_digest(sha256) == []


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not Unicode")
def test_names_that_are_not_unicode(folder):
    shutil.copy(folder / "sub/style0.safetensors", os.fsencode(folder) + b"/\xff.safetensors")
    assert "not UTF-8" in "".join(scanned(folder).unreadable.values())


def test_an_index_of_another_version_is_made_anew_with_ones_words(folder, monkeypatch):
    scanned(folder)
    with open_index() as opened, opened.writing():
        identity = opened.rows("SELECT identity FROM contents")[0][0]
        opened.put_own(identity, Own(("mine",), None, 2))
    monkeypatch.setattr(index, "_VERSION", 2)
    with open_index() as opened:
        assert search(opened) == [] and opened.own(identity) == Own(("mine",), None, 2)
    assert len(scanned(folder).new) == 3
    with open_index() as opened:
        assert search(opened, ["mine"])[0].own.rating == 2
    monkeypatch.setattr(index, "_VERSION", 1)
    with pytest.raises(FileError, match="newer"), open_index():
        pass


def test_lost_sketches_are_made_again(folder):
    scanned(folder)
    with open_index() as opened:
        sketches = Sketches(opened.folder)
        before = sketches.rows().copy()
        (opened.folder / "sketches.f32").unlink()
    scanned(folder)
    assert (sketches.rows()[1:] == before[1:]).all() and len(before) == 4


def test_a_broken_index_says_what_to_do(folder):
    scanned(folder)
    with open_index() as opened:
        place = opened.folder / "index.sqlite"
    for suffix in ("-wal", "-shm"):
        place.with_name(place.name + suffix).unlink(missing_ok=True)
    place.write_bytes(b"no database" * 1000)
    with pytest.raises(FileError, match="move the file away"), open_index():
        pass
    place.unlink()
    with pytest.raises(FileError, match="no index yet"), open_index(create=False):
        pass


def test_a_change_is_whole_or_not_at_all(folder):
    scanned(folder)
    with open_index() as opened:
        (first, *_) = opened.places()
        with pytest.raises(ZeroDivisionError), opened.writing():
            opened.put_place(replace(first, missing=True))
            raise ZeroDivisionError
        assert opened.places()[0] == first


# --- several processes

_SCAN = """
import itertools, sys, time
from pathlib import Path
from loramerge.library import scanning
from loramerge.library.index import open_index
scanning._TOGETHER = 2
read, most, numbers = scanning.read, int(sys.argv[2]), itertools.count()
scanning.read = lambda *given: (time.sleep(600 * (next(numbers) >= most)), read(*given))[1]
with open_index() as opened:
    scanning.scan(opened, [Path(sys.argv[1])], threads=1)
"""


def start(folder: Path, most: int = 1000) -> subprocess.Popen[bytes]:
    """Start a scan that stands still when it has read `most` files."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", _SCAN, str(folder), str(most)], env=environment)


@pytest.mark.parametrize("processes", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_processes_that_scan_at_once_lose_nothing(folder, processes):
    for seed in range(3, 25):
        write(folder / f"style{seed}.safetensors", seed % 20)
    running = [start(folder) for _ in range(processes)]
    assert [process.wait(timeout=120) for process in running] == [0] * processes
    with open_index() as opened:
        assert len(opened.places("NOT missing")) == 25 and len(search(opened)) == 20
        rows = Sketches(opened.folder).rows()
        for number, path in opened.rows("SELECT content, path FROM places"):
            facts = contents.read(Path(path), contents.digests(Path(path)))
            assert (rows[number] == facts.sketch).all()
    again = scanned(folder)
    assert (again.new, again.changed, again.moved) == ([], [], [])


def test_a_killed_scan_goes_on(folder):
    for seed in range(3, 15):
        write(folder / f"style{seed}.safetensors", seed)
    process = start(folder, most=7)
    done = 0
    while done < 6:
        assert process.poll() is None
        time.sleep(0.02)
        if (index.index_folder() / "index.sqlite").is_file():
            with open_index() as opened:
                done = len(opened.places())
    process.kill()
    process.wait()
    found = scanned(folder)
    assert len(found.new) == 15 - 6 and found.files == 15  # two were written at once
    with open_index() as opened:
        assert len(search(opened)) == 15 and len(opened.places("content NOT NULL")) == 15
