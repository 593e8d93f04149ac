"""resize: re-rank adapters by SVD, one or a folder full."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePath
from typing import Annotated, Any

from loramerge.adapter import Adapter
from loramerge.adapter.save import choose_dialect, suffix_of, write_encoded
from loramerge.adapter.sites import for_dialect, without_values
from loramerge.algebra.arrays import check_device
from loramerge.algebra.resize import resize as resize_adapter
from loramerge.dialects import Dialect
from loramerge.errors import LoramergeError, OutputExists, UsageError
from loramerge.events import Note, Warn
from loramerge.files.dtypes import DTYPES
from loramerge.library.lookup import bare, expand
from loramerge.library.references import Reference
from loramerge.verbs.adapters import (
    AdapterResult,
    Target,
    budget,
    encoded_for,
    target_of,
    whole_size,
    written,
)
from loramerge.verbs.batch import check_table, without_outputs, write_table
from loramerge.verbs.inputs import adapter_of, weighted
from loramerge.verbs.outputs import adapter_output, encoded_size
from loramerge.verbs.parameters import Context, Doc, Verb
from loramerge.verbs.prediction import Prediction, predict_adapter
from loramerge.verbs.provenance import input_of, step_of
from loramerge.verbs.writing import RankParameters, WriteParameters

__all__ = [
    "VERB",
    "FilesResult",
    "Resize",
    "ResizeFiles",
    "ResizeResult",
    "Resized",
    "resize",
    "resize_files",
    "resized",
]

_COLUMNS = (
    "file", "output", "status", "size_before", "size_after", "norm_kept", "relative_error",
    "worst_module", "worst_error", "reason",
)  # fmt: skip
_LITTLE = 0.5  # share of the norm below which a resize is worth a warning


@dataclass(frozen=True, kw_only=True)
class _How(RankParameters, WriteParameters):
    """What a resize of one adapter and of many files have in common."""

    def check(self) -> None:
        """Refuse parameters that cannot be meant, before anything is opened.

        Raises:
            UsageError: naming what is wrong.
        """
        self.target(), self.float_type()
        if not self.rule(1).truncates:
            raise UsageError(
                "resize needs to know what to keep",
                hint="give rank (--rank 8), or energy, ratio, cumulative, max_size, max_error",
            )


@dataclass(frozen=True, kw_only=True)
class Resize(_How):
    """Re-rank an adapter by SVD.

    Every module gets the best approximation of its new rank, and the report says what that lost.
    """

    adapter: Annotated[Reference, Doc("Adapter to re-rank.", ("ADAPTER",), completes="adapters")]


@dataclass(frozen=True, kw_only=True)
class ResizeFiles(_How):
    """Re-rank adapters by SVD.

    Every module gets the best approximation of its new rank, and the report says what that lost.
    With several files, a file that fails or would not get smaller is reported and the rest goes on;
    running again does only what is missing.
    """

    files: Annotated[
        tuple[str, ...],
        Doc(
            "Adapter files, folders (recursively), patterns or names.", ("FILE",), None, "adapters"
        ),
    ]
    out_dir: Annotated[
        str | None,
        Doc(
            "Folder for the results of several files; names and sub-folders are kept.",
            metavar="DIR",
        ),
    ] = None
    results: Annotated[
        str | None, Doc("Also write the table of results as CSV.", metavar="FILE.csv")
    ] = None

    def of(self, path: Path) -> Resize:
        """Return the parameters that resize one of the files."""
        shared = {f.name: getattr(self, f.name) for f in fields(_How)}
        return Resize(adapter=Reference(str(path)), **shared)


@dataclass(kw_only=True)
class ResizeResult(AdapterResult):
    """What was re-ranked, and what that lost."""

    path: str
    size_before: int | None
    ranks_before: dict[int, int]

    def json(self) -> dict[str, Any]:
        return {"path": self.path} | super().json() | {
            "size_before": self.size_before,
            "size_after": self.size,
            "ranks_before": self.ranks_before,
            "ranks_after": self.ranks,
        }  # fmt: skip


def resize(parameters: Resize, context: Context = Context()) -> ResizeResult:
    """Re-rank and write.

    Raises:
        LoramergeError: see `algebra.resize.resize` and `adapter.save.encode`.
    """
    parameters.check()
    adapter = adapter_of(parameters.adapter, context)
    stem = f"{parameters.adapter.label}-{parameters.rank_label()}"
    target = target_of(parameters, [adapter], stem)
    return written(_resized(adapter, parameters, context), target, context)


def resized(parameters: Resize, context: Context = Context()) -> ResizeResult:
    """Re-rank without writing.

    Raises:
        LoramergeError: see `algebra.resize.resize`.
    """
    parameters.check()
    return _resized(adapter_of(parameters.adapter, context), parameters, context)


def _resized(adapter: Adapter, parameters: Resize, context: Context) -> ResizeResult:
    rule = parameters.rule(whole_size([adapter], parameters) if parameters.max_size else 0)
    if rule.max_size is not None:
        parameters = replace(parameters, max_size=str(rule.max_size))
    made = step_of("resize", parameters, {("adapters", parameters.adapter.name): input_of(adapter)})
    source = weighted(adapter, parameters.adapter.weight)
    sizes = None
    target = choose_dialect(parameters.target(), [adapter])
    if rule.max_size is not None:
        source = for_dialect(source, target)
        frame = source.with_deltas({}, dtype=adapter.dtype)
        sizes = budget([adapter], frame, source.deltas, parameters, made, context)
    try:
        small, combined = resize_adapter(
            source,
            rule,
            sizes=sizes,
            target=target,
            device=check_device(context.device),
            precise=parameters.float_type() == "F64",
            threads=context.threads,
            notify=context.notify,
        )
    except LoramergeError as error:
        error.file = error.file or adapter.info.path
        raise
    if made is not None:
        small.made_by(made)
    if not combined.lossy:
        name = parameters.adapter.label
        context.notify(Note(f"{name}: nothing was cut; its ranks are not above what is kept"))
    elif combined.norm_kept < _LITTLE:
        gone = f" and {len(combined.left_out)} modules are gone" if combined.left_out else ""
        context.notify(
            Warn(
                f"{parameters.adapter.label}: only {combined.norm_kept:.0%} of the norm is kept"
                f"{gone}; keep more, or write fewer bytes for each direction with --dtype float16 "
                "or --to kohya"
            )
        )
    return ResizeResult(
        **AdapterResult.figures(small, combined),
        path=adapter.label,
        size_before=adapter.info.size,
        ranks_before=adapter.ranks(),
    )


def predict(parameters: Resize, context: Context = Context()) -> Prediction:
    """Foretell the result from headers."""
    adapter = adapter_of(parameters.adapter, context)
    made = step_of("resize", parameters, {("adapters", parameters.adapter.name): input_of(adapter)})
    target = choose_dialect(parameters.target(), [adapter])
    source = weighted(without_values(adapter, target), parameters.adapter.weight)
    source = for_dialect(source, target)
    terms = {site: [delta] for site, delta in source.deltas.items()}
    rule = parameters.rule(whole_size([adapter], parameters))
    frame = source.with_deltas({}, dtype=adapter.dtype)
    return predict_adapter([adapter], frame, terms, rule, parameters, made, context)


VERB = Verb("resize", Resize, "adapter", resize, predict, resized)


@dataclass
class Resized:
    """What became of one of several files.

    Args:
        status: `done`, `kept` (already there), `skipped` (would not get smaller) or `failed`.
        result: of what was computed.
    """

    path: str
    status: str
    output: str | None = None
    result: ResizeResult | None = None
    size_before: int | None = None
    reason: str | None = None
    exit_code: int = 0

    def row(self) -> list[Any]:
        """Return the file's line in the CSV table."""
        r = self.result
        worst = r.worst if r and r.worst else (None, None)
        return [
            self.path, self.output, self.status, self.size_before, r.size if r else None,
            r.norm_kept if r else None, r.relative_error if r else None, *worst, self.reason,
        ]  # fmt: skip

    def json(self) -> dict[str, Any]:
        """Return this file's object in `--json`; keys are always present, null if not computed."""
        figures = {} if self.result is None else self.result.json()
        return {
            "path": self.path,
            "status": self.status,
            "output": self.output,
            "size_before": self.size_before,
            **{name: figures.get(name) for name in _FIGURES},
            "reason": self.reason,
        }


