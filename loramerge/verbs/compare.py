"""compare: which adapters of a folder resemble each other, and which are copies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from loramerge.adapter import Adapter
from loramerge.adapter.load import load
from loramerge.algebra.compare import comparable
from loramerge.algebra.gram import at_common_sites, gram
from loramerge.algebra.ingredients import Ingredients, ingredients
from loramerge.algebra.resemblance import Copy, clusters, copies, cosines
from loramerge.algebra.sketch import RELATED, inner_products
from loramerge.errors import (
    AdapterError,
    FormatError,
    LoramergeError,
    NumericsError,
    Setting,
    UsageError,
)
from loramerge.events import Warn
from loramerge.files.dtypes import DTYPES
from loramerge.files.names import short_names
from loramerge.library.paths import below
from loramerge.library.patterns import expand
from loramerge.parameters import Bounds
from loramerge.steps.in_folders import checkpoint_of
from loramerge.steps.inputs import adapter_of, weighted
from loramerge.steps.parameters import Context, Doc, Verb
from loramerge.steps.prediction import Prediction, predict_report
from loramerge.steps.references import Reference
from loramerge.steps.shown import Shown

__all__ = [
    "CHECKPOINT",
    "VERB",
    "Compare",
    "CompareResult",
    "ComparedFile",
    "compare",
    "compare_adapters",
]

CHECKPOINT = "this is a checkpoint, not an adapter"  # why it was left out


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Find copies and relatives among adapters, by their changes (ΔW).

    Copies are found however they were rescaled, resized, converted or factored anew. Nothing is deleted.
    """

    files: Annotated[
        tuple[str, ...],
        Doc("Adapter files, folders (recursively), patterns or names.", ("FILE",), None, "files"),
    ]
    ingredients: Annotated[
        Reference | None,
        Doc(
            "Explain this adapter as a weighted sum of the others.",
            metavar="X",
            completes="adapters",
        ),
    ] = None
    alike: Annotated[
        float, Bounds(gt=0, le=1), Doc("Cosine from which adapters belong to one cluster.")
    ] = 0.5

    def repeating_steps(self, result: CompareResult) -> list[tuple[Compare, CompareResult]]:
        """Return the step of a recipe that compares the same files."""
        return [(replace(self, files=tuple(one.path for one in result.files)), result)]


@dataclass(frozen=True)
class ComparedFile:
    """One of the adapters.

    Args:
        norm: ‖ΔW‖.
        not_compared: modules that need a base.
    """

    path: str
    family: str | None
    dialect: str
    dtype: str
    rank: int
    norm: float
    not_compared: int


