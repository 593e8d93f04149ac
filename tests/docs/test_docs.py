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
from loramerge.adapter.kinds import known_kinds
from loramerge.cli.commands import summaries
from loramerge.cli.main import main
from loramerge.dialects import DIALECTS
from loramerge.families import FAMILIES
from tests.builders.sampler import few_steps
from tests.builders.unmeasured import uncounted, unmeasured
from tests.cli.examples import Shown, blocks, named_files, prepare, prepare_training, shown_in, walk
from tests.docs import reference, support
from tests.tail import tail

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
UPDATE = bool(os.environ.get("LORAMERGE_UPDATE_DOCS"))
# what a block may do beside loramerge, and is not done here
ELSEWHERE = (
    "python -m mkdocs",
    "python -m venv",
    ". .venv",
    "python -m pip install",
    "python -m pytest",
    "python -m tests.docs",
    "ruff ",
    "mypy",
    "loramerge ui",  # it would not end
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
    [
        ("formats", ("dialects", "families", "kinds", "named")),
        ("weights", ("vectors", "presets")),
        ("recipes", ("steps", "shipped")),
        ("operators", ("operators", "laws")),
        ("health", ("limits", "repairs", "usual")),
    ],
)
def test_tables(document, names):
    path = DOCS / f"{document}.md"
    assert all(f"<!-- {name} -->" in path.read_text("utf-8") for name in names)
    _check(path, reference.with_tables(path.read_text("utf-8")))


def test_every_command_option_dialect_and_kind_is_documented():
    commands, formats = ((DOCS / f"{n}.md").read_text("utf-8") for n in ("commands", "formats"))
    for name, command in walk():
        assert not name or re.search(rf"^##+ {name}$", commands, re.MULTILINE), name
        for parameter in command.params:
            for flag in parameter.opts:
                assert not flag.startswith("-") or f"`{flag}`" in commands or flag == "--version", (
                    flag
                )
    readme = README.read_text("utf-8")
    for name in summaries():
        assert name in readme + commands
    kinds = [kind.name.removeprefix("peft-") for kind in known_kinds() if kind.roles]
    for name in (*DIALECTS, *FAMILIES, *kinds):
        assert f"`{name}`" in formats, name
    python = (DOCS / "python.md").read_text("utf-8")
    for name in loramerge.__all__:
        assert name in ("Adapter", "__version__") or f"lm.{name}" in python, name


def test_the_table_of_support_has_every_kind():
    """Every kind there is has a sample, and says what it is compared with."""
    assert set(support.samples()) == set(support.proven())


def test_the_changelog_has_this_version():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(rf"^## {re.escape(loramerge.__version__)}\b", text, re.MULTILINE)


DOCUMENTS = [
    *("README.md", "README.ja.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md")),
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (ROOT / document).parent.joinpath(target).exists(), target
    assert not re.search(r"(?<![\w.])/(home|work|tmp|root)/", text)


WITH_COMMANDS = ["README.md", "CONTRIBUTING.md"] + [
    f"docs/{name}.md"
    for name in (
        "comfyui",
        "commands",
        "extract",
        "health",
        "library",
        "merging",
        "recipes",
        "reports",
        "resizing",
        "tiny",
        "training",
        "verifying",
        "weights",
    )
]


# the lines of docs/commands.md are those of the helps, which tests/cli/test_help.py runs; the others
# train, and run what tests/shipped_recipes runs
HELPS = "docs/commands.md"
LONG_ONES = ("extract", "merging", "recipes", "reports", "resizing", "training", "verifying")
LONG = tuple(f"docs/{n}.md" for n in LONG_ONES)


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(d, marks=pytest.mark.slow) if d == HELPS else tail(d) if d in LONG else d
        for d in WITH_COMMANDS
    ],
)
def test_console_blocks_run(document, run, monkeypatch):
    """Every line of every console block, in order, with the files that it speaks of.

    Where a document shows what a line prints, it prints just that, apart from times.
    """
    path = ROOT / document
    few_steps(monkeypatch)
    unmeasured(monkeypatch)
    uncounted(monkeypatch)
    for block in blocks(path, "console"):
        trains = any(word in block for word in ("--images", "learn.yaml"))
        prepare(run, monkeypatch, resized="resize" not in block, pictures=trains)
        for name, text in named_files(path).items():
            (run.folder / name).write_text(text, "utf-8")
        for line in shown_in(block):
            if line.command.startswith(ELSEWHERE):
                continue
            words = shlex.split(line.command)
            assert words[0] == "loramerge", line
            result = run(*words[1:])
            assert result.code == line.code, result.err or result.out
            if any(line.output):
                printed = (result.err + result.out).rstrip().lstrip("\n").splitlines()
                if UPDATE:
                    block = _show_instead(path, block, line, printed)
                else:
                    assert _timeless(printed) == _timeless(line.output), line.command


