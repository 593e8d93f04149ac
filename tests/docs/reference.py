# ruff: noqa: E501
"""Documents that follow from the code: the commands, and the tables of what is supported."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence

import click

from loramerge.adapter.formats.peft_fields import FIELDS
from loramerge.adapter.formats.peft_types import REFUSED
from loramerge.algebra.blocks import PRESETS, VECTORS
from loramerge.algebra.health.repairs import REPAIRS
from loramerge.algebra.health.strength import share
from loramerge.algebra.laws import LAWS
from loramerge.algebra.operators import OPERATORS
from loramerge.cli.commands import summaries
from loramerge.cli.main import group
from loramerge.dialects import DIALECTS, programs_of
from loramerge.dialects.programs import READERS, Program, readers_of
from loramerge.dialects.programs.spec import ANY
from loramerge.families import FAMILIES, Family
from loramerge.recipe.registry import known_verbs
from loramerge.recipe.shipped import shipped_recipes
from loramerge.steps.parameters import Verb, parameters_of
from tests.cli.examples import examples_of, walk
from tests.docs import support
from tests.health import measured

__all__ = ["commands", "table", "with_tables"]

_COMMON = ("as_json", "json_file", "quiet", "threads", "device")
_ALPHA = {
    "tensor": "a tensor beside the factors",
    "header": "the header's metadata, else folded into up",
    "config": "adapter_config.json",
    "none": "folded into up",
}
_HEAD = """# Commands

`loramerge COMMAND --help` says the same in the terminal. This page follows from the code; `LORAMERGE_UPDATE_DOCS=1 python -m
pytest tests/docs` rewrites it.

| command | description |
|---|---|
{index}

"""
_SHARED = """
## Options that commands share

| option | meaning |
|---|---|
{rows}

Exit codes: 0 done, 1 a difference was found (`diff --exit-code`, `run OUTPUT`), 2 bad option or value, 3 file, 4 format or family,
5 adapter content, 6 recipe. Then 7 numerics (NaN, an error above the one allowed, a failed proof), 8 out of memory, 130 interrupted, 70 a bug.

## Names and weights

An adapter is a path, or a bare name that is looked up in the folders of the library: `style`, `style.safetensors`, `sub/style`. The
[index](library.md) also knows the names that files had before they were moved.
A base is a path or a registered name. The whole name is tried before `.safetensors` is added, so `detail_v1.1` works.
`hf:ORG/REPO`, `hf:ORG/REPO/FILE` and `hf:ORG/REPO/FILE@REVISION` name a repository of Hugging Face or a file in it, which the
package huggingface_hub downloads into its cache; a repository with several files of weights needs the file's name. `FILE#NAME` is
one adapter of a file that holds several, told by names in its keys (`lora_A.NAME.weight`).

| written | meaning |
|---|---|
| `style:0.8` | the whole adapter at 0.8 |
| `style:unet=0.8:te=0` | a weight per component: `unet`, `te` (all text encoders), `te1`, `te2` |
| `style:0.8:te=0` | 0.8, but the text encoders at 0 |
| `"<lora:style:0.8>"` | pasted from a prompt |

