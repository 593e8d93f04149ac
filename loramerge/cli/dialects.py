"""The command `dialects`: list the file formats (dialects) of adapters, or describe one."""

from __future__ import annotations

from typing import Any

import click

from loramerge.cli import show
from loramerge.cli.command import emit
from loramerge.cli.options import json_options
from loramerge.dialects import DIALECTS, Dialect, dialect, programs_of
from loramerge.dialects.programs import readers_of


def _described(one: Dialect) -> dict[str, Any]:
    """Return the object that `dialects --json` prints for a dialect."""
    return {
        "name": one.name,
        "title": one.title,
        "example": one.example,
        "alpha": one.alpha,
        "writes": one.writable,
        "loads_in": [program.title for program in readers_of(one.name)],
        "programs": programs_of(one.name),
    }


def _in_detail(one: Dialect) -> dict[str, Any]:
    """Return the object that `dialects NAME --json` prints."""
    suffixes: dict[str, list[str]] = {}
    for form in one.forms:
        for role, found in form.suffixes.items():
            suffixes[role] = list(dict.fromkeys([*suffixes.get(role, []), *found]))
    return _described(one) | {
        "prefixes": dict(one.prefixes),
        "suffixes": suffixes,
        "folder": one.folder,
        "pickle": one.pickle,
    }


_ALPHA = {
    "tensor": "beside the factors, in a tensor of each module",
    "header": "in the metadata of the header",
    "config": "in adapter_config.json",
    "none": "not stored; it is the rank",
}


def _show_one(found: dict[str, Any]) -> None:
    kind = "a folder" if found["folder"] else "one file"
    lines = [
        ("dialect", f"{found['name']}: {found['title']}"),
        ("written as", f"{kind}, safetensors" + (" or a pickle" if found["pickle"] else "")),
        ("example of a key", found["example"]),
        ("alpha", _ALPHA.get(found["alpha"], str(found["alpha"]))),
        ("can store", found["writes"]),
        ("tested in", ", ".join(found["loads_in"]) or "none"),
    ]
    if found["programs"]:
        lines.append(("--for", ", ".join(found["programs"])))
    lines += [
        (f"prefix {prefix}", name or "the only component")
        for prefix, name in found["prefixes"].items()
    ]
    for role in ("up", "down", "alpha"):
        if role in found["suffixes"]:
            lines.append((f"suffix of {role}", ", ".join(found["suffixes"][role])))
    show.table(lines)


def _show_all(content: list[dict[str, Any]]) -> None:
    show.table(
        ((d["name"], d["title"], d["writes"], ", ".join(d["loads_in"])) for d in content),
        ("dialect", "description", "can store", "tested in"),
    )


@click.command(
    "dialects",
    params=[click.Argument(["name"], metavar="[NAME]", required=False), *json_options()],
    epilog="Example: loramerge dialects; loramerge dialects kohya",
)
def command(name: str | None, as_json: bool, json_file: str | None) -> None:
    """List the dialects, the formats in which programs store adapters; with NAME, describe one."""
    if name is not None:
        found = _in_detail(dialect(name))
        emit(found, as_json, json_file, lambda: _show_one(found))
        return
    content = [_described(one) for one in DIALECTS.values()]
    emit(content, as_json, json_file, lambda: _show_all(content))
