"""The command `inspect`: show the dialect, family, ranks, tags and problems of files."""

from __future__ import annotations

from typing import Any

from loramerge.adapter import Problem, Site
from loramerge.cli import show
from loramerge.cli.bars import BarColumn, SparklineColumn
from loramerge.cli.command import verb_command
from loramerge.errors import listed
from loramerge.verbs.inspect import VERB, Inspected, InspectResult

_TAGS = 12
_HEADER_ONLY = tuple(
    f"Only {read} read. --deep reads the weights and looks for NaN and untrained modules."
    for read in ("the header was", "the headers were")
)
_METADATA_SHOWN = (
    "ss_output_name", "ss_network_module", "ss_learning_rate", "ss_num_epochs", "ss_steps",
    "ss_num_train_images", "ss_resolution", "ss_optimizer", "ss_training_comment",
    "modelspec.title", "modelspec.author", "modelspec.description", "modelspec.license",
    "loramerge.version",
)  # fmt: skip


def render(result: InspectResult) -> None:
    """Show every file."""
    for index, file in enumerate(result.files):
        if index:
            show.line()
        _file(file, all_metadata=result.all_metadata, alone=len(result.files) == 1)
    headers = [f for f in result.files if f.what == "adapter" and f.checked == "header"]
    if headers:
        show.line(_HEADER_ONLY[len(headers) > 1])


def _file(file: Inspected, *, all_metadata: bool, alone: bool) -> None:
    show.line(f"{file.path} ({show.size(file.size)})", bold=True)
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
        lines.append(("merged by", file.merged))
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
    if file.loads_in:
        lines.append(("loads in", ", ".join(file.loads_in)))
    for program, what in file.loads_otherwise.items():
        lines.append((f"in {program}", what))
    lines += _metadata(file, all_metadata)
    if file.hashes:
        lines += list(file.hashes.items())
    if file.norm is not None:
        lines.append(("norm of ΔW", f"{file.norm:.4g} over all modules"))
    if file.base is not None:
        lines.append(("base", _base(file.base)))
    if file.unknown_keys:
        lines.append(("unknown keys", _unknown(file)))
    show.table(lines)
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
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for problem in findings:
        key = (problem.severity, problem.code, problem.message, problem.remedy)
        groups.setdefault(key, []).append(problem.module or "")
    show.table(
        (
            (severity, f"{message}: {listed([m for m in modules if m], 3)}"
             if any(modules) else message, remedy)
            for (severity, _, message, remedy), modules in groups.items()
        ),
        ("severity", "problem", "advice"),
        colours={"error": "red", "warning": "yellow"},
    )  # fmt: skip


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
        show.table(rows, ("block", "norm of ΔW"), drawn=BarColumn("", list(norms.values())))


def _modules(rows: list[dict[str, Any]], measured: list[dict[str, Any]]) -> None:
    spectra = any("largest" in row for row in rows)
    values = [row.get("singular_values", ()) for row in measured]
    columns = ["module", "kind", "shape", "rank", "alpha", "norm"]
    if spectra:
        columns += ["largest", "effective rank", "rank for 99 %"]
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