`style:0.8:0.5` is refused: programs disagree on which of the two is the text encoder's. Where several files may stand, folders
(with all below them) and patterns (`loras/*.safetensors`, `**` for any depth) may too; a name with brackets that exists is a name.
"""


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _option(parameter: click.Option) -> str:
    kind = parameter.type
    flags = ", ".join(f"`{flag}`" for flag in (*parameter.opts, *parameter.secondary_opts))
    if parameter.is_flag:
        return flags
    if isinstance(kind, click.Choice):
        return f"{flags} " + ", ".join(f"`{choice}`" for choice in kind.choices)
    return f"{flags} {parameter.metavar or 'TEXT'}"


def _meaning(parameter: click.Option) -> str:
    text = parameter.help or ""
    kind = parameter.type
    extra = []
    if isinstance(kind, (click.IntRange, click.FloatRange)):
        extra.append(kind._describe_range())
    if parameter.show_default and not parameter.is_flag:
        extra.append(f"default {parameter.default}")
    if parameter.required:
        extra.append("required")
    return text + (f" ({', '.join(extra)})" if extra else "")


def _command(name: str, command: click.Command, level: str) -> str:
    # click keeps the help option of the first context, so it must be the program's
    settings = group.context_settings
    context = click.Context(command, info_name=f"loramerge {name}", **settings)
    lines = [f"{level} {name}", "", "```", f"loramerge {name} {' '.join(command.collect_usage_pieces(context))}",
             "```", "", inspect.cleandoc(command.help or ""), ""]  # fmt: skip
    options = [
        _row((_option(p), _meaning(p)))
        for p in command.params
        if isinstance(p, click.Option) and p.name not in _COMMON
    ]
    if options:
        lines += ["| option | meaning |", "|---|---|", *options, ""]
    shared = [
        p.opts[0] for p in command.params if isinstance(p, click.Option) and p.name in _COMMON
    ]
    if shared:
        lines += ["Also " + ", ".join(f"`{flag}`" for flag in shared) + ".", ""]
    lines += ["```console", *(f"$ {line}" for line in examples_of(command)), "```", ""]
    return "\n".join(lines)


def commands() -> str:
    """Return the text of docs/commands.md."""
    found = dict(walk())
    index = "\n".join(_row((f"[`{name}`](#{name})", text)) for name, text in summaries().items())
    parts = [_HEAD.format(index=index).rstrip() + "\n"]
    for name, command in found.items():
        if not name:
            continue
        if isinstance(command, click.Group):
            parts.append(f"## {name}\n\n{(command.help or '').strip()}\n")
        else:
            parts.append(_command(name, command, "###" if " " in name else "##"))
    common = [p for p in found["mix"].params if isinstance(p, click.Option) and p.name in _COMMON]
    parts.append(
        _SHARED.format(rows="\n".join(_row((_option(p), _meaning(p))) for p in common)).lstrip()
    )
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _step(verb: Verb) -> str:
    """Return the row of a verb: what it must be given stands first and bold."""
    said = [one for one in parameters_of(verb.parameters) if one.doc.recipe]
    said.sort(key=lambda one: not one.required)
    words = [f"**`{one.word}`**" if one.required else f"`{one.word}`" for one in said]
    title = inspect.cleandoc(verb.parameters.__doc__ or "").partition("\n\n")[0]
    article = "an" if verb.gives == "adapter" else "a"
    saved = ", always saved" if verb.gives in ("checkpoint", "picture") else ""
    return _row((f"`{verb.name}`", title, ", ".join(words), f"{article} {verb.gives}{saved}"))


def _peft_types() -> list[str]:
    """Return a row for each of PEFT's types: the kind that reads it, or why none does."""
    rows = [_row(("type", "kind", "needs of the base", "refused because")), "|---|---|---|---|"]
    read = support.kinds_by_type()
    for name in sorted(FIELDS.keys() | REFUSED.keys()):
        if name in REFUSED:
            rows.append(_row((f"`{name}`", "–", "–", REFUSED[name].reason)))
        else:
            by_need = read[name]
            named = {need: ", ".join(f"`{k}`" for k in sorted(by_need[need])) for need in by_need}
            one = len(by_need) == 1
            needs = "; ".join(
                need if one else f"{need} ({named[need]})" for need in sorted(named)[::-1]
            )
            rows.append(_row((f"`{name}`", ", ".join(sorted(named.values())), needs, "–")))
    return rows


def _kind(kind: str) -> str:
    return f"`{kind.removeprefix('peft-')}`" + (" of PEFT" if kind.startswith("peft-") else "")


def _layouts(family: Family) -> str:
    """Return the layouts of checkpoints that a family is baked into."""
    if not family.verified:
        return "–"
    return ", ".join(sorted({s.layout for found in family.spellings.values() for s in found}))


def _programs(program: Program) -> list[tuple[str, ...]]:
    """Return what tests have seen a program read, a row for each dialect and group of families."""
    return [
        (
            program.title,
            program.version,
            ", ".join(f"`{name}`" for name in reads.dialects),
            "every family, by the names of modules"
            if ANY in reads.families
            else ", ".join(f"`{name}`" for name in reads.families),
            ", ".join(form for form in reads.forms if form not in said) or "none",
            f"`{reads.but}`" if reads.but else "–",
            f"`{reads.refuses}`" if reads.refuses else "–",
            "; ".join(f"{form}: {said[form]}" for form in reads.forms if form in said) or "–",
        )
        for reads in program.reads
        for said in ({**program.otherwise, **reads.otherwise},)
    ]


def _dialects() -> list[str]:
    rows = [_row(("dialect", "description", "a key", "scale stored in", "can store", "tested, in some families, with", "`--for`")),
            "|---" * 7 + "|"]  # fmt: skip
    for d in DIALECTS.values():
        programs = [f"`{p}`" for p in programs_of(d.name)]
        rows.append(_row((f"`{d.name}`", d.title, f"`{d.example}`", _ALPHA[d.alpha], d.writable,
                          ", ".join(p.title for p in readers_of(d.name)) or "–", ", ".join(programs) or "–")))  # fmt: skip
    return rows


def _families() -> list[str]:
    rows = [_row(("family", "description", "components (modules)", "layouts", "verified against")),
            "|---" * 5 + "|"]  # fmt: skip
    for f in FAMILIES.values():
        layouts = sorted({s.layout for found in f.spellings.values() for s in found})
        components = ", ".join(f"{c.name} ({len(c.modules)})" for c in f.components)
        verified = f.verified or "nothing: read-only"
        rows.append(_row((f"`{f.name}`", f.title, components, ", ".join(layouts), verified)))
    return rows


