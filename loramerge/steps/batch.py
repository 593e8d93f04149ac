"""Verbs on several files: which files, and one after the other.

A verb that turns one adapter into another, or into several, describes its work in a `FileWork`;
`in_batch` does it for every given file. With a single file errors are raised; with several they
become lines of a report.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePath
from typing import Annotated, Any, Generic, Protocol, TypeVar

from loramerge.adapter.encode import suffix_of
from loramerge.algebra.arrays import check_device
from loramerge.dialects import Dialect
from loramerge.errors import LoramergeError, OutputExists, Setting, UsageError
from loramerge.events import Warn
from loramerge.files.copying import copy_whole
from loramerge.files.tables import check_table, write_table
from loramerge.library.paths import bare
from loramerge.library.patterns import expand
from loramerge.steps.adapters import write_result
from loramerge.steps.batch_result import COLUMNS, FileOutcome, FilesResult, Result
from loramerge.steps.in_folders import adapters_among, without_outputs
from loramerge.steps.outputs import Output, output_of
from loramerge.steps.parameters import Context, Doc
from loramerge.steps.references import Reference
from loramerge.steps.source import Source, open_source
from loramerge.steps.writing import WriteParameters

__all__ = [
    "CopyingParameters",
    "FileParameters",
    "FileWork",
    "OneFile",
    "for_one_file",
    "in_batch",
    "one_by_one",
]


@dataclass(frozen=True, kw_only=True)
class FileParameters(WriteParameters):
    """The files, and the place of their results."""

    files: Annotated[
        tuple[str, ...],
        Doc(
            "Adapter files, folders, patterns or names. All adapters in a folder and below are taken.",
            ("FILE",),
            None,
            "adapters",
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

    def check(self) -> None:
        """Refuse parameters that contradict each other; verbs check more."""

    def each_of(self, path: Path) -> Sequence[tuple[str, Any]]:
        """Return the verb's parameters for each result of one of the files.

        Each comes with what is added to the name of the file; nothing where there is one result.
        """
        raise NotImplementedError

    def repeating_steps(self, result: FilesResult[Any]) -> list[tuple[Any, Any]]:
        """Return the steps of a recipe that does the same to the same files."""
        return [(file.parameters, file.result) for file in result.files if file.status == "done"]


@dataclass(frozen=True, kw_only=True)
class CopyingParameters(FileParameters):
    """The files, for a verb that skips those whose result is not wanted."""

    copy_rest: Annotated[
        bool,
        Doc("With --out-dir: copy the files that are skipped, byte for byte."),
    ] = False

    def check(self) -> None:
        if self.copy_rest and self.out_dir is None:
            raise UsageError("copies need a folder", hint=("give ", Setting("out_dir", "FOLDER")))


class OneFile(Protocol):
    """The parameters for one of the files."""

    @property
    def adapter(self) -> Reference:
        """The file."""

    @property
    def base(self) -> str | None:
        """The base that the adapter may need."""


One = TypeVar("One", bound=OneFile)


def for_one_file(several: Any, settings: type[Any], kind: Callable[..., One], path: Path) -> One:
    """Return a verb's parameters for one of several files.

    Args:
        several: the parameters for all of them.
        settings: the dataclass of the parameters that both have.
        kind: class of the parameters for one.
    """
    shared = {one.name: getattr(several, one.name) for one in fields(settings)}
    return kind(adapter=Reference(str(path)), **shared)


@dataclass(frozen=True)
class FileWork(Generic[One, Result]):
    """The functions that process one file.

    Args:
        run: does everything to a single file, default names and writing included: a result for each of
            the parameters, which name the same file.
        compute: returns the results without writing them.
        figures: names of the figures of `result.json()` that `--json` shows for a file.
        check: checks the written file before it gets its name, and notes the figures in the result;
            see `adapters.write_result`.
        unwanted: function of a result, its bytes and those of its input; returns why it is not
            written, None if it is. `run` does not ask it.
        copy_rest: copy the file, byte for byte, where its result is not wanted.
    """

    run: Callable[[Sequence[One], Context], list[Result]]
    compute: Callable[[Source, Sequence[tuple[One, Output]], Context], list[Result]]
    figures: Sequence[str]
    check: Callable[[Result, Path, Output, Context], None] | None = None
    unwanted: Callable[[Result, int, int], str | None] | None = None
    copy_rest: bool = False


def in_batch(
    parameters: FileParameters, work: FileWork[One, Result], context: Context
) -> FilesResult[Result]:
    """Process every file. With a single one errors are raised; with several they are reported.

    Raises:
        UsageError: for options that cannot go together. LoramergeError: for a single file, as
        raised by its work.
    """
    check_device(context.device)
    parameters.check()
    if parameters.results:
        check_table(Path(parameters.results))
    found = expand(parameters.files, context.root, context.notify)
    files, others = adapters_among(
        without_outputs(found, parameters.out_dir), parameters.files, context.root
    )
    several = len(files) > 1 or parameters.out_dir is not None
    if several and parameters.output is not None:
        raise UsageError(
            "an output names one file, and there are several inputs"
            if len(files) > 1
            else "output and out_dir exclude each other",
            hint=("give ", Setting("out_dir", "FOLDER"), " alone, which keeps the names"),
        )
    if len(files) > 1 and parameters.out_dir is None:
        raise UsageError(
            f"{len(files)} files need a folder for their results",
            hint=("give ", Setting("out_dir", "FOLDER")),
        )
    batch = _Batch(parameters, work, context)
    done = [
        outcome
        for path, relative in files
        for outcome in (batch.several(path, relative) if several else batch.alone(path))
    ]
    result = FilesResult(done, work.figures, [str(path) for path in others])
    if parameters.results:
        write_table(Path(parameters.results), COLUMNS, [file.row() for file in result.files])
    return result


@dataclass(frozen=True)
class _Batch(Generic[One, Result]):
    """The work on all files.

    Args:
        taken: outputs of this run → the files they are of.
    """

    parameters: FileParameters
    work: FileWork[One, Result]
    context: Context
    taken: dict[str, Path] = field(default_factory=dict)

    def alone(self, path: Path) -> list[FileOutcome[Result]]:
        """Process the only file."""
        each = [one for _, one in self.parameters.each_of(path)]
        done = zip(each, self.work.run(each, self.context), strict=True)
        return [self._outcome_alone(path, one, found) for one, found in done]

    def _outcome_alone(self, path: Path, one: One, found: Result) -> FileOutcome[Result]:
        """Return the outcome of the only file; where nothing was written, the result is not wanted."""
        before = found.size_before
        if found.output is not None:
            return FileOutcome(str(path), "done", found.output, found, before, parameters=one)
        assert self.work.unwanted is not None
        why = self.work.unwanted(found, before or 0, before or 0)
        return FileOutcome(str(path), "skipped", None, found, before, why)

    def several(self, path: Path, relative: PurePath) -> list[FileOutcome[Result]]:
        """Process one of several files; an error becomes a line of the report."""
        found: list[FileOutcome[Result]] = []
        try:
            found.extend(self._results(path, relative))
        except LoramergeError as error:
            self.context.notify(Warn(f"{path}: {error.problem}"))
            found.append(
                FileOutcome(
                    str(path), "failed", reason=f"{error.problem}", exit_code=error.exit_code
                )
            )
        return found

    def _results(self, path: Path, relative: PurePath) -> Iterator[FileOutcome[Result]]:
        """Yield the outcomes of one of several files."""
        each = self.parameters.each_of(path)
        first = each[0][1]
        source = open_source(
            [first.adapter], first.base, self.context, skip_unknown=first.skip_unknown
        )
        output = output_of(self.parameters, source.adapters)
        before = source.adapter.info.size or 0
        todo: list[tuple[One, Output]] = []
        for label, one in each:
            place = self._place(path, relative, label, output.dialect)
            if self._is_there(path, place):
                why = "the output exists already"
                yield FileOutcome(str(path), "kept", str(place), None, before, why)
            else:
                todo.append((one, output.at(place)))
        results = self.work.compute(source, todo, self.context) if todo else []
        for (one, target), computed in zip(todo, results, strict=True):
            refused, found = self._written(computed, target, before)
            if refused is None:
                output_path = str(target.path)
                yield FileOutcome(str(path), "done", output_path, found, before, parameters=one)
            elif self.work.copy_rest:
                copy = self._folder / relative
                if not self._is_there(path, copy):
                    copy_whole(path, source.adapter.info.files, copy, force=self.parameters.force)
                yield FileOutcome(str(path), "copied", str(copy), found, before, refused)
            else:
                yield FileOutcome(str(path), "skipped", None, found, before, refused)

    def _written(self, computed: Result, output: Output, before: int) -> tuple[str | None, Result]:
        """Write a result, unless it is not wanted; return why it is not, and the result."""
        refused: list[str] = []

        def wanted(size: int) -> bool:
            why = self.work.unwanted(computed, size, before) if self.work.unwanted else None
            refused.extend([why] if why else [])
            return not refused

        found = write_result(computed, output, self.context, wanted=wanted, check=self.work.check)
        found.adapter = None  # else all results of a folder would stay in memory
        return (refused[0] if refused else None), found

    @property
    def _folder(self) -> Path:
        assert self.parameters.out_dir is not None
        return Path(self.parameters.out_dir)

    def _place(self, path: Path, relative: PurePath, label: str, dialect: Dialect) -> Path:
        stem = str(relative) if path.is_dir() else bare(str(relative))
        return self._folder / f"{stem}{label}{suffix_of(dialect)}"

    def _is_there(self, path: Path, output: Path) -> bool:
        """Return whether the result of one of several files exists and is kept.

        Raises:
            UsageError: if another file of this run has the same output.
            OutputExists: if the output is the file itself.
        """
        other = self.taken.setdefault(os.path.realpath(output), path)
        if other != path:
            raise UsageError(f"its result would replace that of {other}: {output}")
        if self.parameters.force or not output.exists():
            return False
        if output.samefile(path):
            raise OutputExists(
                "its result would replace the file itself",
                hint=(Setting("force", True), " allows that"),
            )
        return True


def one_by_one(work: Callable[..., Result]) -> Callable[..., list[Result]]:
    """Return a function of several inputs, of one that takes a single input before its context.

    Args:
        work: takes parameters and a context, or a source, parameters, an output and a context.
    """

    def run(*arguments: Any) -> list[Result]:
        *source, several, context = arguments
        return [
            work(*source, *(one if isinstance(one, tuple) else (one,)), context) for one in several
        ]

    return run
