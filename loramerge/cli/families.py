"""The command `families`: list the base models that are known, or describe one."""

from __future__ import annotations

from typing import Any

import click

from loramerge.cli import show
from loramerge.cli.command import emit
from loramerge.cli.options import json_options
from loramerge.dialects import DIALECTS, PROGRAMS, Dialect, stem_table
from loramerge.families import FAMILIES, Family, family
from loramerge.families.usual import Usual


def _described(one: Family) -> dict[str, Any]:
    """Return the object that `families --json` prints for a family."""
    return {
        "name": one.name,
        "title": one.title,
        "components": {c.name: len(c.modules) for c in one.components},
        "layouts": sorted({s.layout for found in one.spellings.values() for s in found}),
        "verified": one.verified or None,
        "read_only": not one.proven,
    }


def _example(one: Family, dialect: Dialect) -> str | None:
    """Return a dialect's name of a module of the family; None if it has none."""
    table = stem_table(dialect, one)
    stems = [stem for stem, meaning in table.items() if meaning.form == 0]
    usual = (s for s in stems if any(m.endswith(p) for m in table[s].modules for p in one.probes))
    return next(usual, next(iter(stems), None))


def _in_detail(one: Family) -> dict[str, Any]:
    """Return the object that `families NAME --json` prints."""
    prefixes = {
        layout: {
            c: s.prefix
            for c, found in one.spellings.items()
            for s in found[:1]
            if s.layout == layout
        }
        for layout in sorted({s.layout for found in one.spellings.values() for s in found[:1]})
    }
    programs = {**PROGRAMS, **one.programs}
    return _described(one) | {
        "prefixes": prefixes,
        "classes": dict(one.classes),
        "written_for": programs,
        "usual_dialect": one.common_dialect,
        "stems": {
            name: stem
            for name, dialect in DIALECTS.items()
            if (stem := _example(one, dialect)) is not None
        },
        "modelspec.architecture": one.metadata.architecture,
        "ss_base_model_version": one.metadata.base_version,
        "usual_change": one.usual_change and one.usual_change._asdict(),
        "usual_norm": one.usual_norm and one.usual_norm._asdict(),
    }


def _show_one(found: dict[str, Any]) -> None:
    lines = [("family", f"{found['name']}: {found['title']}")]
    for name, modules in found["components"].items():
        made = found["classes"].get(name)
        text = f"{name}, {show.count(modules, 'module')}"
        lines.append(("component", f"{text} ({made})" if made else text))
    lines.append(("layouts of files", ", ".join(found["layouts"])))
    for layout, prefixes in found["prefixes"].items():
        lines += [
            (f"prefix in {layout}", f"{prefix} ({component})")
            for component, prefix in prefixes.items()
            if prefix
        ]
    if found["verified"]:
        lines.append(("verified against", found["verified"]))
    lines.append(("can be", "inspected, mixed and resized" if found["read_only"] else
                  "inspected, mixed, resized, converted and baked"))  # fmt: skip
    if found["usual_change"]:
        usual = Usual(**found["usual_change"]).words(show.percent)
        lines.append(("usual change", f"of the norm of the weights, at weight 1: {usual}"))
    if found["usual_norm"]:
        usual = Usual(**found["usual_norm"]).words(lambda norm: f"{norm:.2g}")
        lines.append(("usual norm", f"mean of the modules' ΔW, at weight 1: {usual}"))
    for word in ("modelspec.architecture", "ss_base_model_version"):
        if found[word]:
            lines.append((word, found[word]))
    show.table(lines)
    rows = [
        (
            dialect,
            ", ".join(p for p, name in found["written_for"].items() if name == dialect) or "–",
            show.module(stem),
        )
        for dialect, stem in found["stems"].items()
    ]
    show.table(rows, ("dialect", "--for", "name of a module in an adapter"))


def _show_all(content: list[dict[str, Any]]) -> None:
    show.table(
        (
            (
                f["name"],
                f["title"] + (" (read-only)" if f["read_only"] else ""),
                ", ".join(f["components"]),
                ", ".join(f["layouts"]),
                f["verified"] or "–",
            )
            for f in content
        ),
        ("family", "base model", "components", "layouts of files", "verified against"),
    )


@click.command(
    "families",
    params=[click.Argument(["name"], metavar="[NAME]", required=False), *json_options()],
    epilog="Example: loramerge families; loramerge families sdxl",
)
def command(name: str | None, as_json: bool, json_file: str | None) -> None:
    """List the base models that are known; with NAME, describe one.

    The list says what the names and shapes of each family were verified against. A description lists
    the components with their number of modules, the prefixes in single files, and the name of one
    module in every dialect. Adapters of a read-only family can be inspected, mixed and resized, but
    not baked or converted.
    """
    if name is not None:
        found = _in_detail(family(name))
        emit(found, as_json, json_file, lambda: _show_one(found))
        return
    content = [_described(one) for one in FAMILIES.values()]
    emit(content, as_json, json_file, lambda: _show_all(content))
