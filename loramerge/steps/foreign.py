"""Adapters with weights in the notation of other programs, rewritten in ours.

`A=0.7`, `A*0.7`, `A@0.7`, `0.7*A`, `A 0.7`, `A:70%`, and several in one text: supermerger's
`A:0.7,B:0.3`, sums, and pasted prompts `<lora:A:0.7><lora:B:0.3>`. loramerge never guesses the
meaning of such a text: the rewritten form is only the hint of an error.
"""

from __future__ import annotations

import re

__all__ = ["rewritten"]

_LONGEST = 500  # characters; what is longer was not typed
_NUMBER = r"(?P<weight>[-+]?(?:\d+\.?\d*|\.\d+))"
_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"(?P<name>[^,+;]+?)\s*(?:=|\*|@|×|:)\s*{_NUMBER}(?P<percent>\s*%)?(?P<blocks>:[A-Z]+)?",
        rf"{_NUMBER}(?P<percent>\s*%)?\s*(?:\*|×|:)\s*(?P<name>[^,+;]+)(?P<blocks>)",
        rf"(?P<name>[^,+;\s]+)\s+{_NUMBER}(?P<percent>\s*%)?(?P<blocks>)",
    )
)  # fmt: skip
_BETWEEN = re.compile(
    r">[\s,+]*<(?:lora|lyco):|\s*[,;+]\s*|(?<=\d):(?=[A-Za-z_])(?![A-Z]+(?:,|$)|\w+=)"
)


def rewritten(text: str) -> list[tuple[str, str]]:
    """Return the adapters of a text with their weights, empty if it has no such form."""
    if len(text) > _LONGEST:
        return []
    whole = re.sub(r"^<(?:lora|lyco):|>$", "", text.strip())
    found = [_one(part.strip()) for part in _BETWEEN.split(whole) if part]
    return [one for one in found if one is not None] if all(found) else []


def _one(text: str) -> tuple[str, str] | None:
    for form in _FORMS:
        match = form.fullmatch(text)
        if match is not None:
            weight = match["weight"].removeprefix("+")
            if match["percent"]:
                weight = f"{float(weight) / 100:g}"
            return match["name"].strip(), weight + (match["blocks"] or "")
    return None
