"""The comparison of two checkpoints, with a verdict in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loramerge.adapter.metadata import RECIPE_KEY, VERSION_KEY
from loramerge.checkpoint import Checkpoint
from loramerge.errors import listed
from loramerge.files.dtypes import DTYPES
from loramerge.files.names import short_names
from loramerge.library.shipped import shipped_name
from loramerge.steps.parameters import Context
from loramerge.steps.shown import Shown
from loramerge.stream.gaps import AVERAGE, OTHER, Gap, Likeness
from loramerge.stream.likeness import likeness

__all__ = ["CheckpointDiff", "DiffResult", "diff_checkpoints"]

_BESIDE = (OTHER, AVERAGE)  # parts that no program draws with; one without them is no other model
_STRANGE = 0.5  # cosine of all matrices below which two checkpoints have nothing in common
_MOST = 0.5  # share of the matrices' elements that then differ
_NAMED = 4  # tensors that are named


@dataclass(repr=False, kw_only=True)
class DiffResult(Shown):
    """A verdict in words, and the figures behind it.

    Args:
        facts: property → (of A, of B).
        metadata: entry of the header → (in A, in B), of those that differ.
        checks: whether a difference ends the command with exit code 1.
    """

    headline = ("verdict", "differs")

    a: str
    b: str
    verdict: str
    differs: bool
    facts: dict[str, tuple[Any, Any]]
    metadata: dict[str, tuple[str | None, str | None]]
    checks: bool = False

    @property
    def names(self) -> tuple[str, str]:
        """Names of the two, with folders where these are needed to tell them apart."""
        paths = (self.a, self.b)
        a, b = (
            shipped_name(path) or name for path, name in zip(paths, short_names(paths), strict=True)
        )
        return a, b

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        return int(self.checks and self.differs)


@dataclass(repr=False, kw_only=True)
class CheckpointDiff(DiffResult):
    """The comparison of two checkpoints."""

    reported_as = "diff"

    likeness: Likeness

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        found = self.likeness
        largest = found.largest
        return {
            "outputs": [],
            "a": self.a,
            "b": self.b,
            "verdict": self.verdict,
            "differs": self.differs,
            "total": _figures(found.total),
            "parts": {name: _figures(gap) for name, gap in found.parts.items()},
            "blocks": {name: _figures(gap) for name, gap in found.blocks.items()},
            "largest": None
            if largest is None
            else {"tensor": largest.site.name, "relative_distance": largest.gap.distance},
            "only_a": found.only_a,
            "only_b": found.only_b,
            "other_shapes": found.misfits,
            "not_compared": found.unreadable,
            "constants": {"tensors": found.constants, "differing": found.other_constants},
            "facts": {name: list(pair) for name, pair in self.facts.items()},
            "metadata": {name: list(pair) for name, pair in self.metadata.items()},
        }


def _figures(gap: Gap) -> dict[str, float | int | None]:
    return {
        "tensors": gap.tensors,
        "differing": gap.differing,
        "rounding_alone": gap.rounded,
        "relative_distance": gap.distance,
        "cosine": gap.cosine,
    }


def diff_checkpoints(
    a: Checkpoint, b: Checkpoint, context: Context = Context(), *, tolerance: float
) -> CheckpointDiff:
    """Compare two checkpoints of one family.

    Args:
        tolerance: relative distance of a tensor up to which it counts as the same.

    Raises:
        FamilyError: if they belong to different families.
    """
    found = likeness(a, b, threads=context.threads, notify=context.notify)
    facts = {
        name: (of(a), of(b))
        for name, of in (
            ("family", lambda x: x.family_name),
            ("layout", _layout),
            ("dtypes", _types),
            ("files", lambda x: len(x.files.weights)),
            ("size", lambda x: x.size),
        )
    }
    beyond = [one for one in found.measured if _counts(one.gap, tolerance)]
    lacking = any(part not in _BESIDE for part in (*found.only_a, *found.only_b))
    return CheckpointDiff(
        a=str(a.path),
        b=str(b.path),
        verdict=_verdict(found, facts, tolerance, bool(beyond)),
        differs=bool(beyond or lacking or found.misfits or found.unreadable),
        facts=facts,
        metadata=_metadata(a, b),
        likeness=found,
    )


def _counts(gap: Gap, tolerance: float) -> bool:
    """Return whether a tensor differs by more than the tolerance and than rounding explains."""
    explained = gap.rounded and tolerance > 0
    return bool(gap.differing and not explained and gap.distance > tolerance)


def _layout(checkpoint: Checkpoint) -> str:
    return ", ".join(sorted(set(checkpoint.layouts.values())))


def _types(checkpoint: Checkpoint) -> dict[str, int]:
    """Return type → number of tensors, as they are stored."""
    files = checkpoint.files.weights
    return dict(Counter(DTYPES[t.dtype].word for f in files for t in f.open()[0].values()))


def _metadata(a: Checkpoint, b: Checkpoint) -> dict[str, tuple[str | None, str | None]]:
    """Return the entries of the headers that differ, without those on how loramerge made the files."""
    one, two = (_entries(x) for x in (a, b))
    return {
        key: (one.get(key), two.get(key))
        for key in sorted({**one, **two})
        if one.get(key) != two.get(key) and key not in ("format", RECIPE_KEY, VERSION_KEY)
    }


def _entries(checkpoint: Checkpoint) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for file in checkpoint.files.weights:
        found |= file.open()[1]
    return found


def _verdict(
    found: Likeness, facts: Mapping[str, tuple[Any, Any]], tolerance: float, beyond: bool
) -> str:
    """Return how two checkpoints relate, in a sentence or two."""
    rest = _one_side(found)
    total, matrices = found.total, found.matrices
    if not beyond:
        return " ".join((_alike(found, facts, tolerance, total), *rest))
    cosine = matrices.cosine
    most = matrices.changed >= _MOST * matrices.elements
    if most and cosine is not None and abs(cosine) < _STRANGE:
        first = f"The two are unrelated: the cosine of all matrices that differ is {cosine:.2f}."
        return " ".join((first, *rest))
    changes = [
        f"{name} ({_count(gap)}, distance {_percent(gap.distance)})"
        for name, gap in found.parts.items()
        if gap.differing > gap.rounded
    ]
    same = [name for name, gap in found.parts.items() if not gap.differing]
    first = f"B is A with changes in {listed(changes, 6)}."
    if same:
        first += f" Equal: {listed(same, 6)}."
    return " ".join((first, *rest))


def _alike(
    found: Likeness, facts: Mapping[str, tuple[Any, Any]], tolerance: float, total: Gap
) -> str:
    """Return the verdict on checkpoints that differ by no more than the tolerance."""
    forms = [word for word, key in (("layout", "layout"), ("type", "dtypes")) if _other(facts, key)]
    form = f", another {' and another '.join(forms)}" if forms else ""
    if not total.differing:
        return f"The same weights{form or ', bit by bit'}."
    distance = _percent(total.distance)
    if total.rounded == total.differing:
        return f"The same weights{form}: they differ by rounding alone, by {distance} of the norm."
    return (
        f"The same weights within the tolerance{form}: {_count(total)}, by {distance} of their norm, "
        f"and none by more than {_percent(tolerance)}."
    )


def _other(facts: Mapping[str, tuple[Any, Any]], key: str) -> bool:
    one, other = facts[key]
    return set(one) != set(other) if isinstance(one, dict) else one != other


def _one_side(found: Likeness) -> list[str]:
    """Return sentences on what could not be compared."""
    sentences = []
    for side, those in (("A", found.only_a), ("B", found.only_b)):
        for part, names in those.items():
            if part == OTHER:
                continue
            whole = part not in found.parts
            some = f"{len(names)} tensors of {part}" if len(names) > 1 else names[0]
            sentences.append(f"Only {side} has {f'the part {part}' if whole else some}.")
    if found.misfits:
        sentences.append(f"Other shapes: {listed(found.misfits, _NAMED)}.")
    if found.unreadable:
        sentences.append(f"Not compared: {listed(found.unreadable, _NAMED)}.")
    return sentences


def _count(gap: Gap) -> str:
    changed = gap.differing
    return f"{changed} of {gap.tensors} tensors {'differs' if changed == 1 else 'differ'}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