@dataclass(repr=False, eq=False)
class CompareResult(Shown):
    """The cosines of all pairs, and what follows from them.

    Args:
        cosines: of all pairs in the order of `files`; None where one of a pair changes nothing.
        clusters: numbers of files that resemble each other.
        keep: number of each copy that can go → number of the one to keep.
        mystery: the adapter that `found` explains.
        unreadable: path → why it was left out.
        estimated: cosine below which cosines are estimates, None where all are exact.
    """

    headline = ("verdict",)
    reported_as = "compare"

    files: list[ComparedFile]
    cosines: list[list[float | None]]
    copies: list[Copy]
    clusters: list[list[int]]
    keep: dict[int, int]
    mystery: str | None = None
    found: Ingredients | None = None
    unreadable: dict[str, str] = field(default_factory=dict)
    estimated: float | None = None

    @property
    def verdict(self) -> str:
        """One sentence: how many adapters, copies and clusters."""
        count, copied, grouped = len(self.files), len(self.keep), len(self.clusters)
        return (
            f"{count} adapters: {copied or 'no'} {'copy' if copied == 1 else 'copies'} of others, "
            f"{grouped or 'no'} {'cluster' if grouped == 1 else 'clusters'}."
        )

    @property
    def names(self) -> list[str]:
        """Names of the files, with folders where these are needed to tell them apart."""
        return short_names([one.path for one in self.files])

    def words(self, copy: Copy) -> str:
        """Return how two files are related, in words."""
        a, b = self.files[copy.a], self.files[copy.b]
        names = self.names
        return copy.kinship.full_words(
            (names[copy.a], names[copy.b]),
            (f"{a.dialect} {a.dtype}", f"{b.dialect} {b.dtype}"),
            refactored=copy.refactored,
        )

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return {
            "outputs": [],
            "verdict": self.verdict,
            "files": [vars(one) for one in self.files],
            "cosines": self.cosines,
            "estimated_below": self.estimated,
            "copies": [
                {
                    "a": self.files[one.a].path,
                    "b": self.files[one.b].path,
                    "words": self.words(one),
                    "kind": one.kinship.kind,
                    "factor": one.kinship.factor,
                    "smaller": one.kinship.smaller,
                    "lost": one.kinship.lost,
                }
                for one in self.copies
            ],
            "keep": {self.files[n].path: self.files[k].path for n, k in self.keep.items()},
            "clusters": [[self.files[n].path for n in those] for those in self.clusters],
            "ingredients": self.found and self._explained(self.found),
            "unreadable": self.unreadable,
        }

    def _explained(self, found: Ingredients) -> dict[str, Any]:
        return {
            "adapter": self.mystery,
            "weights": {self.files[n].path: weight for n, weight in found.weights.items()},
            "shares": {self.files[n].path: share for n, share in found.shares.items()},
            "remainder": found.remainder,
            "rank": found.ranks[0],
            "rank_of_sum": found.ranks[1],
            "hidden_by_truncation": found.hidden,
            "remainder_after_truncation": found.remainder_cut,
        }


def compare(parameters: Compare, context: Context = Context()) -> CompareResult:
    """Run the verb.

    Raises:
        UsageError: if fewer than two adapters are given, or none beside the one to explain.
        AdapterError: if none of them can be compared.
    """
    wanted = parameters.ingredients
    mystery = None if wanted is None else weighted(adapter_of(wanted, context), wanted.weight)
    adapters, unreadable = _open(parameters.files, mystery, context)
    least = 1 if wanted is not None else 2
    if len(adapters) < least:
        raise UsageError(
            "there is nothing to compare",
            expected=f"at least {least} adapters that can be read",
            found=len(adapters),
            hint=("give more files, or a folder",),
        )
    while True:
        try:
            result = compare_adapters(adapters, mystery, alike=parameters.alike, context=context)
        except NumericsError as error:  # one damaged file does not stop the others
            rest = [one for one in adapters if one.label != error.file]
            if len(rest) == len(adapters) or len(rest) < least:
                raise
            adapters = rest
            unreadable[str(error.file)] = error.problem
            context.notify(Warn(f"{error.file}: {error.problem}"))
        else:
            result.unreadable = unreadable
            return result


def _open(
    names: Sequence[str], mystery: Adapter | None, context: Context
) -> tuple[list[Adapter], dict[str, str]]:
    """Return the adapters, without the one to explain, and why files were left out."""
    found: list[Adapter] = []
    unreadable: dict[str, str] = {}
    own = mystery.info.path if mystery is not None else None
    known = [context.known.get(name) for name in names]
    found += [one for one in known if isinstance(one, Adapter)]
    paths = [one for one in known if isinstance(one, Path)]
    rest = [name for name, one in zip(names, known, strict=True) if one is None]
    paths += [path for path, _ in expand(rest, context.root, context.notify)] if rest else []
    tops = [below(context.root, name) for name in rest]
    for path in dict.fromkeys(paths):
        if own is not None and path.resolve() == Path(own).resolve():
            continue
        try:
            adapter = load(path)
            adapter.require_sound()
        except LoramergeError as error:
            if len(paths) == 1:
                raise
            known_format = isinstance(error, (FormatError, AdapterError))
            if known_format and (whole := checkpoint_of(path, tops)) is not None:
                unreadable[str(whole)] = CHECKPOINT
                continue
            context.notify(Warn(f"{path}: {error.problem}"))
            unreadable[str(path)] = error.problem
            continue
        whole = checkpoint_of(path, tops) if adapter.only_replaces else None
        if whole is not None:
            unreadable[str(whole)] = CHECKPOINT
        elif any(comparable(delta) for delta in adapter.deltas.values()):
            found.append(adapter)
        else:
            unreadable[str(path)] = "no module can be compared without a base"
    return found, unreadable


