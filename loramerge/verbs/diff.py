"""diff: how two adapters differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from loramerge.adapter import Adapter
from loramerge.adapter.metadata import training_metadata
from loramerge.algebra.compare import Comparison, compare, verdict
from loramerge.algebra.health import examine
from loramerge.algebra.kinship import ROUNDED, Kinship
from loramerge.algebra.moments import Moments
from loramerge.errors import AdapterError, FamilyError, LoramergeError
from loramerge.parameters import Bounds
from loramerge.steps.inputs import adapter_of, weighted
from loramerge.steps.parameters import Context, Doc, Verb
from loramerge.steps.prediction import Prediction, predict_report
from loramerge.steps.references import Reference
from loramerge.steps.shown import Shown

__all__ = ["VERB", "Diff", "DiffResult", "diff", "diff_adapters"]


@dataclass(frozen=True, kw_only=True)
class Diff:
    """Compare the changes (ΔW) of two adapters of any dialect and rank."""

    a: Annotated[Reference, Doc("First adapter.", ("A",), None, "adapters")]
    b: Annotated[Reference, Doc("Second adapter.", ("B",), None, "adapters")]
    exit_code: Annotated[
        bool,
        Doc("End with exit code 1 if the two differ by more than the tolerance.", recipe=False),
    ] = False
    tolerance: Annotated[
        float,
        Bounds(ge=0),
        Doc("Relative distance up to which the two count as the same; 0.002 is rounding to half."),
    ] = ROUNDED


@dataclass(repr=False)
class DiffResult(Shown):
    """A verdict in words, and the figures behind it.

    Args:
        checks: whether a difference ends the command with exit code 1.
        measured: norms and spectra of the modules of both, for pages and pictures.
    """

    headline = ("verdict", "differs")
    reported_as = "diff"

    a: str
    b: str
    verdict: str
    differs: bool
    comparison: Comparison
    facts: dict[str, tuple[Any, Any]]
    metadata: dict[str, tuple[str | None, str | None]]
    checks: bool = False
    measured: tuple[list[dict[str, Any]], list[dict[str, Any]]] | None = None

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        return int(self.checks and self.differs)

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        found = self.comparison
        return {
            "outputs": [],
            "a": self.a,
            "b": self.b,
            "verdict": self.verdict,
            "differs": self.differs,
            "modules": len(found.sites),
            "only_a": list(found.only_a),
            "only_b": list(found.only_b),
            "not_compared": list(found.skipped),
            "relation": _relation(found.kinship),
            "total": _figures(found.total),
            "shared": _figures(found.shared) | _spaces(found),
            "blocks": {
                name: _figures(m) | _spaces(found, name) for name, m in found.blocks().items()
            },
            "facts": {name: list(pair) for name, pair in self.facts.items()},
            "metadata": {name: list(pair) for name, pair in self.metadata.items()},
        }


def _figures(moments: Moments) -> dict[str, float | None]:
    return {
        "cosine": moments.cosine,
        "relative_distance": moments.distance,
        "best_fit": moments.fit,
        "norm_ratio": moments.ratio,
        "norm_a": moments.aa**0.5,
        "norm_b": moments.bb**0.5,
    }


def _relation(found: Kinship) -> dict[str, Any]:
    return {
        "kind": found.kind,
        "factor": found.factor,
        "smaller": found.smaller,
        "ranks": None if found.ranks is None else list(found.ranks),
        "lost": found.lost,
    }


def _spaces(found: Comparison, block: str | None = None) -> dict[str, float | None]:
    """Return the overlap of the output and of the input spaces."""
    overlap = found.overlap(block)
    return {"output_overlap": overlap.outputs, "input_overlap": overlap.inputs}


def diff(parameters: Diff, context: Context = Context()) -> DiffResult:
    """Run the verb.

    Raises:
        FamilyError: if the two belong to different families.
        ShapeError: if a shared module has two shapes.
    """
    a, b = (
        weighted(adapter_of(reference, context), reference.weight)
        for reference in (parameters.a, parameters.b)
    )
    result = diff_adapters(a, b, context, tolerance=parameters.tolerance)
    result.checks = parameters.exit_code
    return result


def predict(parameters: Diff, context: Context = Context()) -> Prediction:
    """Predict what comparing takes."""
    return predict_report([adapter_of(r, context) for r in (parameters.a, parameters.b)])


VERB = Verb("diff", Diff, "report", diff, predict)


def diff_adapters(
    a: Adapter,
    b: Adapter,
    context: Context = Context(),
    *,
    tolerance: float = ROUNDED,
) -> DiffResult:
    """Compare two loaded adapters; see `diff`."""
    a.require_sound()
    b.require_sound()
    names = a.info.detection.name, b.info.detection.name
    families = [set(x.info.detection.candidates) for x in (a, b)]
    if all(families) and not families[0] & families[1]:
        raise FamilyError(
            "the two adapters belong to different families and have no common modules",
            file=f"{a.label} and {b.label}",
            found=f"{names[0]} and {names[1]}",
        )
    try:
        found = compare(a, b, threads=context.threads, notify=context.notify)
    except LoramergeError as error:
        error.file = error.file or f"{a.label} and {b.label}"
        raise
    if not found.sites and not found.only_a and not found.only_b:
        raise AdapterError(
            "nothing in the two can be compared",
            file=f"{a.label} and {b.label}",
            found=f"kinds {', '.join({**a.kinds(), **b.kinds()})}",
        )
    facts = {
        name: (of(a), of(b))
        for name, of in (
            ("family", lambda x: x.info.detection.name),
            ("dialect", lambda x: x.info.dialect),
            ("kinds", lambda x: x.kinds()),
            ("modules", lambda x: len(x.deltas)),
            ("ranks", lambda x: x.ranks()),
            ("dtypes", lambda x: x.dtypes()),
            ("embeddings", lambda x: sorted(x.embeddings)),
        )
    }
    differs = (
        found.total.distance > tolerance
        or bool(found.skipped)
        or facts["embeddings"][0] != facts["embeddings"][1]
    )
    one, two = (training_metadata(x.info.metadata) for x in (a, b))
    metadata = {
        key: (one.get(key), two.get(key))
        for key in sorted({**one, **two})
        if one.get(key) != two.get(key)
    }
    result = DiffResult(a.label, b.label, verdict(found), differs, found, facts, metadata)
    if context.details:
        first, second = (
            examine(one, spectra=True, threads=context.threads, notify=context.notify).table
            for one in (a, b)
        )
        result.measured = first, second
    return result
