"""The library from Python: `lm.library` does what the commands do, whatever was imported before."""

from __future__ import annotations

import pkgutil
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import AdapterError, FileError, NotFound, UsageError
from tests.builders.world import rewrite


@pytest.fixture
def loras(run):
    """A folder with a, b, a copy of a, a DoRA, and a pickle that cannot be read."""
    folder = run.folder / "loras"
    folder.mkdir()
    for name in "ab":
        shutil.copy(run.folder / f"{name}.safetensors", folder)
    lm.save(0.7 * lm.load("a"), folder / "quiet.safetensors")

    def to_dora(arrays, metadata):
        for key in [key for key in arrays if key.endswith(".lora_up.weight")]:
            size = np.ones((len(arrays[key]), *(1,) * (arrays[key].ndim - 1)), "float32")
            arrays[key.replace(".lora_up.weight", ".dora_scale")] = size

    rewrite(folder / "a.safetensors", folder / "dora.safetensors", to_dora)
    (folder / "old.pt").write_bytes(b"nothing")
    return run


def test_every_function_is_there_whatever_was_imported():
    for module in pkgutil.iter_modules(lm.library.__path__):
        import_module(f"loramerge.library.{module.name}")
        # importing it would take the place of a function of that name
        assert module.name not in lm.library.__all__, module.name
    assert all(callable(getattr(lm.library, name)) for name in lm.library.__all__)
    assert dir(lm.library) == sorted(lm.library.__all__)
    with pytest.raises(AttributeError, match="find_all"):
        lm.library.find_all  # type: ignore[attr-defined]  # noqa: B018


def test_naming_it_imports_little():
    code = (
        "import sys, loramerge as lm\n"
        "lm.library\n"
        "print(sorted(m for m in sys.modules if m.startswith('loramerge.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['loramerge.library']"


def test_functions_return_what_the_commands_print(loras):
    found = lm.library.scan("loras")
    assert found.files == 5 and len(found.new) == 5 and "5 files" in repr(found)
    assert loras.ok("library", "scan", "loras", "--json").json["not_compared"] == found.not_compared
    lm.library.tag("loras/a", "soft, Light", "light")
    lm.library.note("loras/a", "best at 0.7")
    entry = lm.library.rate("loras/a", 4)
    assert entry.tags == ["soft", "Light"] and entry.own.note == "best at 0.7"
    assert entry.json() == lm.library.show("loras/a").json()
    assert entry.json() == loras.ok("library", "show", "loras/a", "--json").json
    assert "a.safetensors, sd21" in repr(entry)
    (same,) = lm.library.search("sof", rating=4, tags="light")
    assert same == entry and lm.library.search(rating=5) == []
    assert len(lm.library.search()) == 5
    near = [one.json() for one in lm.library.similar("loras/a", most=2)]
    assert near == loras.ok("library", "similar", "loras/a", "--most", "2", "--json").json
    assert near[0]["kind"] == "rescaled"
    copies = lm.library.duplicates()
    assert copies.json() == loras.ok("library", "duplicates", "--json").json
    assert "1 pairs of copies" in repr(copies)


def test_adapters_in_memory_are_looked_for(loras):
    lm.library.scan("loras")
    found = lm.library.similar(0.5 * lm.load("a"), most=2)
    assert {near.entry.name for near in found} == {"a.safetensors", "quiet.safetensors"}
    assert all(near.copy and "cosine 1" in repr(near) for near in found)


def test_own_words_go_again(loras):
    lm.library.scan("loras")
    lm.library.tag("loras/a", "x", "y")
    assert lm.library.tag("loras/a", "X", remove=True).own.tags == ("y",)
    assert lm.library.tag("loras/a", remove=True).own.tags == ()
    lm.library.note("loras/a", "n")
    assert lm.library.note("loras/a", None).own.note is None
    lm.library.rate("loras/a", 5)
    assert lm.library.rate("loras/a", 0).own == lm.library.show("loras/a").own


def test_wrong_use_is_told_what_is_wrong(loras):
    with pytest.raises(FileError, match="no index"):
        lm.library.search("a")
    with pytest.raises(UsageError, match="no folders"):
        lm.library.scan()
    lm.library.scan("loras")
    with pytest.raises(UsageError, match="a tag is missing"):
        lm.library.tag("loras/a")
    for stars in (6, -1, 2.5, True):
        with pytest.raises(UsageError, match="whole number"):
            lm.library.rate("loras/a", stars)  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        lm.library.show("nothing")
    with pytest.raises(UsageError, match="at least one"):
        lm.library.similar("loras/a", most=0)
    with pytest.raises(AdapterError, match="depends on the base"):
        lm.library.similar("loras/dora")


def test_a_scan_says_what_cannot_be_compared(loras):
    found = loras.ok("library", "scan", "loras")
    for words in (
        "1 file left out of `similar` and `duplicates`: it is pickled",
        "1 file left out of `similar` and `duplicates`: what it changes depends on the base",
    ):
        assert words in found.out  # fmt: skip
    again = lm.library.scan("loras")  # also where nothing was read anew
    assert again.new == [] and {Path(p).name for p in again.not_compared} == {
        "dora.safetensors",
        "old.pt",
    }
    shown = loras.ok("library", "show", "loras/dora").out
    assert "not compared" in shown and "depends on the base" in shown
    (loras.folder / "loras" / "dora.safetensors").unlink()
    assert {Path(p).name for p in lm.library.scan("loras").not_compared} == {"old.pt"}
