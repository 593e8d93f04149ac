"""The result of a check: a verdict in words, and the figures behind it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from loramerge.algebra.compare import Comparison
from loramerge.algebra.kinship import ROUNDED
from loramerge.algebra.presence import Fault
from loramerge.algebra.weights import Weight, shown_number
from loramerge.errors import listed
from loramerge.steps.claims import CheckpointContents, FoundAdapter
from loramerge.steps.shown import Shown
from loramerge.steps.weight_words import weight_in_words, weight_words

__all__ = ["Twice", "VerifyResult"]

_NAMED = 3  # modules that a sentence names
_NOTHING = 1e-3  # of a strength that is as good as none
_CLOSE = 0.02  # of a ratio of strengths to one that has a name


@dataclass(frozen=True)
class Twice:
    """An adapter that was baked more than once, according to a header.

    Args:
        weights: of each time; total: their sum, None where they differ by module.
    """

    name: str
    weights: list[str]
    total: float | None


@dataclass(repr=False)
class VerifyResult(Shown):
    """The comparison of a file with its recipe, or with what was claimed of it.

    Args:
        source: the verb of its recipe, or `given` where the claim was given.
        contents: of a checkpoint; None for an adapter.
        comparison: of an adapter computed again (A) and the file (B); None for a checkpoint.
        changed: module → relative distance, of modules of an adapter that differ.
        lost: ‖ΔW − ΔW_k‖ / ‖ΔW‖ of an adapter that was cut to lower ranks and is the nearest at these,
            by singular values; None for others.
        twice: adapters that were baked more than once, by the header.
        notes: inputs that are other files than those that were used.
    """

    headline = ("verdict", "holds")
    reported_as = "verify"

    path: str
    source: str
    base: str | None
    contents: CheckpointContents | None
    comparison: Comparison | None = None
    changed: dict[str, float] = field(default_factory=dict)
    lost: float | None = None
    twice: list[Twice] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """True if the file holds it."""
        if self.contents is not None:
            return self.contents.holds and not self.contents.missing
        found = self.comparison
        assert found is not None
        one_side = found.only_a or found.only_b or found.skipped
        return found.total.distance <= ROUNDED and not one_side and not self.changed

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        return int(not self.holds)

    @property
    def verdict(self) -> str:
        """The answer, in sentences."""
        return " ".join(self.sentences())

    def sentences(self) -> list[str]:
        """Return the answer, one sentence for each thing that was found."""
        if self.contents is None:
            return list(_of_adapter(self))
        return [*_of_checkpoint(self.contents), *_repeated(self.twice)]

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        found = self.contents
        result: dict[str, Any] = {
            "outputs": [],
            "path": self.path,
            "source": self.source,
            "verdict": self.verdict,
            "holds": self.holds,
            "base": self.base,
            "notes": self.notes,
            "twice": [
                {"adapter": one.name, "weights": one.weights, "total": one.total}
                for one in self.twice
            ],
        }
        if self.comparison is not None:
            return result | {
                "relative_distance": self.comparison.total.distance,
                "modules": len(self.comparison.sites),
                "changed": self.changed,
                "lost": self.lost,
                "missing": list(self.comparison.only_a),
                "added": list(self.comparison.only_b),
            }
        assert found is not None
        return result | {
            "adapters": [_adapter(one) for one in found.found],
            "survived": found.kept,
            "survived_expected": found.expected,
            "unexplained": found.rest,
            "rounding": found.rounding,
            "hidden_by_rounding": found.hidden,
            "dtypes": found.types,
            "faults": [_fault(one, found) for one in found.faults],
            "missing": found.missing,
            "elsewhere": found.others,
            "one_side": found.lacking,
        }


def _adapter(one: FoundAdapter) -> dict[str, Any]:
    return {
        "adapter": one.claim.label,
        "claimed": one.claim.weight.text() if one.claim.stated else None,
        "strength": one.strength,
        "factor": one.factor,
        "holds": one.holds,
        "nothing": one.nothing,
        "drowned_by": one.drowned,
        "modules": one.modules,
        "sound_modules": one.sound,
        "blocks": {
            name: {"factor": block.strength, "unexplained": block.rest, "modules": block.modules}
            for name, block in one.blocks.items()
        },
    }


def _fault(one: Fault, found: CheckpointContents) -> dict[str, Any]:
    return {
        "module": one.module,
        "sort": one.sort,
        "factors": [
            {"adapter": found.found[term].claim.label, "factor": factor} for term, factor in one.off
        ],
        "unexplained": one.rest if math.isfinite(one.rest) else None,
    }


# --- words ------------------------------------------------------------------------------------------


def _of_checkpoint(found: CheckpointContents) -> Iterator[str]:
    nothing = all(one.nothing for one in found.found)
    if found.holds and not found.missing and nothing:
        yield "There is nothing to verify: it is the base, and should be."
    elif found.holds and not found.missing:
        adapters = "adapter" if len(found.found) == 1 else "adapters"
        yield "It holds what it should." if _stated(found) else f"It holds the {adapters}."
    elif found.unclear:
        yield "It is not known whether it holds what it should."
    else:
        yield "It does not hold what it should."
    for one in found.found:
        yield _strength(one, several=len(found.found) > 1)
    yield from _faults(found)
    if found.missing:
        some = listed(found.missing, _NAMED)
        are = "is" if len(found.missing) == 1 else "are"
        yield (
            f"{_modules(len(found.missing))} of the adapters {are} not in the base, or not here: {some}."
        )
    if found.others:
        parts = listed([f"{name} ({count})" for name, count in found.others.items()], 6)
        yield f"Tensors that no adapter changes differ from the base: {parts}."
    if found.lacking:
        yield f"Only on one side, or in other shapes: {listed(found.lacking, _NAMED)}."
    drowned = any(one.drowned is not None for one in found.found)
    if found.kept is not None and found.expected is not None and not drowned:
        all_in = all(one.factor is not None or one.nothing for one in found.found)
        change = "the change" if all_in else "the change of the adapters found"
        kept, expected, types = _percent(found.kept), _percent(found.expected), listed(found.types)
        if kept == expected == _percent(1.0):
            yield f"All of {change} is there, apart from rounding to {types}."
        else:
            whole = "the whole change" if all_in else change
            yield f"{kept} of {whole} is in it; rounding to {types} would leave {expected}."
    if found.hidden:
        yield (
            f"In {_modules(found.hidden)} rounding leaves less than half of the change, so little can "
            "be said of them."
        )


def _stated(found: CheckpointContents) -> bool:
    return all(one.claim.stated for one in found.found)


def _strength(one: FoundAdapter, *, several: bool) -> str:
    """Return the sentence on the strength of one adapter, which may be one of several."""
    label, claim = one.claim.label, one.claim
    if one.nothing:
        return f"{label} changes nothing: all of it, {_modules(one.modules)}, is exactly zero."
    if one.drowned is not None:
        return (
            f"Rounding drowns {label}: what is unexplained in its modules is {one.drowned:.3g} times as "
            "large as its change."
        )
    if not one.told:
        if several:
            return f"{label} is too much like the other adapters to tell its strength."
        return f"Nothing in the modules that {label} changes tells its strength."
    if one.factor is None:
        fits = [b.strength for b in one.blocks.values() if b.strength is not None]
        some = any(abs(one) >= _NOTHING for one in fits)
        span = f": its blocks fit strengths from {min(fits):.2g} to {max(fits):.2g}" if some else ""
        return f"{label} is not in it{span}."
    at = one.strength
    strength = f"strength {at:.3g}" if at is not None else f"{one.factor:.3g} times its weights"
    if not claim.stated:
        return f"{label} is in it at {strength}."
    wanted = _wanted(claim.weight)
    if one.factor == 1.0:
        return f"{label} is in it at the weight {wanted}."
    reason = _reason(one)
    return (
        f"{label} is in it at {strength}, {one.factor:.3g} times the weight {wanted}"
        f"{f': {reason}' if reason else ''}."
    )


def _wanted(weight: Weight) -> str:
    """Return the words for the weight that an adapter should have."""
    if weight.plain:
        return shown_number(weight.default)
    written = weight.text() if weight.match else ":".join(weight_words(weight))
    return weight_in_words(weight, written)


def _reason(one: FoundAdapter) -> str:
    """Return what a factor of the strength is a sign of."""
    factor = one.factor or 0.0
    if abs(factor - 2) <= 2 * _CLOSE:
        return "as if it had been baked twice"
    scales = {
        delta.alpha / delta.rank
        for delta in one.claim.adapter.deltas.values()
        if delta.alpha and delta.rank
    }
    if len(scales) == 1:
        (scale,) = scales
        for named, power in (("its alpha had been left out", -1.0), ("it counted twice", 1.0)):
            if scale != 1 and abs(factor / scale**power - 1) <= _CLOSE:
                return f"as if {named if power < 0 else 'its alpha had been applied twice'}"
    if abs(factor + 1) <= _CLOSE:
        return "it was subtracted"
    return ""


def _faults(found: CheckpointContents) -> Iterator[str]:
    """Yield a sentence for each sort of fault."""
    sorts: dict[str, list[Fault]] = {}
    for fault in found.faults:
        sorts.setdefault(fault.sort, []).append(fault)
    for sort, those in sorts.items():
        count = _modules(len(those))
        names = listed([_named(one, found) for one in those], _NAMED)
        match sort:
            case "lost":
                yield f"In {count} the change is lost: {names}."
            case "strength":
                yield f"In {count} it has another strength than in the others: {names}."
            case "not finite":
                yield f"In {count} there is NaN or infinity: {names}."
            case _:
                yield f"In {count} there is something else than the adapters: {names}."


def _named(one: Fault, found: CheckpointContents) -> str:
    several = len(found.found) > 1
    match one.sort:
        case "strength":
            factors = [
                f"{found.found[term].claim.label + ' ' if several else ''}×{factor:.3g}"
                for term, factor in one.off
            ]
            return f"{one.module} ({', '.join(factors)})"
        case "lost" if several:
            labels = listed([found.found[term].claim.label for term, _ in one.off])
            return f"{one.module} ({labels})"
        case "other":
            return f"{one.module} ({_percent(one.rest)} of the change's norm)"
        case _:
            return one.module


def _repeated(twice: list[Twice]) -> Iterator[str]:
    for one in twice:
        total = "" if one.total is None else f", together {shown_number(one.total)}"
        yield (
            f"Its header says that {one.name} was baked more than once: "
            f"{listed(one.weights)}{total}."
        )


def _of_adapter(result: VerifyResult) -> Iterator[str]:
    found = result.comparison
    assert found is not None
    distance = found.total.distance
    if result.holds:
        exact = "exactly" if distance == 0.0 else f"to {distance:.2g}"
        yield f"It holds what its recipe gives, {exact}, in {_modules(len(found.sites))}."
        if result.lost is not None:
            yield (
                "No adapter of these ranks is nearer to what was cut; the relative error is "
                f"{result.lost:.3g}."
            )
        return
    yield "It does not hold what its recipe gives."
    kin = found.kinship
    if kin.kind == "rescaled" and kin.factor is not None:
        yield f"It is {kin.factor:.3g} times that."
    elif result.changed:
        those = sorted(result.changed.items(), key=lambda item: -item[1])
        names = [f"{name} ({_percent(one)})" for name, one in those]
        differ = "differs" if len(those) == 1 else "differ"
        yield f"{_modules(len(those))} {differ}: {listed(names, _NAMED)}."
    if found.only_a:
        yield f"Missing: {_modules(len(found.only_a))}: {listed(list(found.only_a), _NAMED)}."
    if found.only_b:
        more = listed(list(found.only_b), _NAMED)
        yield f"Added: {_modules(len(found.only_b))}: {more}."
    if found.skipped:
        yield f"Not compared: {listed(list(found.skipped), _NAMED)}."


def _modules(count: int) -> str:
    return f"{count} module" if count == 1 else f"{count} modules"


def _percent(share: float) -> str:
    if not math.isfinite(share):
        return "an infinite part"
    return f"{100 * share:.3g} %"