def _timeless(lines: list[str]) -> list[str]:
    """Lines without times, and with spaces that follow from their width left out."""
    text = re.sub(r"\b\d+\.\d s\b", "T s", "\n".join(lines).strip())
    return [re.sub(r" {2,}", "  ", line).rstrip() for line in text.splitlines()]


def _show_instead(path: Path, block: str, line: Shown, printed: list[str]) -> str:
    """Write what a line prints into the document; return the block as it is then."""
    text, old = path.read_text("utf-8"), "\n".join(["", *line.output, ""])
    assert text.count(block) == 1 and old in block
    new = block.replace(old, "\n".join(["", *printed, ""]), 1)
    path.write_text(text.replace(block, new), "utf-8", newline="\n")
    return new


def _recipe_words() -> dict[str, tuple[str, ...]]:
    """Every word of a recipe and of what runs say, by where it comes from."""
    from loramerge.algebra import per_module
    from loramerge.algebra.compat import COMPATS
    from loramerge.cli.plan import command as plan
    from loramerge.cli.run import command as run_command
    from loramerge.recipe import inputs, recipe
    from loramerge.recipe.json_schema import json_schema
    from loramerge.recipe.registry import known_verbs

    verbs = json_schema()["properties"]["steps"]["additionalProperties"]["properties"]
    flags = {
        max(p.opts, key=len)
        for command in (plan, run_command)
        for p in command.params
        if p.opts[0].startswith("-")
    }
    return {
        "recipe": recipe._WORDS,
        "input": tuple(word for word in inputs._WORDS if word != "recipe"),  # headers only
        "verb": tuple(known_verbs()),
        "step": tuple(verbs),
        "parameter": tuple(w for v in verbs.values() for w in v.get("properties", ())),
        "reference": ("adapter", "model", "weight", "each", "files"),
        "weight": tuple(per_module._FIELDS),
        "compat": tuple(COMPATS),
        "status": ("done", "up to date", "not needed", "failed", "left out"),
        "option": tuple(flags - {"--json-file", "--quiet", "--help"}),
    }


def test_every_word_of_recipes_is_documented():
    text = (DOCS / "recipes.md").read_text("utf-8")
    for kind, words in _recipe_words().items():
        assert words
        for word in words:
            assert re.search(rf"`{re.escape(word)}[`: ]", text), f"{kind}: {word}"


def test_a_word_that_is_left_out_would_be_found(monkeypatch):
    from loramerge.recipe import recipe

    monkeypatch.setattr(recipe, "_WORDS", (*recipe._WORDS, "hooks"))
    with pytest.raises(AssertionError, match="recipe: hooks"):
        test_every_word_of_recipes_is_documented()


@pytest.mark.parametrize(
    "document", ["README.md", "docs/recipes.md", "docs/reports.md", "docs/resizing.md"]
)
def test_yaml_blocks_are_recipes(document, run, monkeypatch):
    """Whole ones as they are, parts of one with the rest beside them; one shows mistakes."""
    from loramerge.errors import RecipeError
    from loramerge.files.digest import sha256_of_file
    from loramerge.recipe.recipe import load_recipe

    prepare(run, monkeypatch)
    (run.folder / "loras").mkdir()
    os.link(run.folder / "a.safetensors", run.folder / "loras" / "a.safetensors")
    rest = {
        "version": "version: 1\n",
        "inputs": "inputs: {style: style.safetensors, character: character.safetensors}\n",
        "steps": "steps: {blend: {mix: {adapters: [character, style]}, save: out/blend.safetensors}}\n",
    }
    path, found = run.folder / "page.yaml", blocks(ROOT / document, "yaml")
    for block in found:
        pins = re.findall(r"sha256: (\w{64})", block)
        for pin in pins:
            block = block.replace(pin, sha256_of_file(run.folder / "style.safetensors"))
        words = re.findall(r"^(\w+):", block, re.MULTILINE)
        missing = [] if "version" in words else [text for w, text in rest.items() if w not in words]
        path.write_text(block + "".join(missing), "utf-8")
        if "mistaken" in block:
            with pytest.raises(RecipeError):
                load_recipe(path)
        else:
            assert load_recipe(path).tasks
    assert found


