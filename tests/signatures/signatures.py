"""The text of loramerge/signatures.py, from the verbs' dataclasses."""

from __future__ import annotations

import dataclasses
import typing

from loramerge.parameters import Parameter, parameters_of
from loramerge.signatures import key_of
from loramerge.verbs import verb_named

# function → parameters that it has itself, or that mean nothing without a command line
FUNCTIONS = {
    "mix": ("adapters", "weights", "output", "force"),
    "resize": ("adapter", "ingredient", "output", "force"),
    "convert": ("adapter", "output", "force"),
    "heal": ("adapter", "output", "force"),
    "extract": ("tuned", "base", "output", "force"),
    "bake": ("base", "adapters", "lora", "weights", "output", "seed"),
    "unbake": ("checkpoint", "lora", "weights", "output"),
    "merge": ("models", "weights", "output"),
    "preview": ("base", "adapters", "output", "force", "html"),
    "train": ("base", "images", "output", "force", "dry_run"),
}

HEAD = '''"""The parameters that functions of the Python interface hand on to verbs, typed.

Generated from the verbs' dataclasses by tests/signatures/test_signatures.py: do not edit. To renew it:
LORAMERGE_UPDATE_DOCS=1 python -m pytest tests/signatures
"""

from collections.abc import Sequence
from keyword import iskeyword
from os import PathLike
from typing import Literal, TypedDict

from loramerge.parameters import Parameter


def key_of(one: Parameter) -> str:
    """Return the name of a parameter in Python: its word, unless that is a keyword."""
    return one.name if iskeyword(one.word) else one.word
'''


def _typed(one: Parameter) -> str:
    if typing.get_origin(one.kind) is typing.Literal:
        single = f"Literal[{', '.join(repr(w) for w in typing.get_args(one.kind))}]"
        single = single.replace("'", '"')
    elif one.kind is str:
        places = one.refers or one.doc.metavar in ("DIR", "PATH", "FILE", "BASE")
        single = "str | PathLike[str]" if places else "str"
        if one.doc.number is not None:
            single = f"str | {one.doc.number.__name__}"
    else:
        single = one.kind.__name__
    if one.many:
        single = f"{single} | Sequence[{single}]"
    return f"{single} | None" if one.optional else single


def text() -> str:
    parts = [HEAD]
    for name, without in FUNCTIONS.items():
        verb = verb_named(name)
        assert verb is not None and dataclasses.is_dataclass(verb.parameters)
        lines = [f"class {name.capitalize()}Parameters(TypedDict, total=False):",
                 f'    """Parameters of `{name}`."""', ""]  # fmt: skip
        lines += [
            f"    {key_of(one)}: {_typed(one)}"
            for one in parameters_of(verb.parameters)
            if one.name not in without and one.holder is None
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n\n".join(parts)
