"""Damaged forms of indexes, sidecars and recipes in headers, and the commands that read them."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.library.index import index_folder, open_index
from loramerge.library.scanning import scan
from tests.attack.mutations import mutated
from tests.attack.texts import damaged, tampered
from tests.builders.samples import safetensors_bytes

__all__ = ["SEEING", "harm", "indexed"]

_WORDS = ["red hair", "\x1b[31m", "<script>alert(1)</script>", "&#27;[0m", "\u202e", "x" * 30_000]
_SIDECARS: dict[str, Any] = {
    ".metadata.json": {
        "model_name": "A", "tags": _WORDS, "base_model": "SD 1.5", "notes": "<p>best</p>",
        "usage_tips": '{"strength": 0.8}', "civitai": {"trainedWords": _WORDS, "model": {"name": "A"}},
    },
    ".json": {
        "activation text": "red, hair", "sd version": "SD1", "notes": "n", "description": "<b>d</b>",
        "preferred weight": 0.7,
    },
    ".civitai.info": {
        "model": {"name": "A", "tags": _WORDS, "description": "<!--"}, "name": "v1",
        "trainedWords": _WORDS, "baseModel": "SDXL", "description": "d",
    },
    ".cm-info.json": {
        "UserTitle": "A", "ModelName": "A", "TrainedWords": _WORDS, "Tags": _WORDS, "BaseModel": "SD",
        "ModelDescription": "d",
    },
}  # fmt: skip


def _sidecars(seed: random.Random) -> None:
    Path("d").mkdir()
    os.link("a.safetensors", "d/a.safetensors")
    for suffix, content in _SIDECARS.items():
        text = tampered(content, seed)
        raw = damaged(text.encode("utf-8", "replace"), seed) if seed.random() < 0.2 else None
        Path(f"d/a{suffix}").write_bytes(text.encode("utf-8", "replace") if raw is None else raw)
    Path("d/a.png").write_bytes(seed.randbytes(20))


# --- the index --------------------------------------------------------------------------------------

_COLUMNS = {
    "contents": ("id", "sha256", "identity", "sketched", "facts"),
    "places": ("path", "root", "state", "content", "beside", "sidecars", "missing"),
    "own": ("tags", "note", "rating"),
}
_VALUES: tuple[Any, ...] = (
    "", "{", "[]", "null", '"x"', "[" * 9000, b"\xff\xfe\0", -1, 99, 2**63 - 1, 1e300, "\x1b[31m",
    "/elsewhere", "../x", '{"ranks": 5, "tags": 3, "trigger_words": "x", "size": "a", "what": []}',
    '{"ranks": {"x": "y"}, "tags": [1, [2]], "trigger_words": [1, null, {}], "size": 1e400}',
    '{"trigger_words": 5, "tags": {}, "problems": 3, "title": [], "weight": "x", "sources": 8}',
    '[1, [], null, "\\u001b[31m"]', None,
)  # fmt: skip
_STATEMENTS = (
    "DELETE FROM contents", "DELETE FROM places", "DELETE FROM words", "DROP TABLE words",
    "DROP TABLE places", "DROP TABLE contents", "DROP TABLE own", "PRAGMA user_version = 0",
    "PRAGMA user_version = 99", "PRAGMA user_version = -1", "ALTER TABLE own RENAME TO other",
    "INSERT INTO contents (id, sha256, identity, sketched, facts) VALUES (999999, 'x', 'y', 1, '{}')",
)  # fmt: skip


def indexed() -> Path:
    """Return the folder of an index of this folder, made anew from a copy."""
    folder = index_folder()
    saved = folder.with_name("saved")
    if not saved.is_dir():
        with open_index() as index:
            scan(index, [Path()], threads=1)
            with index.writing():
                for (identity,) in index.rows("SELECT identity FROM contents"):
                    index.rows("INSERT INTO own VALUES (?, '[\"mine\"]', 'n', 3)", identity)
        shutil.copytree(folder, saved)
    shutil.rmtree(folder)
    shutil.copytree(saved, folder)
    return folder


def harm(folder: Path, *statements: str, values: tuple[Any, ...] = ()) -> None:
    """Change an index by SQL, past the code that keeps it."""
    with closing(sqlite3.connect(folder / "index.sqlite")) as database:
        for statement in statements:
            database.execute(statement, values)
        database.commit()


def _index(seed: random.Random) -> None:
    folder = indexed()
    for _ in range(seed.choice((1, 1, 2))):
        how = seed.randrange(4)
        with suppress(sqlite3.Error):  # it may be broken by now
            if how == 0:
                harm(folder, seed.choice(_STATEMENTS))
            elif how < 3:
                table = seed.choice(list(_COLUMNS))
                column = seed.choice(_COLUMNS[table])
                only = seed.choice(("", " WHERE rowid = 1"))
                harm(folder, f"UPDATE {table} SET {column} = ?{only}",
                     values=(seed.choice(_VALUES),))  # fmt: skip
            else:
                path = folder / seed.choice(("index.sqlite", "sketches.f32"))
                path.write_bytes(seed.choice((b"", b"x" * 100, damaged(path.read_bytes(), seed))))


# --- recipes in headers -----------------------------------------------------------------------------

_LAYER = "model.layers.0.self_attn.q_proj"
_RECIPE = {
    "version": 1,
    "inputs": {"base": {"path": "m.safetensors", "sha256": "0" * 64},
               "p": {"path": "p.safetensors", "sha256": "0" * 64}},
    "steps": {"bake": {"bake": {"base": "base", "adapters": [{"adapter": "p", "weight": 0.5}]}}},
    "output": "bake",
}  # fmt: skip


def _header(seed: random.Random) -> None:
    adapter = {
        f"base_model.model.{_LAYER}.lora_{half}.weight": np.ones(shape, "f4")
        for half, shape in (("A", (2, 4)), ("B", (4, 2)))
    }
    Path("p.safetensors").write_bytes(safetensors_bytes(adapter))
    Path("m.safetensors").write_bytes(
        safetensors_bytes({f"{_LAYER}.weight": np.ones((4, 4), "f4")})
    )
    metadata = {
        "loramerge.recipe": tampered(_RECIPE, seed),
        "modelspec.title": seed.choice(_WORDS),
        "sd_merge_recipe": tampered({"type": "webui", "primary_model_hash": "0"}, seed),
    }
    metadata = {key: text.encode("utf-8", "replace").decode() for key, text in metadata.items()}
    odd = seed.choice((1.5, 2.0, float("nan"), float("inf")))
    baked = {f"{_LAYER}.weight": np.full((4, 4), odd, "f4")}
    Path("k.safetensors").write_bytes(safetensors_bytes(baked, metadata))


def _mutated(seed: random.Random) -> None:
    Path("x.safetensors").write_bytes(mutated(seed.randrange(10**6)))


_Form = tuple[Callable[[random.Random], None], tuple[tuple[str, ...], ...]]
_HELD = ("--input", "base=m.safetensors", "--input", "p=p.safetensors")
SEEING: dict[str, _Form] = {
    "sidecars": (_sidecars, (
        ("library", "scan", "d"), ("inspect", "d", "b.safetensors"),
        ("library", "show", "d/a.safetensors"), ("card", "d/a.safetensors", "-o", "out"),
    )),
    "the index": (_index, (
        ("library", "search"), ("library", "search", "zuzu", "--json"),
        ("library", "show", "a.safetensors"), ("library", "list"), ("library", "scan", "."),
        ("library", "similar", "a.safetensors"), ("library", "duplicates"),
        ("library", "tag", "a.safetensors", "x"), ("library", "scan", ".", "--fresh"),
        ("library", "show", "gone"), ("library", "remove", "."), ("inspect", "nowhere"),
    )),
    "a recipe in a header": (_header, (
        ("verify", "k.safetensors", *_HELD), ("inspect", "k.safetensors"),
        ("unbake", "k.safetensors", "--lora", "p.safetensors", "-o", "out.safetensors"),
        ("verify", "k.safetensors", "-b", "m.safetensors", "-l", "p.safetensors"),
        ("diff", "k.safetensors", "m.safetensors"),
    )),
    "what is looked at": (_mutated, (
        ("heal", "x.safetensors", "-o", "out.safetensors"),
        ("inspect", "x.safetensors", "--html", "out"), ("card", "x.safetensors", "-o", "out"),
        ("diff", "x.safetensors", "a.safetensors", "--html", "out"),
        ("library", "show", "x.safetensors"), ("library", "similar", "x.safetensors"),
        ("library", "tag", "x.safetensors", "t"), ("library", "scan", "."),
        ("compare", "x.safetensors", "a.safetensors", "--html", "out"),
        ("compare", "a.safetensors", "b.safetensors", "--ingredients", "x.safetensors"),
        ("verify", "x.safetensors"), ("inspect", "x.safetensors", "a.safetensors", "--sort", "problems"),
        ("unbake", "x.safetensors", "--lora", "a.safetensors", "-o", "out.safetensors"),
        ("diff", "x.safetensors", "x.safetensors", "--plot", "out.svg"),
    )),
}  # fmt: skip
