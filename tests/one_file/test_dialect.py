"""A dialect is one file: a made-up one from outside the package is read and written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.builders.samples import adaptable, read_safetensors, safetensors_bytes, stem_of
from tests.one_file.outside import Outside

DIALECT = '''
"""Slashes between the levels of a name, and words of its own for the factors."""

from loramerge.dialects import Dialect, Form
from loramerge.dialects.spelling import prefixes, spell


def slashed(family, component, module):
    return module.path.replace(".", "/")


DIALECT = Dialect(
    name="slashed",
    title="Slashes",
    example="@unet/mid_block/attentions/0/proj_in.rows",
    forms=(
        Form(
            spell(prefixes("slashed", lambda component: (f"@{component}/",)), slashed),
            {"up": (".rows",), "down": (".columns",), "alpha": (".strength",)},
        ),
    ),
    alpha="tensor",
    prefixes={"@unet/": "unet", "@text_encoder/": "text_encoder"},
    writable="low-rank deltas of any module of a known family",
)
'''
WORDS = {"up": ".rows", "down": ".columns", "alpha": ".strength"}


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    folder = tmp_path_factory.mktemp("dialect")
    made = Outside(folder, "loramerge.dialects", "DIALECT", DIALECT)
    random = np.random.default_rng(0)
    modules = {n: m for n, m in adaptable("sd15", full=True).items() if n.endswith("attn2.to_k")}
    kohya, slashed = {}, {}
    for name, module in modules.items():
        up = random.standard_normal((module.shape[0], 2), "float32")
        down = random.standard_normal((2, module.shape[1]), "float32")
        for role, value, word in (("up", up, ".lora_up.weight"), ("down", down, ".lora_down.weight"),
                                  ("alpha", np.float32(1).reshape(()), ".alpha")):  # fmt: skip
            kohya[stem_of("kohya", "sd15", name) + word] = np.asarray(value)
            slashed[f"@{name.replace('.', '/')}{WORDS[role]}"] = np.asarray(value)
    for file, tensors in (("kohya", kohya), ("slashed", slashed)):
        (folder / f"{file}.safetensors").write_bytes(safetensors_bytes(tensors, {}))
    yield made


def same(first: Path, second: Path) -> bool:
    a, b = read_safetensors(first)[0], read_safetensors(second)[0]
    return a.keys() == b.keys() and all((a[key] == b[key]).all() for key in a)


def test_it_is_listed(outside: Outside) -> None:
    assert "slashed" in [one["name"] for one in outside.json("dialects")]


def test_it_is_recognised(outside: Outside) -> None:
    (found,) = outside.json("inspect", "slashed.safetensors")
    assert found["dialect"] == "slashed" and found["family"] == "sd15"
    assert not found["unknown_keys"]


def test_there_and_back(outside: Outside) -> None:
    outside.run("convert", "kohya.safetensors", "--to", "slashed", "-o", "there.safetensors")
    assert same(outside.folder / "there.safetensors", outside.folder / "slashed.safetensors")
    outside.run("convert", "slashed.safetensors", "--to", "kohya", "-o", "back.safetensors")
    assert same(outside.folder / "back.safetensors", outside.folder / "kohya.safetensors")


def test_mix_and_resize_keep_it(outside: Outside) -> None:
    outside.run("mix", "slashed.safetensors:0.5", "kohya.safetensors:0.5", "--to", "slashed",
                "-o", "mixed.safetensors")  # fmt: skip
    outside.run("resize", "mixed.safetensors", "--rank", "1", "-o", "small.safetensors")
    small, _ = read_safetensors(outside.folder / "small.safetensors")
    assert all(key.startswith("@unet/") for key in small)
    assert {len(small[key]) for key in small if key.endswith(".columns")} == {1}


def test_a_mistyped_name_is_told_its_own(outside: Outside) -> None:
    outside.run("convert", "kohya.safetensors", "--to", "slashd", "-o", "x.safetensors", code=2)
