"""Documents say what the code does: tables are equal, blocks run, nothing is left out."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

import loramerge
from loramerge.cli.main import COMMANDS, main
from loramerge.dialects import DIALECTS
from loramerge.dialects.roles import FOREIGN
from loramerge.families import FAMILIES
from tests.cli.conftest import run, work, world  # noqa: F401
from tests.cli.examples import blocks, commands_of, prepare, walk
from tests.docs import reference

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
UPDATE = bool(os.environ.get("LORAMERGE_UPDATE_DOCS"))
# what a block may do beside loramerge, and is not done here
ELSEWHERE = (
    "python -m venv",
    ". .venv",
    "python -m pip install",
    "python -m pytest",
    "ruff ",
    "mypy",
)


def _check(path: Path, expected: str) -> None:
    if UPDATE:
        path.write_text(expected, "utf-8", newline="\n")
    assert path.read_text("utf-8") == expected, (
        f"{path.name} is not what the code says; LORAMERGE_UPDATE_DOCS=1 python -m pytest tests/docs"
    )


def test_commands():
    _check(DOCS / "commands.md", reference.commands())


@pytest.mark.parametrize(
    ("document", "names"),
    [("formats", ("dialects", "families")), ("weights", ("vectors", "presets"))],
)
def test_tables(document, names):
    path = DOCS / f"{document}.md"
    assert all(f"<!-- {name} -->" in path.read_text("utf-8") for name in names)
    _check(path, reference.with_tables(path.read_text("utf-8")))


def test_nothing_is_left_out():
    commands, formats = ((DOCS / f"{n}.md").read_text("utf-8") for n in ("commands", "formats"))
    for name, command in walk():
        assert not name or re.search(rf"^##+ {name}$", commands, re.MULTILINE), name
        for parameter in command.params:
            for flag in parameter.opts:
                assert not flag.startswith("-") or f"`{flag}`" in commands or flag == "--version", (
                    flag
                )
    readme = README.read_text("utf-8")
    for name in COMMANDS:
        assert name in readme + commands
    for name in (*DIALECTS, *FAMILIES, *FOREIGN, "lora", "tucker", "full", "bias", "norm", "set"):
        assert f"`{name}`" in formats, name
    python = (DOCS / "python.md").read_text("utf-8")
    for name in loramerge.__all__:
        assert name in ("Adapter", "__version__") or f"lm.{name}" in python, name


def test_the_changelog_has_this_version():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(rf"^## {re.escape(loramerge.__version__)}\b", text, re.MULTILINE)
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'version = "{loramerge.__version__}"' in project


DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"] + [
    f"docs/{name}.md" for name in ("commands", "formats", "python", "training", "weights")
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (ROOT / document).parent.joinpath(target).exists(), target
    assert not re.search(r"(?<![\w.])/(home|work|tmp|root)/", text)


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", "docs/commands.md", "docs/weights.md"]
)
def test_console_blocks_run(document, run, monkeypatch):  # noqa: F811
    """Every line of every console block, in order, with the files that it speaks of."""
    for block in blocks(ROOT / document, "console"):
        prepare(run, monkeypatch, resized="resize" not in block)
        for line in commands_of(block):
            if line.startswith(ELSEWHERE):
                continue
            words = shlex.split(line)
            assert words[0] == "loramerge", line
            run.ok(*words[1:])


def test_readme_python_blocks_run(run, monkeypatch):  # noqa: F811
    found = blocks(README, "python")
    assert found
    prepare(run, monkeypatch)
    for block in found:
        exec(compile(block, "README.md", "exec"), {})
    assert (run.folder / "both-r8.safetensors").is_file()
    assert (run.folder / "baked.safetensors").is_file()


@pytest.mark.parametrize("document", ["python.md", "training.md"])
def test_python_examples_run(document, tmp_path, monkeypatch, capsys):
    if document == "training.md":
        pytest.importorskip("diffusers")
    assert main(["demo", str(tmp_path / "demo"), "-q"]) == 0
    monkeypatch.chdir(tmp_path / "demo")
    text = "\n".join(blocks(DOCS / document, "python"))
    test = doctest.DocTestParser().get_doctest(text, {}, document, document, 0)
    assert len(test.examples) > 20
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    capsys.readouterr()
    stdout, report = sys.stdout, []
    runner.run(test, out=report.append)
    sys.stdout = stdout
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


def test_readme_says_what_exists():
    """Names in backticks that look like commands are commands."""
    text = README.read_text("utf-8")
    for name in re.findall(r"`loramerge (\w+)", text):
        assert name in COMMANDS
    for line in re.findall(r"^\$ loramerge (\w+)", text, re.MULTILINE):
        assert line in COMMANDS


def test_the_page_of_training_has_every_preset():
    pytest.importorskip("torch")
    from loramerge.train.targets import PRESETS

    text = (DOCS / "training.md").read_text("utf-8")
    for name, preset in PRESETS.items():
        row = re.search(rf"^\| `{name}` \|.*$", text, re.MULTILINE)
        assert row and all(f"`{alias}`" in row[0] for alias in preset.aliases), name


def test_the_weight_file_of_the_page_is_one(tmp_path):
    from loramerge.library.references import parse_reference, with_weight_files

    (block,) = blocks(DOCS / "weights.md", "yaml")
    (tmp_path / "page.yaml").write_text(block, "utf-8")
    (reference,) = with_weight_files([parse_reference("a")], [f"a={tmp_path / 'page.yaml'}"])
    assert reference.weight.components == {"text_encoder": 0.0}
    assert len(reference.weight.blocks) == 17 and reference.weight.match == (("*attn2*", 0.5),)
