"""The report of `inspect`: the facts, spectra and problems of each file."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from loramerge.errors import listed, sized
from loramerge.report.blocks import heat_maps, norm_bars, of_rows, spectra
from loramerge.report.document import Notes, Part, Report, Section, Table, facts, number

__all__ = ["findings", "report", "shape_figures"]

_FILES = 20  # up to which all is shown about each; of more, a table and their problems
_MANY = 30  # rows of a table that is folded if it has more


def report(result: Any) -> Report:
    """Return the report of an `InspectResult`, or of an `Inspected`."""
    files = getattr(result, "files", [result])
    if len(files) == 1:
        (file,) = files
        return Report(_name(file), _lead(file), _sections(file))
    sections = [part for file in files for part in _sections(file, f"{_name(file)}: ")]
    if len(files) > _FILES:
        sections = [Section(f"{_name(one)}: Problems", [_problems(one)]) for one in files]
    return Report(f"{len(files)} files", "", [Section("Files", [_table(files)]), *sections])


def _name(file: Any) -> str:
    return PurePath(file.path).name or str(file.path)


def _lead(file: Any) -> str:
    if file.error:
        return f"This file cannot be read: {file.error}."
    problems = [p for p in file.findings if p.severity in ("error", "warning")]
    found = f"{len(problems)} {'problem' if len(problems) == 1 else 'problems'}" if problems else (
        "no problems found" if file.checked == "weights" else "the weights were not read"
    )  # fmt: skip
    family = f" for {file.family}" if file.family else ""
    return f"{file.what.capitalize()}{family}, {file.modules} modules: {found}."


def _table(files: Any) -> Table:
    rows = [
        (_name(f), f.family or "–", _counts(f.ranks), sized(f.size) if f.size else "–",
         str(len(f.findings)))
        for f in files
    ]  # fmt: skip
    return Table("Files", ("file", "family", "rank", "size", "findings"), rows)


def _sections(file: Any, before: str = "") -> list[Section]:
    if file.error:
        return [Section(f"{before}Problem", [_problems(file)])]
    known = of_rows(getattr(file, "measured", None) or ())
    pictures = shape_figures({"": known}) if known else []
    entries = sorted(file.metadata.items())
    tags = [(tag, str(n)) for tag, n in file.tags]
    return [
        Section(f"{before}File", [_facts(file)]),
        Section(f"{before}Problems", [_problems(file)]),
        Section(f"{before}Weights", pictures),
        Section(f"{before}Tags", [_listing("Tags of the captions", ("tag", "images"), tags)]),
        Section(
            f"{before}Metadata", [_listing("Entries of the header", ("entry", "value"), entries)]
        ),
    ]


def _problems(file: Any) -> Notes:
    return Notes((("error", file.error),)) if file.error else findings(file.findings)


def _listing(caption: str, columns: tuple[str, str], rows: list[tuple[str, str]]) -> Table:
    if len(rows) > _MANY:
        return Table(f"{caption} ({len(rows)})", columns, rows, folded=True)
    return Table(caption, columns, rows)


def shape_figures(several: Any, *, bars: bool = True) -> list[Part]:
    """Return the figures that show the weights of adapters: name → their norms and spectra.

    Args:
        bars: whether the norms of blocks are among them.
    """
    first = next(iter(several.values()))
    norms = {module: norm for module, (norm, _) in first.items()}
    return [
        *([norm_bars(several)] if bars else []),
        *heat_maps(norms, "Size of the change by block and layer", "Norm of the change, ‖ΔW‖."),
        spectra(several),
    ]


def _facts(file: Any) -> Any:
    base = file.base or {}
    return facts(
        {
            "path": _name(file),
            "size": None if file.size is None else sized(file.size),
            "kind of file": f"{file.what}, {file.dialect or 'unknown dialect'}",
            "family": f"{file.family or 'unknown'} ({file.family_reason})",
            "trained on": file.trained_on,
            "merged by": file.merged,
            "modules": ", ".join(f"{n} in {name}" for name, n in file.components.items())
            or str(file.modules),
            "kind of modules": _counts(file.kinds),
            "rank": _counts(file.ranks),
            "alpha": _counts({f"{alpha:g}": n for alpha, n in file.alphas.items()}),
            "type of numbers": _counts(file.dtypes),
            "norm of ΔW": None if file.norm is None else number(file.norm, 4),
            "usual norm": _usual_norm(file),
            "embeddings": ", ".join(file.embeddings),
            "trigger words": ", ".join(file.trigger_words),
            "loads in": ", ".join(file.loads_in),
            **{f"in {program}": words for program, words in file.loads_otherwise.items()},
            "base": base.get("reason"),
            **(file.hashes or {}),
        }
    )


def _usual_norm(file: Any) -> str | None:
    """Return the mean norm of a module beside that of the family's other adapters, where it is known."""
    if file.usual_norm is None or file.mean_norm is None:
        return None
    usual = file.usual_norm.words(lambda norm: f"{norm:.2g}", file.family or "")
    return f"per module, {usual}; here {file.mean_norm:.2g}"


def _counts(counts: Any) -> str:
    """Return `4 in 96 modules, 8 in 2`; a single entry without its count."""
    if len(counts) == 1:
        return str(next(iter(counts)))
    return ", ".join(f"{name} ×{n}" for name, n in counts.items())


def findings(problems: Any) -> Notes:
    """Return problems as sentences, each once, with the modules they concern."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for one in problems:
        groups.setdefault((one.severity, one.message, one.remedy), []).append(one.module or "")
    lines = []
    for (severity, message, remedy), modules in groups.items():
        named = [module for module in modules if module]
        where = f" ({listed(named, 4)})" if named else ""
        lines.append((severity, f"{message}{where}. {remedy[:1].upper()}{remedy[1:]}".strip()))
    return Notes(tuple(lines))
