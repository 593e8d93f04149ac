"""A linter of the project's English: `python -m tests.docs.prose [PATH …]` prints what it finds.

It reads docstrings, the texts in the code, the documents and the comments of recipes. The rules are
those of a good colleague: direct sentences, the field's words, first lines that name or command.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import loramerge

PACKAGE = Path(loramerge.__file__).parent
ROOT = PACKAGE.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/*.md", "docs/guides/*.md", "recipes/*.yaml")


class Finding(NamedTuple):
    """One sentence to mend."""

    path: str
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.text}"


# a first line names a thing or commands; it never asks
CLAUSE = re.compile(r"^(What|How|Where|Whether|That|Which|When|If|Who|Whoever|Whatever|Why)\b")

# words and turns that readers stumble over → what to say
BANNED: dict[str, str] = {
    r"\bfore(tell|told|telling|tells)\b": "predict",
    r"(?<!here )\b(is|are) no (?!(longer|more|less|fewer|better|other)\b)[a-z]+": "is not a …",
    r"\b(can ?not|can't|could not) be (said|told|meant)\b": "cannot be stored, is not known, …",
    r"\bnothing to remark\b": "No problems found.",
    r"\blost nothing\b": "exact sum, …",
    r"\btouched weights\b": "the original weights' norm",
    r"\bnothing was cut\b": "already at or below rank …",
    r"\buse it at weight 1\b": "Load this file at strength 1: …",
    r"\bsurvived \d": "kept after rounding to …",
    r"\bheader length is impossible\b": "say what the file is",
    r"\bwhat (it|a run|there) is to (be|keep)\b": "say it directly",
    r"\bis to be told\b": "say it directly",
    r"\b(at most|at least) frugal\b": "smallest",
    r"\bcannot be had\b": "is not available",
    r"\bwhat is there not\b": "what is missing",
    r"\bbetray(s|ing|ed)?\b": "identify, mark",
    r"\bmade up from\b": "computed from",
    r"\b(lpl|utils?|helpers?)\b": "name the thing",
    r"\bthe like\b": "name it",
    r"\bas well be\b": "may also be",
    r"\bas it stands\b": "unchanged",
    r"\bis amiss\b": "problem",
    r"\bmakes? of (it|them)\b": "result, reading",
    r"\bof strangers\b": "untrusted, from people you do not know",
    r"\bmeans? what (it|they) says?\b": "say what it means",
    r"\b(what|it) (is|was) (seen|said|told) to\b": "tested, stated",
    r"\bunless told\b": "by default",
    r"\bare told apart\b": "are distinguished",
    r"\bin a half-?written\b": "incomplete",
    r"\banother change of\b": "a different change from",
    r"\bdoes not suffice\b": "is too small",
    r"\bhitherto|thereof|wherein|whereof|heretofore\b": "plain words",
}
BANNED_PATTERNS = [
    (re.compile(pattern, re.IGNORECASE), better) for pattern, better in BANNED.items()
]

ANY_BANNED = re.compile("|".join(f"(?:{pattern})" for pattern in BANNED), re.IGNORECASE)

# what a name may not be: a participle or question that says nothing about the thing
ODD_NAMES = re.compile(r"^_?(Said|Asked|Told|How|Given|Found|Thing|Stuff|Misc)$")

# a first line commands; it does not tell a story about the function
NARRATIVE = re.compile(
    r"^(Say|Says|Tells|Gives|Returns|Makes|Does|Finds|Reads|Writes|Yields|Takes|Adds|Checks|Computes)\b"
)

MOST_WORDS = 45  # of one sentence in documents and docstrings; aim for 25


def python_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the Python files among paths, those in folders included."""
    for path in paths:
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def _parsed(path: Path) -> ast.Module:
    """Return the tree of a Python file; what `twins` needs of it is kept."""
    tree = ast.parse(path.read_text("utf-8"))
    _CLASSES[path] = [(n.lineno, n.name) for n in tree.body if isinstance(n, ast.ClassDef)]
    return tree


_CLASSES: dict[Path, list[tuple[int, str]]] = {}  # lines and names


def _classes(path: Path) -> list[tuple[int, str]]:
    """Return the lines and names of the classes at the top of a file."""
    if path not in _CLASSES:
        _parsed(path)
    return _CLASSES[path]


