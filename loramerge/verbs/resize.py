"""resize: re-rank adapters by SVD, one or a folder full."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Annotated, Any

from loramerge.adapter import Adapter
from loramerge.adapter.save import choose_dialect, encode, suffix_of, write_encoded
from loramerge.algebra.arrays import check_device
from loramerge.algebra.combine import Combined
from loramerge.algebra.resize import resize as resize_adapter
from loramerge.dialects import Dialect
from loramerge.errors import LoramergeError, OutputExists, UsageError
from loramerge.events import Note, Warn
from loramerge.files.dtypes import DTYPES
from loramerge.library.lookup import bare, expand
from loramerge.verbs.batch import check_table, without_outputs, write_table
from loramerge.verbs.inputs import open_adapter
from loramerge.verbs.mix import lossy_json
from loramerge.verbs.outputs import (
    adapter_output,
    default_name,
    encoded_size,
    size_model,
    version_entry,
)
from loramerge.verbs.parameters import Context, Doc
from loramerge.verbs.writing import RankParameters, WriteParameters

__all__ = ["Resize", "ResizeResult", "Resized", "resize"]

_COLUMNS = (
    "file", "output", "status", "size_before", "size_after", "norm_kept", "relative_error",
    "worst_module", "worst_error", "reason",
)  # fmt: skip


_LITTLE = 0.5  # share of the norm below which a resize is worth a warning


@dataclass(frozen=True, kw_only=True)
class Resize(RankParameters, WriteParameters):
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


@dataclass
class Resized:
    """What became of one file. `status` is `done`, `kept` (already there), `skipped` or `failed`."""

    path: str
    status: str
    output: str | None = None
    size_before: int | None = None
    size_after: int | None = None
    dialect: str | None = None
    dtype: str | None = None
    ranks_before: dict[int, int] = field(default_factory=dict)
    ranks_after: dict[int, int] = field(default_factory=dict)
    relative_error: float | None = None
    norm_kept: float | None = None
    worst: tuple[str, float] | None = None
    left_out: list[str] = field(default_factory=list)
    reason: str | None = None
    exit_code: int = 0

    def row(self) -> list[Any]:
        """Return the row of this file in the table of results."""
        worst = self.worst or (None, None)
        figures = [self.size_before, self.size_after, self.norm_kept, self.relative_error]
        return [self.path, self.output, self.status, *figures, *worst, self.reason]

    def json(self) -> dict[str, Any]:
        """Return the object of this file in `--json`."""
        figures = lossy_json(
            bool(self.relative_error),
            self.relative_error or 0.0,
            1.0 if self.norm_kept is None else self.norm_kept,
            self.worst,
        )
        return {
            "path": self.path,
            "status": self.status,
            "output": self.output,
            "size_before": self.size_before,
            "size_after": self.size_after,
            "dialect": self.dialect,
            "dtype": self.dtype,
            "ranks_before": self.ranks_before,
            "ranks_after": self.ranks_after,
            **(dict.fromkeys(figures) if self.relative_error is None else figures),
            "left_out": self.left_out,
            "reason": self.reason,
        }


@dataclass
class ResizeResult:
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


def resize(parameters: Resize, context: Context = Context()) -> ResizeResult:
    """Run the verb. With a single file errors are raised; with several they are reported.

    Raises:
        UsageError: for options that cannot go together.
        LoramergeError: for a single file, see `algebra.resize.resize` and `adapter.save.encode`.
    """
    check_device(context.device)
    parameters.target(), parameters.float_type()
    if parameters.results:
        check_table(Path(parameters.results))
    if not parameters.rule(1).truncates:
        raise UsageError(
            "resize needs to know what to keep",
            hint="give --rank 8, or --energy, --ratio, --cumulative, --max-size, --max-error",
        )
    files = without_outputs(expand(parameters.files), parameters.out_dir)
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
        else _one(path, relative, parameters, context, taken)
        for path, relative in files
    ]
    result = ResizeResult(done)
    if parameters.results:
        write_table(Path(parameters.results), _COLUMNS, [file.row() for file in result.files])
    return result


def _tolerant(
    path: Path,
    relative: PurePath,
    parameters: Resize,
    context: Context,
    taken: dict[str, Path],
) -> Resized:
    """Resize one of several files; an error becomes a line of the report."""
    try:
        return _one(path, relative, parameters, context, taken)
    except LoramergeError as error:
        context.notify(Warn(f"{path}: {error.problem}"))
        return Resized(str(path), "failed", reason=f"{error.problem}", exit_code=error.exit_code)


def _output(path: Path, relative: PurePath, parameters: Resize, target: Dialect) -> Path:
    if parameters.out_dir is not None:
        stem = str(relative) if path.is_dir() else bare(str(relative))
        return Path(parameters.out_dir) / f"{stem}{suffix_of(target)}"
    if parameters.output is not None:
        return Path(parameters.output)
    stem = bare(path.name) if path.is_file() else path.name
    return default_name(f"{stem}-{parameters.rank_label()}", suffix_of(target))


def _is_there(path: Path, output: Path, parameters: Resize, taken: dict[str, Path]) -> bool:
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
    parameters: Resize,
    context: Context,
    taken: dict[str, Path],
) -> Resized:
    """Resize one file. `taken` maps the outputs of this run to the files they are made from."""
    adapter = open_adapter(path, context.notify)
    target = choose_dialect(parameters.target(), [adapter])
    output = _output(path, relative, parameters, target)
    batch = parameters.out_dir is not None
    before = adapter.info.size or 0
    if batch and _is_there(path, output, parameters, taken):
        return Resized(str(path), "kept", str(output), before, reason="the output is there already")
    adapter_output(output, target, force=parameters.force)
    dtype = parameters.float_type()
    try:
        small, combined = _resized(adapter, parameters, dtype, context)
    except LoramergeError as error:
        error.file = error.file or str(path)
        raise
    encoded = encode(small, target, dtype)
    encoded.metadata |= version_entry()
    found = Resized(
        str(path),
        "done",
        str(output),
        before,
        None,
        target.name,
        DTYPES[dtype or small.dtype].word,
        adapter.ranks(),
        small.ranks(),
        combined.relative_error if combined.lossy else 0.0,
        combined.norm_kept if combined.lossy else 1.0,
        combined.worst,
        combined.left_out,
    )
    if batch and encoded_size(encoded) >= before:
        found.status, found.output = "skipped", None
        found.reason = "the result would not be smaller"
        return found
    found.size_after = write_encoded(encoded, output, force=parameters.force)
    if not combined.lossy:
        context.notify(Note(f"{path.name}: nothing was cut; its ranks are not above what is kept"))
    elif combined.norm_kept < _LITTLE:
        gone = f" and {len(combined.left_out)} modules are gone" if combined.left_out else ""
        context.notify(
            Warn(
                f"{path.name}: only {combined.norm_kept:.0%} of the norm is kept{gone}; keep more, "
                "or write fewer bytes for each direction with --dtype float16 or --to kohya"
            )
        )
    return found


def _resized(
    adapter: Adapter, parameters: Resize, dtype: str | None, context: Context
) -> tuple[Adapter, Combined]:
    rule = parameters.rule(adapter.info.size or 0)
    sizes = None
    if rule.max_size is not None:
        target = choose_dialect(parameters.target(), [adapter])
        frame = adapter.with_deltas({})
        frame.info.metadata = frame.info.metadata | version_entry()
        sizes = size_model(frame, adapter.deltas, target, dtype or adapter.dtype)
    return resize_adapter(
        adapter,
        rule,
        sizes=sizes,
        device=check_device(context.device),
        precise=dtype == "F64",
        threads=context.threads,
        notify=context.notify,
    )
