"""The project's English: each rule of the linter finds its own kind of mistake."""

import re
from pathlib import Path

import pytest

from tests.docs.prose import PACKAGE, everything, lint, lint_document, lint_python, twins

ROOT = Path(__file__).resolve().parents[2]


def rules(tmp_path, text, suffix=".py"):
    """Return the rules that a text breaks."""
    path = tmp_path / f"one{suffix}"
    path.write_text(text, "utf-8")
    check = lint_python if suffix == ".py" else lint_document
    return [one.rule for one in check(path, path.name)]


@pytest.mark.parametrize(
    "text",
    [
        '"""What a run is."""',
        '"""Names."""\n\n\nclass Plan:\n    """Whether it runs."""',
        '"""Names."""\n\n\ndef plan():\n    """Says whether it runs."""',
        '"""Names."""\n\n\ndef plan():\n    """returns a plan."""',
        '"""Names."""\n\nraise ValueError("this is no component")',
        '"""Names."""\n\nraise ValueError(f"{1!r} is no component")',
        '"""Names."""\n\nTEXT = "Nothing to remark"',
        '"""Names."""\n\n\ndef plan():\n    """Foretell the ranks."""',
        '"""Names."""\n\n\nclass _Said:\n    """A step."""',
        '"""' + "word " * 50 + '"""',
    ],
)
def test_odd_sentences_are_found(tmp_path, text):
    assert len(rules(tmp_path, text)) >= 1


@pytest.mark.parametrize(
    "text",
    [
        '"""Names of things."""\n\n\ndef plan():\n    """Return the plan of a run."""',
        '"""One: the first file."""',
        '"""Names."""\n\nraise ValueError("there is no such file")',
        '"""Names."""\n\nraise ValueError("it is no longer here")',
    ],
)
def test_plain_sentences_pass(tmp_path, text):
    assert rules(tmp_path, text) == []


def test_documents_are_read_without_their_code(tmp_path):
    assert rules(tmp_path, "Fine.\n\n```\nnothing to remark\n```\n", ".md") == []
    assert len(rules(tmp_path, "It says nothing to remark.\n", ".md")) == 1


def test_two_classes_of_one_name_are_found(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text("class Plan: ...\n", "utf-8")
    assert [one.rule for one in twins(tmp_path)] == ["two classes of one name"]


def test_the_project_is_in_plain_english():
    assert [str(one) for one in (*lint(everything()), *twins(PACKAGE))] == []


MARKER = re.compile(r"^(?:<{7}|>{7}) ", re.MULTILINE)


def test_no_file_holds_both_sides_of_a_merge():
    assert MARKER.search("a\n" + "<" * 7 + " HEAD\n")
    texts = [p for p in ROOT.iterdir() if p.suffix in (".md", ".txt", ".toml", ".yaml")]
    for folder in ("loramerge", "tests", "docs", "recipes", "benchmarks"):
        texts += [p for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".md", ".yaml")]
    assert [str(p) for p in texts if MARKER.search(p.read_text("utf-8"))] == []
