"""The command `inspect`: show the dialect, family, ranks, tags and problems of files."""

from __future__ import annotations

from typing import Any

from loramerge.adapter import Problem, Site
from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.errors import listed
from loramerge.verbs.inspect import VERB, Inspected, InspectResult

_TAGS = 12
_ALIKE = 2  # different sentences of one code that get rows of their own
_HEADER_ONLY = tuple(
    f"Only {read} read. --deep reads the weights and looks for NaN and untrained modules."
    for read in ("the header was", "the headers were")
)
_HASHES = {"autov2": "AutoV2", "autov3": "AutoV3", "tensors_sha256": "sha256 of tensors"}
_METADATA_SHOWN = (
    "ss_output_name", "ss_network_module", "ss_learning_rate", "ss_num_epochs", "ss_steps",
    "ss_num_train_images", "ss_resolution", "ss_optimizer", "ss_training_comment",
    "modelspec.title", "modelspec.author", "modelspec.description", "modelspec.license",
    "loramerge.version",
)  # fmt: skip


def render(result: InspectResult) -> None:
    """Show one file in full, several as a table unless the long form is asked for."""
    long = result.verbose or result.all_metadata or any(f.table is not None for f in result.files)
    if len(result.files) > 1 and not long:
        _table(result)
        return
    for index, file in enumerate(result.files):
        if index:
            show.line()
        _file(file, all_metadata=result.all_metadata, alone=len(result.files) == 1)
    headers = [f for f in result.files if f.what == "adapter" and f.checked == "header"]
    if headers:
        show.line(_HEADER_ONLY[len(headers) > 1])


def _table(result: InspectResult) -> None:
    """Show a row for each adapter and checkpoint; columns that are empty in all are left out."""
    from loramerge.verbs.inspect.table import COLUMNS, rows_of

    rows = rows_of(result)
    cells = {name: [text(row) for row in rows] for name, (text, _) in COLUMNS.items()}
    filled = {name: found for name, found in cells.items() if any(found)}
    show.table(zip(*filled.values(), strict=True), tuple(name.replace("-", " ") for name in filled))
    adapters = sum(row.first.what == "adapter" for row in rows)
    others = len(rows) - adapters
    sizes = [row.size for row in rows if row.size is not None]
    show.line(
        f"{show.count(adapters, 'adapter')}"
        + (f" and {show.count(others, 'other file')}" if others else "")
        + f", {show.size(sum(sizes))}. -v shows each in full."
    )
    deep = [f for f in result.files if f.what == "adapter" and f.checked == "weights"]
    if deep and not any(row.findings or row.first.error for row in rows):
        show.line("No problems found.")
    if "loads-in" in filled:
        show.line(
            "Loads in: programs that are tested to read such files; others may read them, too."
        )
    if any(f.what == "adapter" and f.checked == "header" for f in result.files):
        show.line(_HEADER_ONLY[1])


def _file(file: Inspected, *, all_metadata: bool, alone: bool) -> None:
    show.line(f"{show.place(file.path)} ({show.size(file.size)})", bold=True)
    if file.error:
        show.line(f"  cannot be read: {file.error}")
        return
    lines: list[tuple[str, str]] = [
        ("kind of file", f"{file.what}, {file.dialect or 'unknown dialect'}"),
        ("family", f"{file.family or 'unknown'} ({file.family_reason})"),
    ]
    if file.trained_on:
        lines.append(("trained on", file.trained_on))
    if file.merged:
        lines.append(("contains", file.merged))
    lines.append(("modules", _modules_of(file)))
    if file.what == "adapter" and file.modules:
        lines.append(("kind of modules", show.counted(file.kinds)))
        lines.append(("rank", show.ranks(file.ranks)))
        alphas = {f"{alpha:g}": n for alpha, n in file.alphas.items()}
        lines.append(("alpha", show.numbers(alphas) if alphas else "not stored, so alpha = rank"))
    lines.append(("type of numbers", show.counted(file.dtypes)))
    if file.embeddings:
        lines.append(("embeddings", listed(file.embeddings, 6)))
    if file.trigger_words:
        lines.append(("trigger words", ", ".join(file.trigger_words)))
    if file.tags:
        shown = [f"{tag} ×{n}" for tag, n in file.tags[:_TAGS]]
        more = len(file.tags) - _TAGS
        lines.append(("tags", ", ".join(shown) + (f", … {more} more" if more > 0 else "")))
    if file.usual_weight is not None:
        lines.append(("usual weight", f"{file.usual_weight:g}"))
    if file.loads_in:
        lines.append(("loads in", ", ".join(file.loads_in)))
    for program, what in file.loads_otherwise.items():
        lines.append((f"in {program}", what))
    lines += _metadata(file, all_metadata)
    if file.hashes:
        lines += [(_HASHES.get(name, name), digest) for name, digest in file.hashes.items()]
    if file.norm is not None:
        mean = "" if file.mean_norm is None else f", {file.mean_norm:.2g} per module on average"
        lines.append(("norm of ΔW", f"{file.norm:.4g} over all modules{mean}"))
    if file.usual_norm is not None:
        usual = file.usual_norm.words(lambda norm: f"{norm:.2g}", file.family or "")
        lines.append(("usual norm", f"per module, {usual}"))
    if file.base is not None:
        lines.append(("base", _base(file.base)))
        lines += _beside_base(file.base)
    if file.unknown_keys:
        lines.append(("unknown keys", _unknown(file)))
    show.table(lines)
    if file.verifiable and alone:
        show.line(
            f"The header says what it contains; `loramerge verify {show.place(file.path)}` checks it."
        )
    _findings(file.findings)
    if file.what == "adapter" and file.checked == "weights" and not file.findings:
        show.line("No problems found.")
    if file.measured and alone:
        _blocks(file.measured)
    if file.table is not None:
        _modules(file.table, file.measured or [])