def _all_programs() -> list[str]:
    rows = [_row(("program", "version", "dialects", "families", "kinds", "left out", "file refused for",
                  "computed differently")),
            "|---" * 8 + "|"]  # fmt: skip
    return rows + [_row(row) for program in READERS.known() for row in _programs(program)]


def _vectors() -> list[str]:
    rows = [_row(("values", "blocks they name")), "|---|---|"]
    return rows + [_row((str(n), ", ".join(names))) for n, names in VECTORS.items()]


def _presets() -> list[str]:
    rows = [_row(("preset", "vector")), "|---|---|"]
    return rows + [
        _row((f"`{name}`", f"`{','.join(map(str, values))}`")) for name, values in PRESETS.items()
    ]


def _steps() -> list[str]:
    rows = [_row(("step", "description", "takes", "gives")), "|---" * 4 + "|"]
    return rows + [_step(verb) for verb in known_verbs().values()]


def _shipped() -> list[str]:
    rows = [_row(("recipe", "purpose")), "|---|---|"]
    return rows + [
        _row((f"[`{r.name}`](../recipes/{r.name}.yaml)", r.title)) for r in shipped_recipes()
    ]


def _kinds() -> list[str]:
    rows = [_row(("kind", *(f"`{name}`" for name in DIALECTS), "compared with")),
            "|---" * (len(DIALECTS) + 2) + "|"]  # fmt: skip
    return rows + [
        _row((_kind(kind), *("yes" if said[d] else "–" for d in DIALECTS), support.proven()[kind]))
        for kind, said in support.kinds_by_dialect().items()
    ]


def _named() -> list[str]:
    rows = [_row(("family", *(f"`{name}`" for name in DIALECTS), "bake into")),
            "|---" * (len(DIALECTS) + 2) + "|"]  # fmt: skip
    return rows + [
        _row((f"`{name}`", *(said[d] or "–" for d in DIALECTS), _layouts(FAMILIES[name])))
        for name, said in support.families_by_dialect().items()
    ]


def _limits() -> list[str]:
    head = (
        "code",
        "figure",
        "reported",
        "closest of seven real adapters",
        "closest of sound merges",
        "why",
    )
    return [_row(head), "|---" * len(head) + "|", *map(_row, measured.table())]


def _repairs() -> list[str]:
    rows = (
        _row((f"`{name}`", repair.words, ", ".join(f"`{code}`" for code in repair.codes)))
        for name, repair in REPAIRS.items()
    )
    return [_row(("repair", "what it does", "mends")), "|---|---|---|", *rows]


def _usual() -> list[str]:
    measures = (
        ("usual_norm", "mean norm of ΔW per module", "{:g}".format),
        ("usual_change", "‖ΔW‖/‖W‖", share),
    )
    rows = []
    for name, words, shown in measures:
        for family in FAMILIES.values():
            if (usual := getattr(family, name)) is not None:
                low, high, adapters = usual
                ends = f"{shown(low)} to {shown(high)}"
                rows.append(_row((f"`{family.name}`", words, ends, f"{adapters} adapters")))
    return [_row(("family", "measure", "range", "measured")), "|---" * 4 + "|", *rows]


def _operators() -> list[str]:
    rows = [_row(("method", "description", "parameters", "space", "source")), "|---" * 5 + "|"]
    return rows + [
        _row((f"`{o.name}`", f"{o.title} {o.formula}", ", ".join(f"`{p.word}`" for p in o.own_parameters)
              or "–", f"`{o.space}`", o.source))
        for o in sorted(OPERATORS.shipped(), key=lambda one: (one.order, one.name))
    ]  # fmt: skip


def _laws() -> list[str]:
    rows = [_row(("law", "meaning")), "|---|---|"]
    return rows + [_row((f"`{name}`", meaning)) for name, meaning in LAWS.items()]


# the generated tables of the documents, by name
_TABLES: dict[str, Callable[[], Iterable[str]]] = {
    "limits": _limits,
    "usual": _usual,
    "repairs": _repairs,
    "operators": _operators,
    "laws": _laws,
    "kinds": _kinds,
    "peft-types": _peft_types,
    "named": _named,
    "steps": _steps,
    "shipped": _shipped,
    "dialects": _dialects,
    "families": _families,
    "vectors": _vectors,
    "presets": _presets,
    "programs": _all_programs,
}


def table(name: str) -> str:
    """Return a generated table of the documents."""
    return "\n".join(_TABLES[name]())


def with_tables(text: str) -> str:
    """Return a document with its tables, which stand between `<!-- name -->` and `<!-- end -->`, made anew."""
    for name in _TABLES:
        if f"<!-- {name} -->" not in text:
            continue
        pattern, made = rf"(<!-- {name} -->\n).*?(<!-- end -->)", table(name)
        text, count = re.subn(
            pattern, lambda m, t=made: f"{m[1]}{t}\n{m[2]}", text, flags=re.DOTALL
        )
        assert count == 1, f"one place for the table of {name}"
    return text