def test_readme_python_blocks_run(run, monkeypatch):
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
    if document == "training.md":
        prepare_training(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = "\n".join(blocks(DOCS / document, "python"))
    test = doctest.DocTestParser().get_doctest(text, {}, document, document, 0)
    assert len(test.examples) > 20
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    capsys.readouterr()
    stdout, report = sys.stdout, []
    runner.run(test, out=report.append)
    sys.stdout = stdout
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


def test_the_operator_of_the_page_runs(run, monkeypatch):
    """The file as it stands there, then every line of the console and of Python, and its laws."""
    from loramerge.algebra.operators import OPERATORS
    from tests.laws.laws import check_operator

    source, python = blocks(DOCS / "operators.md", "python")
    consoles = blocks(DOCS / "operators.md", "console")
    prepare(run, monkeypatch)
    Path("mine.py").write_text(source, "utf-8")
    with OPERATORS.adding():
        for line in (one for console in consoles for one in shown_in(console)):
            run.ok(*shlex.split(line.command)[1:])
        test = doctest.DocTestParser().get_doctest(python, {}, "operators.md", "operators.md", 0)
        report: list[str] = []
        runner = doctest.DocTestRunner(verbose=False)
        stdout = sys.stdout
        runner.run(test, out=report.append)
        sys.stdout = stdout
        assert runner.summarize(verbose=False).failed == 0, "".join(report)
        check_operator(OPERATORS["equal-norms"])


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """The page of the experiment, in an empty folder."""
    pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    return DOCS / "report-2022.md"


@pytest.mark.long_tail  # its run is done in tests/shipped_recipes, its trial in tests/tiny
def test_the_experiment_is_run_as_the_page_says(experiment, capsys):
    """Each line as it stands, but with few steps and pictures."""
    from loramerge.tiny.__main__ import main as tiny

    shorter = {"run": ["steps=4", "batch=2", "drawing_steps=2"]}
    lines = [shown.command for block in blocks(experiment, "console") for shown in shown_in(block)]
    assert sum("report-2022.yaml" in line for line in lines) >= 2
    for line in lines:
        words = shlex.split(line)
        if words[:3] == ["python", "-m", "loramerge.tiny"]:
            count = ["--count", "2"] if words[3] == "trial" else []
            assert tiny([*words[3:], *count]) == 0, line
            continue
        assert words[0] == "loramerge", line
        sets = [f"--set={one}" for one in shorter.get(words[1], ())]
        assert main([*words[1:], *sets]) == 0, line
    assert Path("out/learned.png").is_file()
    printed = capsys.readouterr().out
    for name in ("rank4", "rank64", "rank64-to-8", "rank64+polka", "slow", "alone", "full"):
        assert printed.count(f" {name} |") == 2, name  # on each base


@pytest.mark.long_tail
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_the_cut_of_the_page_is_found(experiment):
    text = "\n".join(blocks(experiment, "python"))
    test = doctest.DocTestParser().get_doctest(text, {}, "report-2022", "report-2022", 0)
    assert len(test.examples) > 10
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    stdout = sys.stdout
    runner.run(test, out=report.append)
    sys.stdout = stdout
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


def test_readme_says_what_exists():
    """Names in backticks that look like commands are commands."""
    text = README.read_text("utf-8")
    for name in re.findall(r"`loramerge (\w+)", text):
        assert name in summaries()
    for line in re.findall(r"^\$ loramerge (\w+)", text, re.MULTILINE):
        assert line in summaries()


def test_the_page_of_training_has_every_preset():
    pytest.importorskip("torch")
    from loramerge.train.lora.targets import PRESETS

    text = (DOCS / "training.md").read_text("utf-8")
    for name, preset in PRESETS.items():
        row = re.search(rf"^\| `{name}` \|.*$", text, re.MULTILINE)
        assert row and all(f"`{alias}`" in row[0] for alias in preset.aliases), name


def test_the_weight_file_of_the_page_is_one(tmp_path):
    from loramerge.steps.references import parse_reference, with_weight_files

    (block,) = blocks(DOCS / "weights.md", "yaml")
    (tmp_path / "page.yaml").write_text(block, "utf-8")
    (reference,) = with_weight_files([parse_reference("a")], [f"a={tmp_path / 'page.yaml'}"])
    assert reference.weight.components == {"text_encoder": 0.0}
    assert len(reference.weight.blocks) == 17 and reference.weight.match == (("*attn2*", 0.5),)
