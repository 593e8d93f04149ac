"""Guides run as they stand, end with the picture that they make, and are the same in Japanese."""

from __future__ import annotations

import doctest
import re
import shutil

import pytest

from loramerge.errors import Setting
from loramerge.habits import answer_to_command, answer_to_parameter
from tests.builders.sampler import few_steps
from tests.builders.unmeasured import uncounted, unmeasured
from tests.cli.examples import blocks, walk
from tests.docs.guides import DOCS, GUIDES, PICTURE, commands_of, run_guide
from tests.tail import tail

ROOT = DOCS.parent
SHORT = ("first-steps",)  # those that are always run
LARGEST = 120_000  # bytes of a picture


def _quick(words: list[str]) -> list[str]:
    """Return a command with so little training that it takes a second."""
    return (
        [*words, "--steps", "2", "--batch", "2", "--sample-every", "0"]
        if words[0] == "train"
        else words
    )


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to run a guide in, with a sampler of few steps."""
    few_steps(monkeypatch)
    unmeasured(monkeypatch)
    uncounted(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("guide", [p.stem if p.stem in SHORT else tail(p.stem) for p in GUIDES])
def test_guides_run(guide, place):
    run_guide(DOCS / "guides" / f"{guide}.md", _quick)
    assert (place / f"{guide}.png").is_file()


def test_the_commands_of_the_answers_run(run, place):
    shutil.copy(run.folder / "b.safetensors", "character.safetensors")  # it has a text encoder
    run_guide(DOCS / "faq.md")


def test_the_algebra_computes_what_it_says():
    text = "\n".join(blocks(DOCS / "algebra.md", "python"))
    test = doctest.DocTestParser().get_doctest(text, {}, "algebra.md", "algebra.md", 0)
    assert len(test.examples) > 8
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 0


def test_a_guide_that_is_wrong_would_be_found(place):
    page = place / "page.md"
    page.write_text("```console\n$ loramerge inspect no-such-adapter\n```\n", "utf-8")
    with pytest.raises(AssertionError, match="no-such-adapter"):
        run_guide(page)


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_a_guide_ends_with_the_picture_that_it_makes(path):
    text = path.read_text("utf-8").rstrip()
    picture = re.fullmatch(PICTURE, text.splitlines()[-1])
    assert picture, "the last line is a picture with a description"
    assert 0 < (path.parent / picture[1]).stat().st_size <= LARGEST
    assert picture[1] == f"{path.stem}.png"
    assert any(f"-o {path.stem}.png" in shown.command for shown in commands_of(path))


TRANSLATED = [
    ("README.md", "README.ja.md"),
    ("docs/guides/first-steps.md", "docs/ja/first-guide.md"),
]


@pytest.mark.parametrize(("english", "japanese"), TRANSLATED)
def test_a_translation_has_the_same_commands(english, japanese):
    ours, theirs = (list(commands_of(ROOT / path)) for path in (english, japanese))
    assert [one.command for one in theirs] == [one.command for one in ours], (
        f"the commands of {japanese} are those of {english}; copy those that are new"
    )
    for language in ("yaml", "python"):
        assert blocks(ROOT / english, language) == blocks(ROOT / japanese, language)


# --- the tables of other programs ----------------------------------------------------------------------

MOVING = DOCS / "guides" / "moving.md"
_ROW = re.compile(r"^\| `([^`|]+)` \| `loramerge ([^`|]+)` \|", re.MULTILINE)
_OPTION = re.compile(r"^\| `(-*\w+)` \| (\w+) \| `(--[\w-]+)` \|", re.MULTILINE)


def test_the_options_of_other_programs_are_what_the_command_line_answers():
    commands = dict(walk())
    found = _OPTION.findall(MOVING.read_text("utf-8"))
    assert len(found) > 15
    for theirs, verb, ours in found:
        known = [parameter.name for parameter in commands[verb].params]
        answer = answer_to_parameter(theirs, verb, known)
        assert answer is not None and not isinstance(answer, str), theirs
        named = [part.name.replace("_", "-") for part in answer if isinstance(part, Setting)]
        assert ours.removeprefix("--") in named, (theirs, verb, answer)


def test_the_commands_beside_those_of_other_programs_exist():
    commands = dict(walk())
    rows = _ROW.findall(MOVING.read_text("utf-8"))
    assert len(rows) > 15
    for theirs, ours in rows:
        verb, *words = ours.split()
        flags = {flag for parameter in commands[verb].params for flag in parameter.opts}
        for word in words:
            name = word.partition("=")[0]
            assert not name.startswith("-") or name in flags, (theirs, ours)


@pytest.mark.parametrize(
    ("word", "verb"),
    [("merge_lora", "mix"), ("svd_merge_lora", "mix"), ("resize_lora", "resize"),
     ("extract_lora_from_models", "extract"), ("train_network", "train"), ("mergekit_yaml", "merge"),
     ("add_weighted_adapter", "mix"), ("merge_and_unload", "bake"), ("add_difference", "merge")],
)  # fmt: skip
def test_commands_of_other_programs_are_answered_as_the_guide_says(word, verb):
    answer = answer_to_command(word)
    assert answer is not None and f"`{verb}`" in answer
    text = MOVING.read_text("utf-8").replace("-", "_").replace(" ", "_").lower()
    assert word in text


def test_every_page_has_a_command_line_that_exists():
    """Names of commands in the text of guides and of the questions are commands."""
    names = {name for name, _ in walk()}
    for path in (*GUIDES, DOCS / "faq.md", DOCS / "ja" / "first-guide.md", ROOT / "README.ja.md"):
        for words in re.findall(r"`loramerge ([a-z]+)", path.read_text("utf-8")):
            assert words in names, (path.name, words)