_FIGURES = (
    "size_after", "dialect", "dtype", "ranks_before", "ranks_after", "relative_error", "norm_kept",
    "scale_applied", "worst", "left_out",
)  # fmt: skip


@dataclass
class FilesResult:
    """The outcome of every file."""

    files: list[Resized]

    @property
    def exit_code(self) -> int:
        """The code of the first failure, 0 if none."""
        return next((f.exit_code for f in self.files if f.exit_code), 0)

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints; one file's figures also stand at the top."""
        outputs = [f.output for f in self.files if f.output and f.status in ("done", "kept")]
        first = self.files[0].json() if len(self.files) == 1 else {}
        shown = ("relative_error", "norm_kept", "scale_applied", "worst")
        figures = {name: first[name] for name in shown if name in first}
        return {"outputs": outputs, **figures, "files": [f.json() for f in self.files]}


def resize_files(parameters: ResizeFiles, context: Context = Context()) -> FilesResult:
    """Resize files. With a single one errors are raised; with several they are reported.

    Raises:
        UsageError: for options that cannot go together.
        LoramergeError: for a single file, see `resize`.
    """
    check_device(context.device)
    parameters.check()
    if parameters.results:
        check_table(Path(parameters.results))
    files = without_outputs(expand(parameters.files, context.root), parameters.out_dir)
    several = len(files) > 1 or parameters.out_dir is not None
    if several and parameters.output is not None:
        raise UsageError(
            "--output names one file, and there are several"
            if len(files) > 1
            else "give --output or --out-dir, not both",
            hint="--out-dir DIR keeps the names",
        )
    if len(files) > 1 and parameters.out_dir is None:
        raise UsageError(
            f"{len(files)} files need a folder for their results", hint="--out-dir DIR"
        )
    taken: dict[str, Path] = {}
    done = [
        _tolerant(path, relative, parameters, context, taken)
        if several
        else _alone(path, parameters, context)
        for path, relative in files
    ]
    result = FilesResult(done)
    if parameters.results:
        write_table(Path(parameters.results), _COLUMNS, [file.row() for file in result.files])
    return result


