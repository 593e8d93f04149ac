"""A model card: a README.md with the YAML header that model hubs read.

Nothing is guessed: a field whose value is not known is left out. Texts of other people are escaped,
so that they show as text whatever they hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["LICENSES", "CardContent", "card_text"]

# identifiers of licenses that Hugging Face knows, as its documentation of model cards lists them
_IDENTIFIERS = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda
cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0
etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research
intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0
postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma
"""
LICENSES = frozenset(_IDENTIFIERS.split())
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./+-]*(?: [A-Za-z0-9_./+-]+)*")
# words that YAML reads as something else
_WORDS = frozenset(
    {"y", "yes", "n", "no", "on", "off", "true", "false", "null", "none", "nan", "inf"}
)
_MARKED = re.compile(r"([\\`*_{}\[\]<>()#!|~$])|^[-+=]")
_TURNS = (*range(0x2028, 0x202F), *range(0x2066, 0x206A))  # lines and directions
_CONTROLS = {n: " " for n in (*range(32), *range(127, 160), *_TURNS) if n != 10}


@dataclass(frozen=True)
class CardContent:
    """The facts about an adapter that are known.

    Args:
        title: its name for people.
        file: name of its file; of a folder, what the folder is called.
        header: fields of the YAML header; those that are None or empty are left out.
        description: text of its author.
        pictures: paths relative to the card.
        words: trigger words.
        base: the models that it fits, for the commands in `uses`.
        uses: programs that load it, with how to: (heading, language, code), or (heading, "", text).
        facts: what the file holds.
        training: what is known of the training.
        recipe: steps that made the file.
        command: command that repeats the file.
    """

    title: str
    file: str
    header: Mapping[str, Any]
    description: str = ""
    pictures: Sequence[str] = ()
    words: Sequence[str] = ()
    base: str = ""
    uses: Sequence[tuple[str, str, str]] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, str] = field(default_factory=dict)
    recipe: Mapping[str, Any] | None = None
    command: str = ""


def card_text(card: CardContent) -> str:
    """Return the card as Markdown with a YAML header; the same card gives the same text."""
    parts = [_front(card.header), f"# {escaped(card.title)}", _paragraphs(card.description)]
    parts += [f"![{escaped(card.title)}]({_link(path)})" for path in card.pictures]
    if card.words:
        words = ", ".join(_code(word) for word in card.words)
        parts += ["## Trigger words", f"Use these words in prompts: {words}"]
    if card.uses:
        stands = (
            f"`BASE` stands for the model it is used with: {escaped(card.base)}."
            if card.base
            else ""
        )
        parts += ["## Use", stands, *(_use(*one) for one in card.uses)]
    parts += ["## The file", _table(card.facts)]
    if card.training:
        parts += ["## Training", "As the header of the file has it.", _table(card.training)]
    if card.recipe is not None:
        text = json.dumps(card.recipe, ensure_ascii=False, indent=2)
        parts += [
            "## Recipe",
            "This file was made by loramerge. Its header holds the recipe, with digests of the inputs:",
            _fenced(text, "json"),
            f"With the inputs at hand, {_code(card.command)} makes it again and compares.",
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escaped(text: str) -> str:
    """Return a text in one line that Markdown and HTML show as it is."""
    line = " ".join(text.translate(_CONTROLS).split())
    line = _MARKED.sub(r"\\\g<0>", line.replace("&", "&amp;"))
    line = re.sub(r"^(\d+)([.)])", r"\1\\\2", line)  # else it begins a list
    return line.replace(r"\<", "&lt;").replace(r"\>", "&gt;")


def _paragraphs(text: str) -> str:
    return "\n\n".join(escaped(line) for line in text.splitlines() if line.strip())


def _code(text: str) -> str:
    """Return a text as code in a line."""
    line = " ".join(text.translate(_CONTROLS).split())
    marks = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    room = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{marks}{room}{line}{room}{marks}"


def _fenced(text: str, language: str) -> str:
    marks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{marks}{language}\n{text.translate(_CONTROLS)}\n{marks}"


def _use(heading: str, language: str, text: str) -> str:
    return f"**{heading}**\n\n{_fenced(text, language) if language else text}"


def _table(rows: Mapping[str, str]) -> str:
    lines = [f"| {escaped(name)} | {escaped(value)} |" for name, value in rows.items() if value]
    return "\n".join(("| | |", "|---|---|", *lines)) if lines else ""


def _link(path: str) -> str:
    from urllib.parse import quote

    return quote(path)


# ---- the header ---------------------------------------------------------------------------------


def _front(header: Mapping[str, Any]) -> str:
    """Return the YAML header; its texts are quoted as JSON where YAML would read them otherwise."""
    lines = ["---"]
    for name, value in header.items():
        if value is None or value == "" or value == []:
            continue
        if isinstance(value, list):
            lines.append(f"{name}:")
            lines += _items(value)
        else:
            lines.append(f"{name}: {_scalar(value)}")
    return "\n".join([*lines, "---"])


def _items(values: Iterable[Any]) -> Iterable[str]:
    for value in values:
        if isinstance(value, Mapping):  # of a widget: text and output, which holds the address
            yield f"- text: {_scalar(value['text'])}"
            yield "  output:"
            yield f"    url: {_scalar(value['url'])}"
        else:
            yield f"- {_scalar(value)}"


def _scalar(value: str) -> str:
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value.translate(_CONTROLS), ensure_ascii=False)
