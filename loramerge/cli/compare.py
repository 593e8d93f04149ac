"""The command `compare`: find copies and relatives among adapters."""

from __future__ import annotations

from itertools import combinations

from loramerge.algebra.ingredients import Ingredients
from loramerge.cli import show
from loramerge.cli.bars import BarColumn
from loramerge.cli.command import verb_command
from loramerge.errors import listed
from loramerge.verbs.compare import CHECKPOINT, VERB, CompareResult

_MATRIX = 8  # adapters whose cosines fit in a table of 80 columns
_MOST = 20  # pairs, copies and clusters that are listed
_LEAST = 0.05  # cosine of a pair that is listed
_HIDDEN = 0.01  # loss by truncation that is worth a sentence


def render(result: CompareResult) -> None:
    """Show the adapters, how they resemble each other, and the ingredients."""
    names = result.names
    if len(names) <= _MATRIX:
        rows = [
            (str(n), name, one.family or "–", str(one.rank), f"{one.norm:.4g}")
            for n, (name, one) in enumerate(zip(names, result.files, strict=True), 1)
        ]
        show.table(rows, ("", "adapter", "family", "rank", "norm"))
        _matrix(result)
    else:
        _closest(result, names)
    show.line(result.verdict)
    if result.estimated is not None:
        show.line(f"Cosines below {result.estimated} are estimates.")
    shown = [f"{result.words(one)}." for one in result.copies[:_MOST]]
    for sentence in shown:
        show.line(sentence)
    if len(result.copies) > _MOST:
        show.line(f"… and {len(result.copies) - _MOST} more pairs of copies")
    for number, kept in list(result.keep.items())[:_MOST]:
        show.line(f"{names[number]} holds nothing that {names[kept]} lacks.")
    for those in result.clusters[:_MOST]:
        show.line(f"cluster: {listed([names[n] for n in those], 8)}")
    if result.found is not None:
        _ingredients(result, result.found, names)
    for path, reason in result.unreadable.items():
        if reason != CHECKPOINT:
            show.line(f"left out: {path}: {reason}")
    checkpoints = list(result.unreadable.values()).count(CHECKPOINT)
    if checkpoints:
        are = "is" if checkpoints == 1 else "are"
        show.line(f"{show.count(checkpoints, 'checkpoint')} {are} left out.")
    bound = [name for name, one in zip(names, result.files, strict=True) if one.not_compared]
    if bound:
        show.line(f"some modules need a base and were not compared: {listed(bound, 4)}")


def _matrix(result: CompareResult) -> None:
    """Show the cosines of all pairs."""
    numbers = [str(n) for n in range(1, len(result.files) + 1)]
    rows = [
        (number, *("–" if one is None else f"{round(one, 3) + 0.0:.3f}" for one in row))
        for number, row in zip(numbers, result.cosines, strict=True)
    ]
    show.table(rows, ("cosine", *numbers))


def _closest(result: CompareResult, names: list[str]) -> None:
    """Show the pairs that resemble each other most."""
    pairs = [
        (abs(cosine), cosine, a, b)
        for a, b in combinations(range(len(names)), 2)
        if (cosine := result.cosines[a][b]) is not None and abs(cosine) >= _LEAST
    ]
    rows = [
        (names[a], names[b], f"{cosine:.3f}") for _, cosine, a, b in sorted(pairs)[::-1][:_MOST]
    ]
    show.table(rows, ("closest pairs", "", "cosine"))


def _ingredients(result: CompareResult, found: Ingredients, names: list[str]) -> None:
    """Show the weights, what is left, and what truncation hides."""
    order = sorted(found.weights, key=lambda number: -found.shares[number])
    rows = [(names[n], f"{found.weights[n]:.4g}", show.percent(found.shares[n])) for n in order]
    show.line(f"ingredients of {result.mystery}", bold=True)
    parts = BarColumn("", [found.shares[n] for n in order], 1.0)
    show.table(rows, ("adapter", "weight", "norm of its part"), drawn=parts)
    show.line(f"unexplained: {show.percent(found.remainder)} of the norm")
    if found.hidden > _HIDDEN:
        show.line(
            f"It has rank {found.ranks[0]}, the sum has rank {found.ranks[1]}: cut to the same ranks, "
            f"the sum would lose {show.percent(found.hidden)} of its norm, and then "
            f"{show.percent(found.remainder_cut)} would be unexplained. Weights of ingredients "
            "whose directions were cut come out too low."
        )


command = verb_command(VERB, render, "loramerge compare ~/loras --ingredients mixed.safetensors")
