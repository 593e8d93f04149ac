"""The pages for those who add something: their examples run, and every path that they name exists."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loramerge as lm
from loramerge.algebra.operators import OPERATORS, load_file
from loramerge.families import FAMILIES, Family, parameters
from tests.builders.samples import safetensors_bytes
from tests.cli.examples import blocks, prepare, shown_in
from tests.laws.laws import check_operator

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "adding.md"
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md", PAGE]
# where paths begin
BASES = (ROOT, ROOT / "loramerge", ROOT / "docs")
# files that the reader is about to make
MADE_BY_READERS = {
    "loramerge/algebra/operators/top_entries.py",
    "top_entries.py",
    "build/site",
}


def paths_in(text: str) -> list[str]:
    """Return what looks like a path: in backticks, with a slash or an ending; NAME stands for any."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    words = [word for span in re.findall(r"`([^`]+)`", prose) for word in span.split()]
    words += re.findall(r"\]\(([^)#:]+)", prose)
    console = re.findall(r"^\$ .*?(tests/\S+)$", text, re.MULTILINE)
    wanted = r"[\w./]+/|[\w.]+(?:/[\w.]+)+|[\w]+\.(?:py|md|svg|toml|json|txt)"
    return [word for word in words + console if re.fullmatch(wanted, word)]


def missing(text: str, page: Path) -> list[str]:
    """Return the paths of a page that do not exist."""
    return [
        path
        for path in paths_in(text)
        if path not in MADE_BY_READERS
        and not any((base / _whole(path)).exists() for base in (*BASES, page.parent))
    ]


def _whole(path: str) -> str:
    """Return the folder of a path whose file is called NAME."""
    return path.partition("NAME")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    assert paths_in(text)
    assert not missing(text, page)


def test_a_path_that_is_gone_would_be_found() -> None:
    text = "`algebra/sums.py` [page](gone.md) `families/lost/NAME.py` `mix a:0.7 b:0.3`"
    assert missing(text, PAGE) == ["algebra/sums.py", "families/lost/NAME.py", "gone.md"]


@pytest.fixture
def sources() -> dict[str, str]:
    """The Python blocks of the page."""
    operator, shapes, family = blocks(PAGE, "python")
    return {"operator": operator, "shapes": shapes, "family": family}


def test_the_operator_runs(run: Any, monkeypatch: Any, sources: dict[str, str]) -> None:
    prepare(run, monkeypatch)
    Path("top_entries.py").write_text(sources["operator"], "utf-8")
    console = blocks(PAGE, "console")[0]
    with OPERATORS.adding():
        load_file("top_entries.py")
        for line in shown_in(console):
            run.ok(*shlex.split(line.command)[1:])
        assert Path("both.safetensors").is_file()
        check_operator(OPERATORS["top-entries"])


def family_of(source: str) -> Family:
    """Return what the file of a family holds."""
    names: dict[str, Any] = {"__name__": "auraflow"}
    exec(compile(source, "auraflow.py", "exec"), names)
    found: Family = names["FAMILY"]
    return found


def test_the_family_has_the_names_and_shapes_of_diffusers(
    capsys: Any, sources: dict[str, str]
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    exec(compile(sources["shapes"], "shapes.py", "exec"), {})
    printed = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    not_layers = {"pos_embed.pos_embed", "register_tokens"}
    told = {
        f"{module.path}.{parameter}": str(
            tuple(module.shape if parameter == "weight" else module.shape[:1])
        )
        for module in family_of(sources["family"]).components[0].modules
        for parameter in parameters(module)
    }
    assert told == {name: shape for name, shape in printed.items() if name not in not_layers}


def test_the_family_is_the_one_that_comes_with_loramerge(sources: dict[str, str]) -> None:
    shipped = ROOT / "loramerge" / "families" / "transformers" / "auraflow.py"
    assert sources["family"] == shipped.read_text("utf-8")


def test_the_family_runs(run: Any, sources: dict[str, str]) -> None:
    family, random = family_of(sources["family"]), np.random.default_rng(0)
    stems = [
        f"transformer.{part}_transformer_blocks.{i}.attn.to_{x}"
        for part in ("joint", "single")
        for i in range(4)
        for x in ("q", "k", "v", "out.0")
    ]
    file = run.folder / "auraflow.safetensors"
    file.write_bytes(safetensors_bytes({
        f"{stem}.{key}": random.standard_normal(shape, "float32")
        for stem in stems
        for key, shape in (("lora_A.weight", (1, 3072)), ("lora_B.weight", (3072, 1)))
    }, {}))  # fmt: skip
    with FAMILIES.adding(family):
        for line in shown_in(blocks(PAGE, "console")[1]):
            run.ok(*shlex.split(line.command)[1:])
        for name, dialect in (("auraflow", "diffusers"), ("kohya", "kohya")):
            (found,) = json.loads(run.ok("inspect", f"{name}.safetensors", "--json").out)
            assert (found["family"], found["dialect"]) == ("auraflow", dialect)
            assert not found["unknown_keys"]
        run.ok("mix", "auraflow.safetensors:0.5", "kohya.safetensors:0.5", "-o", "m.safetensors")
        ranks = lm.load(run.folder / "m.safetensors").ranks()
    assert sum(ranks.values()) == len(stems)


def test_every_field_of_a_family_is_explained() -> None:
    rows = re.findall(r"^\| (`.+?) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    explained = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    fields = {field.name for field in dataclasses.fields(Family)}
    assert fields <= set(explained)
