"""Single faults that were found in what is looked at, each as the kind that it is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loramerge
from loramerge.comfyui import install as nodes
from loramerge.library.index import open_index
from loramerge.library.scanning import scan
from tests.attack.seeing import harm, indexed
from tests.attack.test_files import require_clean
from tests.builders.samples import safetensors_bytes
from tests.tail import tail

DAMAGE = {
    "facts that are no JSON": "UPDATE contents SET facts = '{'",
    "facts of another type": "UPDATE contents SET facts = '[]'",
    "sidecars that are no JSON": "UPDATE places SET sidecars = '{'",
    "own words of another type": "UPDATE own SET tags = 'null', note = x'ff', rating = 'many'",
    "contents that are gone": "DELETE FROM contents",
    "numbers of no content": "UPDATE places SET content = 99",
    "paths that are no text": "UPDATE places SET path = CAST(path AS BLOB)",
    "roots elsewhere": "UPDATE places SET root = '/elsewhere'",
}
READERS = (
    ("search",), ("show", "a.safetensors"), ("list",), ("similar", "a.safetensors"), ("duplicates",),
    ("tag", "a.safetensors", "new"), ("scan", "."),
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_index_is_mended_by_a_scan(run, damage):
    for command in READERS:
        harm(indexed(), DAMAGE[damage])
        result = run("library", *command)
        require_clean(result, f"{damage}: {command}: {result.err}")
    harm(indexed(), DAMAGE[damage])
    run.ok("library", "scan", ".", "--fresh")
    found = run.ok("library", "search", "zuzu", "--json").json
    assert [Path(one["path"]).name for one in found] == ["b.safetensors"]


def test_ones_words_outlive_lost_contents(run):
    harm(indexed(), "DELETE FROM contents")
    run.ok("library", "scan", ".")
    shown = run.ok("library", "show", "a.safetensors", "--json").json
    assert shown["own"] == {"tags": ["mine"], "note": "n", "rating": 3}


def test_sketches_that_are_damaged_resemble_nothing(run):
    folder = indexed()
    for content in (b"", b"\xff" * 4, b"\x7f\x7f\xff\xff"):
        path = folder / "sketches.f32"
        path.write_bytes(content * (path.stat().st_size // 4))
        for command in (("similar", "a.safetensors"), ("duplicates",)):
            result = run.ok("library", *command)
            require_clean(result, result.err)
        indexed()


def test_impossible_numbers_fill_no_disk(run):
    harm(indexed(), "UPDATE contents SET id = id + 9223372036854770000")
    result = run("library", "scan", ".", "--fresh")
    assert result.code == 3 and "impossible numbers" in result.err, result


@pytest.mark.skipif(os.name == "nt", reason="folders have no such mode there")
def test_an_index_that_cannot_be_written_can_be_read(run, monkeypatch):
    folder = indexed()
    real = os.access

    def access(path: Any, mode: int) -> bool:
        return real(path, mode) and not (mode & os.W_OK and Path(path) == folder)

    monkeypatch.setattr(os, "access", access)
    before = {path.name for path in folder.iterdir()}
    assert len(run.ok("library", "search", "--json").json) == 3
    assert {path.name for path in folder.iterdir()} == before
    run.refused(3, "library", "tag", "a.safetensors", "x", says="set LORAMERGE_HOME")


@pytest.mark.parametrize("verb", ["show", "tag", "note", "rate", "similar"])
def test_files_that_cannot_be_read_have_the_code_of_their_reason(run, verb):
    indexed()
    more = {"tag": ["t"], "note": ["n"], "rate": ["3"]}.get(verb, [])
    for content in (b"", b"x" * 40):
        Path("x.safetensors").write_bytes(content)
        run.refused(3, "library", verb, "x.safetensors", *more, says="not a valid safetensors file")


def test_nothing_raises_the_base_of_all_errors():
    """Its exit code is that of a bug."""
    root = Path(loramerge.__file__).parent
    found = [
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if "LoramergeError(" in path.read_text("utf-8").replace("class LoramergeError(", "")
    ]
    assert found == []


def test_folders_that_cannot_be_listed_are_told(run, monkeypatch):
    Path("d/shut").mkdir(parents=True)
    shutil.copy("a.safetensors", "d/a.safetensors")
    real = os.walk

    def walk(top: str, *, onerror: Callable[[OSError], None] | None = None, **options: Any):
        for folder, folders, files in real(top, **options):
            yield folder, folders, files
            if "shut" in folders:
                folders.remove("shut")
                if onerror is not None:
                    onerror(PermissionError(13, "Permission denied", str(Path(folder, "shut"))))

    monkeypatch.setattr("loramerge.library.paths.os.walk", walk)
    with open_index() as index:
        found = scan(index, [Path("d")], threads=1)
    assert [Path(path).name for path in found.unreadable] == ["shut"]
    assert "shut" in run("inspect", "d").err


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
@pytest.mark.parametrize("command", ["library scan", "library add", "library remove", "heal"])
def test_links_that_lead_in_a_circle(run, command):
    Path("ring").symlink_to("ring")
    more = ["a.safetensors", "--dtype", "float32", "--out-dir"] if command == "heal" else []
    result = run(*command.split(), *more, "ring")
    assert result.code == 3 and "bug" not in result.err, result


def test_a_file_of_nothing_is_not_healed(run):
    Path("x.safetensors").write_bytes(safetensors_bytes({}))
    run.refused(5, "heal", "x.safetensors", "-o", "o.safetensors", says="no tensor of this file")


# --- outputs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--html", "--plot", "--csv"])
@pytest.mark.parametrize("name", [".", "..", "a.safetensors", tail("\x1b[2J.png"), "x\n.html"])
def test_reports_of_names_that_no_report_has(run, option, name):
    command = ["inspect", "a.safetensors", "b.safetensors", option, name]
    before = run.state()
    result = run(*command)
    assert result.code in (2, 3) and "bug" not in result.err
    assert run.state() == before


def test_a_bad_name_of_a_report_is_refused_before_the_result_is_written(run):
    for option in ("--html", "--plot"):
        name = "\x1b.html" if option == "--html" else "\x1b.png"
        run.refused(3, "mix", "a.safetensors", "-o", "x.safetensors", option, name, says=option)


@pytest.mark.parametrize("other", ["--html", "--json-file"])
def test_two_reports_of_one_name(run, other):
    says = "this is an output or input of the same command"
    run.refused(3, "inspect", "a.safetensors", "--csv", "x.html", other, "x.html", says=says)


def test_a_card_does_not_replace_what_it_describes(run):
    says = "this is an output or input"
    run.refused(3, "card", "a.safetensors", "-o", "a.safetensors", "--force", says=says)


def test_a_picture_of_a_card_is_one(run):
    run.refused(2, "card", "a.safetensors", "--picture", "b.safetensors", says="not a picture")


# --- numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_verify_of_numbers_that_are_none(run, odd):
    """In a checkpoint they are told, an adapter with them is refused; nothing warns from within."""
    layer = "model.layers.0.self_attn.q_proj"
    values = np.random.default_rng(0).normal(size=(3, 4, 4)).astype("f4")
    Path("m.safetensors").write_bytes(safetensors_bytes({f"{layer}.weight": values[0]}))
    values[1, 0, 0] = odd
    Path("k.safetensors").write_bytes(safetensors_bytes({f"{layer}.weight": values[1]}))

    def write(name: str, first: float) -> None:
        up, down = np.ones((4, 2), "f4"), np.ones((2, 4), "f4")
        down[0, 0] = first
        halves = {"A": down, "B": up}
        Path(name).write_bytes(safetensors_bytes(
            {f"base_model.model.{layer}.lora_{half}.weight": one for half, one in halves.items()}
        ))  # fmt: skip

    write("p.safetensors", 1.0)
    write("odd.safetensors", odd)
    result = run("verify", "k.safetensors", "-b", "m.safetensors", "-l", "p.safetensors")
    assert result.code == 1 and "NaN or infinity" in result.out and "Warning" not in result.err
    run.refused(7, "verify", "m.safetensors", "-b", "m.safetensors", "-l", "odd.safetensors",
                says=("odd.safetensors", layer, "NaN or infinity"))  # fmt: skip


def test_places_of_inputs_that_a_recipe_does_not_have(run):
    """A word that is mistyped would else leave the file that was meant unread."""
    run.ok("mix", "a.safetensors", "b.safetensors", "-o", "m.safetensors")
    for verb in ("verify", "run"):
        says = ("the recipe has no input 'aa'", "did you mean a?")
        run.refused(2, verb, "m.safetensors", "--input", "aa=b.safetensors", says=says)


# --- ComfyUI ----------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that looks like a ComfyUI."""
    (tmp_path / "ui/custom_nodes").mkdir(parents=True)
    (tmp_path / "ui/nodes.py").write_text("comfy_entrypoint")
    (tmp_path / "ui/folder_paths.py").touch()
    return tmp_path / "ui"


