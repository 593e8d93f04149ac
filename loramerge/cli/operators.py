"""The command `operators`: list the merge operators, or explain one."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from loramerge.algebra.laws import LAWS
from loramerge.algebra.operator import Operator
from loramerge.algebra.operators import OPERATORS, find_operator
from loramerge.cli import show
from loramerge.cli.command import emit
from loramerge.cli.options import json_options, operator_option

_SPACES = {
    "scalars": "one coefficient for each adapter and module, without dense matrices",
    "factors": "small matrices between bases that the adapters share, without dense matrices",
    "columns": "small matrices as high as the ranks together and as wide as ΔW, without dense matrices",
    "elements": "every element of the dense matrices, then lowers the rank by SVD",
}


def _described(one: Operator) -> dict[str, Any]:
    """Return the object that `operators --json` prints for an operator."""
    parameters = [
        {
            "name": p.word,
            "meaning": p.doc.help,
            "default": None if p.default is dataclasses.MISSING else p.default,
            "required": p.required,
            "range": _range(p.bounds),
        }
        for p in one.own_parameters
    ]
    return {
        "name": one.name,
        "title": one.title,
        "space": one.space,
        "scale": one.scale,
        "corrects": one.correct is not None,
        "parameters": parameters,
        "formula": one.formula,
        "when": one.when,
        "source": one.source,
        "laws": list(one.laws),
    }


def _range(bounds: tuple[Any, ...]) -> str | None:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    found = [
        f"{sign} {getattr(bound, name):g}"
        for bound in bounds
        for name, sign in signs.items()
        if getattr(bound, name, None) is not None
    ]
    return " and ".join(found) or None


def _show_one(one: Operator) -> None:
    described = _described(one)
    lines = [("method", f"{one.name}: {one.title}")]
    lines += [(word, text) for word in ("formula", "when", "source") if (text := described[word])]
    lines.append(("computes", _SPACES[one.space]))
    lines.append(("scale", f"{one.scale} by default (--scale)"))
    if one.correct is not None:
        lines.append(("corrects", f"the result of any other method (--correction {one.name})"))
    for parameter in described["parameters"]:
        default = "required" if parameter["required"] else f"default {parameter['default']}"
        limits = f", {parameter['range']}" if parameter["range"] else ""
        name = parameter["name"].replace("_", "-")
        lines.append((f"--{name}", f"{parameter['meaning']} ({default}{limits})"))
    lines += [("laws" if i == 0 else "", LAWS[law]) for i, law in enumerate(one.laws)]
    show.table(lines)


def _show_all(content: list[dict[str, Any]]) -> None:
    def words(one: dict[str, Any]) -> str:
        return ", ".join(f"--{p['name'].replace('_', '-')}" for p in one["parameters"]) or "–"

    show.table(
        ((one["name"], one["title"], words(one), one["space"]) for one in content),
        ("method", "description", "options", "computes"),
    )


@click.command(
    "operators",
    params=[
        click.Argument(["name"], metavar="[NAME]", required=False),
        operator_option(),
        *json_options(),
    ],
    epilog="Example: loramerge operators; loramerge operators linear",
)
def command(name: str | None, as_json: bool, json_file: str | None) -> None:
    """List the merge operators that `mix --method` knows; with NAME, explain one.

    Add your own in a Python file (--operator FILE.py), or in an installed package by the entry
    point `loramerge.operators`.
    """
    if name is not None:
        one = find_operator(name)
        emit(_described(one), as_json, json_file, lambda: _show_one(one))
        return
    content = [_described(one) for one in OPERATORS.values()]
    emit(content, as_json, json_file, lambda: _show_all(content))