def _alone(path: Path, parameters: ResizeFiles, context: Context) -> Resized:
    """Resize the only file."""
    found = resize(parameters.of(path), context)
    return Resized(str(path), "done", found.output, found, found.size_before)


def _tolerant(
    path: Path,
    relative: PurePath,
    parameters: ResizeFiles,
    context: Context,
    taken: dict[str, Path],
) -> Resized:
    """Resize one of several files; an error becomes a line of the report."""
    try:
        return _one(path, relative, parameters, context, taken)
    except LoramergeError as error:
        context.notify(Warn(f"{path}: {error.problem}"))
        return Resized(str(path), "failed", reason=f"{error.problem}", exit_code=error.exit_code)


def _output(path: Path, relative: PurePath, out_dir: str, target: Dialect) -> Path:
    stem = str(relative) if path.is_dir() else bare(str(relative))
    return Path(out_dir) / f"{stem}{suffix_of(target)}"


def _is_there(path: Path, output: Path, parameters: ResizeFiles, taken: dict[str, Path]) -> bool:
    """Say whether the result of one of several files exists, and need not be made again.

    Raises:
        UsageError: if another file of this run has the same output.
        OutputExists: if the output is the file itself.
    """
    other = taken.setdefault(os.path.realpath(output), path)
    if other != path:
        raise UsageError(f"its result would lie where that of {other} does: {output}")
    if parameters.force or not output.exists():
        return False
    if output.samefile(path):
        raise OutputExists("its result would lie where the file itself does; --force replaces it")
    return True


def _one(
    path: Path,
    relative: PurePath,
    parameters: ResizeFiles,
    context: Context,
    taken: dict[str, Path],
) -> Resized:
    """Resize one of several files; `taken` maps the outputs of this run to their files."""
    one = parameters.of(path)
    adapter = adapter_of(one.adapter, context)
    dialect = choose_dialect(one.target(), [adapter])
    assert parameters.out_dir is not None
    output = _output(path, relative, parameters.out_dir, dialect)
    before = adapter.info.size or 0
    if _is_there(path, output, parameters, taken):
        why = "the output is there already"
        return Resized(str(path), "kept", str(output), None, before, why)
    adapter_output(output, dialect, force=parameters.force)
    target = Target(output, dialect, one.float_type(), parameters.force)
    computed = _resized(adapter, one, context)
    assert computed.adapter is not None
    encoded = encoded_for(computed.adapter, target, context)
    computed.dialect = dialect.name
    computed.dtype = DTYPES[target.dtype or computed.adapter.dtype].word
    if encoded_size(encoded) >= before:
        return Resized(
            str(path), "skipped", None, computed, before, "the result would not be smaller"
        )
    computed.size = write_encoded(encoded, output, force=target.force)
    computed.output = str(output)
    return Resized(str(path), "done", str(output), computed, before)