def compare_adapters(
    adapters: Sequence[Adapter],
    mystery: Adapter | None = None,
    *,
    alike: float = 0.5,
    context: Context = Context(),
) -> CompareResult:
    """Compare loaded adapters; see `compare`."""
    first = [] if mystery is None else [mystery]
    every = at_common_sites([*first, *adapters])
    chosen = every[len(first) :]
    known = None
    if mystery is None:
        products, exact = inner_products(chosen, threads=context.threads, notify=context.notify)
    else:
        _require_comparable(mystery)
        known = gram(every, threads=context.threads, notify=context.notify)
        products, exact = known[1:, 1:], True
    cosine = cosines(products)
    related = list(copies(chosen, products))
    files = [
        _described(adapter, float(max(0.0, energy)) ** 0.5)
        for adapter, energy in zip(adapters, products.diagonal(), strict=True)
    ]
    explained = None
    if mystery is not None:
        explained = ingredients(every[0], chosen, products=known, threads=context.threads)
    return CompareResult(
        files,
        [[None if math.isnan(one) else float(one) for one in row] for row in cosine],
        related,
        clusters(cosine, alike),
        _kept(files, related),
        None if mystery is None else mystery.label,
        explained,
        estimated=None if exact else RELATED,
    )


def _require_comparable(mystery: Adapter) -> None:
    """Refuse to explain an adapter that needs a base.

    Raises:
        AdapterError: if none of its modules can be compared.
    """
    if not any(comparable(delta) for delta in mystery.deltas.values()):
        raise AdapterError(
            "no module of the adapter to explain can be compared without a base",
            file=mystery.label,
            hint=("convert it with ", Setting("to_lora", True)),
        )


def _described(adapter: Adapter, norm: float) -> ComparedFile:
    info = adapter.info
    return ComparedFile(
        adapter.label,
        info.detection.name,
        " + ".join(info.dialects) or "unknown",
        "/".join(DTYPES[name].word for name in adapter.dtypes()),
        max(adapter.ranks(), default=0),
        norm,
        sum(not comparable(delta) for delta in adapter.deltas.values()),
    )


def _kept(files: Sequence[ComparedFile], related: Sequence[Copy]) -> dict[int, int]:
    """Return which of each pair of copies can go, and which to keep for it: the one that holds more."""
    order = {
        number: (-_bits(one.dtype), one.rank, len(one.path), one.path)
        for number, one in enumerate(files)
    }
    found: dict[int, int] = {}
    for one in related:
        first, second = sorted((one.a, one.b), key=order.__getitem__)
        if one.kinship.smaller is not None:
            first, second = (one.a, one.b) if one.kinship.smaller == "B" else (one.b, one.a)
        found.setdefault(second, first)
    for number in found:
        seen = {number}
        while found[number] in found and found[number] not in seen:
            seen.add(found[number])
            found[number] = found[found[number]]
    return found


def _bits(words: str) -> int:
    """Return the bits of the widest of some types of numbers."""
    return max((one.bits for one in DTYPES.values() if one.word in words.split("/")), default=0)


def predict(parameters: Compare, context: Context = Context()) -> Prediction:
    """Predict what comparing takes."""
    return predict_report(_open(parameters.files, None, context)[0])


VERB = Verb("compare", Compare, "report", compare, predict)