def lint_python(path: Path, name: str) -> Iterator[Finding]:
    """Yield what is wrong in a Python file's docstrings, texts and names."""
    nodes = list(ast.walk(_parsed(path)))
    docstrings: set[int] = set()
    for node in nodes:
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, kinds) and (found := ast.get_docstring(node)):
            expression = node.body[0]
            assert isinstance(expression, ast.Expr)
            docstrings.add(id(expression.value))
            yield from _docstring(found, name, expression.lineno, node)
        if isinstance(node, ast.ClassDef) and ODD_NAMES.match(node.name):
            yield Finding(name, node.lineno, "name", f"class {node.name} says nothing")
    for node in nodes:
        text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if text and id(node) not in docstrings:
            yield from _banned(node.value, name, node.lineno)


def _docstring(text: str, name: str, line: int, node: ast.AST) -> Iterator[Finding]:
    first = text.split("\n", 1)[0]
    own_name = first.startswith(f"{Path(name).stem}: ")  # "mix: a weighted combination …"
    if CLAUSE.match(first):
        yield Finding(name, line, "first line is a clause", first)
    elif first[:1].isalpha() and not first[:1].isupper() and not own_name:
        yield Finding(name, line, "first line without a capital", first)
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and NARRATIVE.match(first):
        yield Finding(name, line, "first line of a function is not an imperative", first)
    yield from _banned(text, name, line)
    yield from _long(text, name, line)


def _banned(text: str, name: str, line: int) -> Iterator[Finding]:
    if ANY_BANNED.search(text) is None:
        return  # one search instead of thirty, for nearly all texts
    for pattern, better in BANNED_PATTERNS:
        for match in pattern.finditer(text):
            around = text[max(0, match.start() - 30) : match.end() + 30].replace("\n", " ")
            yield Finding(name, line, f"'{match[0]}' (say: {better})", around)


def _long(text: str, name: str, line: int) -> Iterator[Finding]:
    for paragraph in re.split(r"\n\s*\n|\n\s*[-*|>#]|\n\s+\w+: ", text):
        for sentence in re.split(r"(?<=[.!?:;])\s", paragraph):
            words = sentence.split()
            if len(words) > MOST_WORDS:
                yield Finding(name, line, f"{len(words)} words in a sentence", " ".join(words[:12]))


def lint_document(path: Path, name: str) -> Iterator[Finding]:
    """Yield what is wrong in a document, code blocks apart."""
    fenced = False
    paragraph: list[str] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield from _banned(line, name, number)
        if fenced or not line.strip() or line.startswith(("```", "|", "#", "    ")):
            yield from _long(" ".join(paragraph), name, number)
            paragraph = []
        elif path.suffix == ".md":
            if line.lstrip().startswith(("- ", "* ")):
                yield from _long(" ".join(paragraph), name, number)
                paragraph = []
            paragraph.append(line)
    yield from _long(" ".join(paragraph), name, number)


def twins(package: Path) -> Iterator[Finding]:
    """Yield classes that share a name with one in another file."""
    seen: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for path in python_files([package]):
        for line, class_name in _classes(path):
            seen[class_name].append((path.relative_to(package.parent).as_posix(), line))
    for name, places in seen.items():
        if len(places) > 1:
            others = ", ".join(path for path, _ in places[1:])
            yield Finding(*places[0], "two classes of one name", f"{name}, also in {others}")


def lint(paths: Iterable[Path]) -> list[Finding]:
    """Return everything that is wrong in files and folders."""
    found: list[Finding] = []
    for path in paths:
        for one in python_files([path]) if path.is_dir() or path.suffix == ".py" else [path]:
            name = one.relative_to(ROOT).as_posix() if one.is_relative_to(ROOT) else one.name
            check = lint_python if one.suffix == ".py" else lint_document
            found += check(one, name)
    return found


def everything() -> list[Path]:
    """Return the package and all documents."""
    return [PACKAGE, *(path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern)))]


if __name__ == "__main__":
    asked = [Path(text).resolve() for text in sys.argv[1:]]
    findings = [*lint(asked or everything()), *([] if asked else twins(PACKAGE))]
    sys.stdout.write("".join(f"{one}\n" for one in findings))
    sys.stderr.write(f"{len(findings)} findings\n")
    sys.exit(bool(findings))