def _modules_of(file: Inspected) -> str:
    parts = [f"{n} in {name}" for name, n in file.components.items()]
    if len(parts) == 1:
        return parts[0]
    return f"{file.modules}: {', '.join(parts)}" if parts else str(file.modules)


def _metadata(file: Inspected, everything: bool) -> list[tuple[str, str]]:
    if everything:
        return list(file.metadata.items())
    return [(key, file.metadata[key]) for key in _METADATA_SHOWN if file.metadata.get(key)]


def _base(base: dict[str, Any]) -> str:
    word = "works" if base["works"] else "does not work"
    text = f"{word} ({base['family']}): {base['reason']}"
    if base.get("change") is not None:
        text += f"; size of change: {show.percent(base['change'])} of the original weights' norm"
    return text


def _beside_base(base: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines about the sizes and directions of the change beside those of the weights."""
    lines = []
    if base.get("usual_change"):
        usual = base["usual_change"].words(show.percent, base["family"])
        lines.append(("usual size", usual))
    if len(base.get("components", ())) > 1:
        shares = (f"{show.percent(share)} in {name}" for name, share in base["components"].items())
        lines.append(("size by component", ", ".join(shares)))
    if base.get("strongest"):
        most = (f"{show.percent(share)} in {module}" for module, share in base["strongest"])
        lines.append(("largest changes", "\n".join(most)))
    if base.get("intruders") is not None:
        number, modules = sum(base["intruders"].values()), len(base["intruders"])
        share = show.percent(round(base["intruder_share"], 3))
        where = show.count(modules, "module")
        text = f"{share} of the leading ones are new to the base ({number}, in {where})"
        lines.append(
            ("directions", text if number else "none of the leading ones is new to the base")
        )
    return lines


def _unknown(file: Inspected) -> str:
    parts = [show.count(len(file.unknown_keys), "tensor")]
    for key in file.unknown_keys[:4]:
        near = file.nearest_keys.get(key)
        parts.append(f"{key} (nearest known: {near})" if near else key)
    more = len(file.unknown_keys) - 4
    return "; ".join(parts) + (f"; … {more} more" if more > 0 else "")


def _findings(findings: list[Problem]) -> None:
    """Show findings, one row per sort, with the modules they concern."""
    if not findings:
        return
    groups: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in findings:
        groups.setdefault((problem.severity, problem.code, problem.remedy), []).append(problem)
    split: list[list[Problem]] = []
    for those in groups.values():
        messages = list(dict.fromkeys(p.message for p in those))
        if len(messages) > _ALIKE:  # figures differ from module to module: the first is an example
            split.append(those)
        else:
            split += [[p for p in those if p.message == message] for message in messages]
    show.table(
        map(_finding, split),
        ("severity", "problem", "advice"),
        colours={"error": "red", "warning": "yellow"},
    )


def _finding(those: list[Problem]) -> tuple[str, str, str]:
    """Return the row of findings that differ in their modules and figures alone."""
    first = those[0]
    names = [p.module for p in those if p.module]
    text = f"[{first.code}] {first.message}"
    if len({p.message for p in those}) > 1:
        text += f": {names[0]}; and {len(those) - 1} more such modules: {listed(names[1:], 2)}"
    elif names:
        text += f": {listed(names, 3)}"
    return first.severity, text, first.remedy


def _blocks(measured: list[dict[str, Any]]) -> None:
    """Show the norm of every block."""
    from loramerge.algebra.compare import block_of, in_order  # numpy, which headers do not need

    sums: dict[str, float] = {}
    for row in measured:
        block = block_of(Site((row["module"],)))
        sums[block] = sums.get(block, 0.0) + (row["norm"] or 0.0) ** 2
    norms = {block: sums[block] ** 0.5 for block in in_order(sums)}
    if len(norms) > 1:
        rows = [(block, f"{norm:.4g}") for block, norm in norms.items()]
        from loramerge.cli.bars import BarColumn

        show.table(rows, ("block", "norm of ΔW"), drawn=BarColumn("", list(norms.values())))


def _modules(rows: list[dict[str, Any]], measured: list[dict[str, Any]]) -> None:
    spectra = any("largest" in row for row in rows)
    values = [row.get("singular_values", ()) for row in measured]
    columns = ["module", "kind", "shape", "rank", "alpha", "norm"]
    if spectra:
        columns += ["largest", "effective rank", "stable rank", "rank for 99 %"]
    from loramerge.cli.bars import SparklineColumn

    show.table(
        (
            [
                show.module(row["module"]),
                row["kind"],
                "×".join(map(str, row["shape"])),
                "" if row["rank"] is None else row["rank"],
                "" if row["alpha"] is None else f"{row['alpha']:g}",
                "" if row["norm"] is None else f"{row['norm']:.4g}",
                *(
                    [
                        f"{row['largest']:.3g}" if "largest" in row else "",
                        f"{row['effective_rank']:.1f}" if "largest" in row else "",
                        f"{row['stable_rank']:.1f}" if "largest" in row else "",
                        row.get("rank_99", ""),
                    ]
                    if spectra
                    else []
                ),
            ]
            for row in rows
        ),
        columns,
        drawn=SparklineColumn("spectrum", values),
    )


command = verb_command(VERB, render, "loramerge inspect --deep character.safetensors")