def test_an_install_that_was_killed_goes_on(root, monkeypatch):
    real, written = nodes.write_bytes, []

    def killed(path: Path, *arguments: Any, **options: Any) -> None:
        if len(written) == 3:
            (path.parent / ".x.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path)
        real(path, *arguments, **options)

    monkeypatch.setattr(nodes, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        nodes.install(root)
    monkeypatch.setattr(nodes, "write_bytes", real)
    done = nodes.install(root)
    assert len(done.files) > 3 and not (nodes.uninstall(root).folder / "__init__.py").exists()


def test_a_renewal_that_was_killed_goes_on(root):
    done = nodes.install(root)
    listing = json.loads((done.folder / "installed.json").read_text())
    listing["files"]["__init__.py"] = "of an older version"  # and the new file is there already
    (done.folder / "installed.json").write_text(json.dumps(listing))
    nodes.install(root)


def test_a_file_where_the_folder_would_be(run, root):
    (root / "custom_nodes/loramerge").write_text("mine")
    result = run("comfyui", "install", root)
    assert result.code == 3 and "did not write" in result.err


def test_a_list_that_is_nested_too_deeply(run, root):
    done = nodes.install(root)
    (done.folder / "installed.json").write_text('{"files":' * 50_000)
    for verb in ("install", "uninstall"):
        result = run("comfyui", verb, root)
        assert result.code == 3 and "cannot be read" in result.err
