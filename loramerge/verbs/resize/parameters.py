"""The parameters of resize: for one result, and for files with several results each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from loramerge.adapter import Site
from loramerge.algebra.budget import Cut
from loramerge.algebra.fair import check_fair
from loramerge.errors import Setting, UsageError
from loramerge.parameters import Doc
from loramerge.steps.amounts import size_label
from loramerge.steps.batch import CopyingParameters
from loramerge.steps.references import Reference
from loramerge.steps.writing import (
    BaseParameter,
    FairParameter,
    RankParameters,
    RankSeries,
    UnknownParameter,
    WriteParameters,
)

__all__ = ["Resize", "ResizeFiles"]

_OTHERS = ("energy", "ratio", "cumulative", "max_size")
_CRITERIA = (
    *(part for name in _OTHERS for part in (", ", Setting(name))),
    " or ",
    Setting("max_error"),
)


@dataclass(frozen=True, kw_only=True)
class _Written(BaseParameter, UnknownParameter, WriteParameters):
    """The parameters that come before those of ranks."""


@dataclass(frozen=True, kw_only=True)
class _Compared(FairParameter):
    """The parameters that say what a loss is compared with."""

    ingredient: Annotated[
        tuple[Reference, ...],
        Doc(
            "With --fair: an adapter in the mix, with its weight; may be repeated [default: those that "
            "the header of the mix names].",
            metavar="ADAPTER",
            completes="adapters",
        ),
    ] = ()
    relative_to: Annotated[
        str | None,
        Doc(
            "Base model: compare every change with the size of the weight that it changes. Then "
            "--ratio keeps what is larger than that size divided by the ratio, and --max-size and "
            "--max-error count errors in parts of it.",
            metavar="BASE",
            completes="bases",
        ),
    ] = None
    norm: Annotated[
        Literal["frobenius", "spectral"],
        Doc("Size of a weight: √Σw² (`frobenius`), or its largest singular value (`spectral`)."),
    ] = "frobenius"


@dataclass(frozen=True, kw_only=True)
class Resize(_Compared, RankParameters, _Written):
    """Re-rank an adapter by SVD.

    Every module gets the best approximation of its new rank, and the report shows the error.
    """

    adapter: Annotated[Reference, Doc("Adapter to re-rank.", ("ADAPTER",), completes="adapters")]

    def check(self) -> None:
        """Refuse parameters that contradict each other, before anything is opened.

        Raises:
            UsageError: naming the problem.
        """
        self.target(), self.float_type()
        rule = self.rule(1)
        if not rule.truncates:
            raise UsageError(
                "resize needs a rank option",
                hint=("give ", Setting("rank", 8), *_CRITERIA),
            )
        norms: dict[Site, float] | None = None if self.relative_to is None else {}
        if self.fair:
            check_fair(Cut(rule, norms=norms))
        elif self.ingredient:
            raise UsageError(
                "ingredients are for a fair result", hint=("give ", Setting("fair", True), ", too")
            )
        if norms is None and self.norm != "frobenius":
            raise UsageError(
                "norm is that of a base", hint=("name it: ", Setting("relative_to", "BASE"))
            )
        chooses = rule.ratio is not None or rule.max_size is not None or rule.error_chooses
        if norms is not None and not chooses:
            raise UsageError(
                "relative_to changes nothing here: within a module all changes are compared with the "
                "same weight",
                hint=(
                    "give ", Setting("max_size", "20MB"), ", ", Setting("ratio", 1000), " or ",
                    Setting("max_error", 0.1), " alone",
                ),
            )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ResizeFiles(_Compared, RankSeries, _Written, CopyingParameters):
    """Re-rank adapters by SVD.

    Every module gets the best approximation of its new rank, and the report shows the error. Several
    values, such as --rank 4,8,16 or --max-size 8MB,16MB, give a file each, from one decomposition. Of
    several files, one that fails or would not get smaller is reported, and the others are still
    resized. Run the command again to do only those that are missing.
    """

    curve: Annotated[
        bool,
        Doc("Write no adapter: show the error at many ranks and sizes."),
    ] = False

    def check(self) -> None:
        super().check()
        if not self.curve:
            for _, one in self.each_of(Path("x")):
                one.check()

    def each_of(self, path: Path) -> list[tuple[str, Resize]]:
        """Return the parameters of each result of a file.

        Raises:
            UsageError: if a value is given twice, or two results would have one name.
        """
        shared = {f.name: getattr(self, f.name) for f in fields(Resize) if f.name in _SHARED}
        each = list(self._values())
        labels = [_label(self, *one) for one in each]
        outputs = [self._output(label, *one) for label, one in zip(labels, each, strict=True)]
        _require_apart([text for text in outputs if text is not None], "are written to")
        return [
            (
                label,
                Resize(
                    **shared | {"rank": rank, "max_size": size, "output": output},
                    adapter=Reference(str(path)),
                ),
            )
            for label, output, (rank, size) in zip(labels, outputs, each, strict=True)
        ]

    def repeating_steps(self, result: Any) -> list[tuple[Any, Any]]:
        if self.curve:
            raise UsageError(
                "a curve writes no adapter, so there is no step that repeats it",
                hint="keep the line of the command",
            )
        return super().repeating_steps(result)

    def _values(self) -> Iterator[tuple[int | None, str | None]]:
        """Yield the rank and the size of each result: all pairs where several of both are given."""
        _require_apart([f"rank {rank}" for rank in self.rank], "have")
        _require_apart([f"size {size_label(size)}" for size in self.max_size], "have")
        yield from product(self.rank or (None,), self.max_size or (None,))

    def _output(self, label: str, rank: int | None, size: str | None) -> str | None:
        """Return the output that stands for a result: with `{rank}` and `{size}`, or the label."""
        if self.output is None:
            return None
        text = self.output
        values = {"rank": rank, "size": None if size is None else size_label(size)}
        used = {name: value for name, value in values.items() if f"{{{name}}}" in text}
        for name, value in used.items():
            if value is None:
                word = {"size": "max_size"}.get(name, name)
                raise UsageError(
                    f"the output has {{{name}}} in its name, but no {word} is given",
                    hint=("give ", Setting(word), ", or another name"),
                )
            text = text.replace(f"{{{name}}}", str(value))
        if used or not label:
            return text
        path = Path(text)
        ending = path.suffix if path.suffix.lower() in (".safetensors", ".pt") else ""
        return text.removesuffix(ending) + label + ending


_SHARED = {f.name for f in fields(ResizeFiles)} - {"rank", "max_size", "output"}


def _label(parameters: ResizeFiles, rank: int | None, size: str | None) -> str:
    """Return what tells a result from the others of its file: `-r4`, `-8MB`."""
    ranks = [f"-r{rank}"] if len(parameters.rank) > 1 else []
    sizes = [f"-{size_label(size or '')}"] if len(parameters.max_size) > 1 else []
    return "".join(ranks + sizes)


def _require_apart(texts: list[str], verb: str) -> None:
    twice = [text for text, count in Counter(texts).items() if count > 1]
    if twice:
        raise UsageError(
            f"several results {verb} {twice[0]}",
            hint="give each value once, and {rank} and {size} in the name, or neither",
        )
