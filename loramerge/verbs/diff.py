"""diff: how two adapters, or two checkpoints, differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from loramerge.adapter import Adapter
from loramerge.adapter.metadata import training_metadata
from loramerge.algebra.compare import Comparison, compare, verdict
from loramerge.algebra.health import examine
from loramerge.algebra.kinship import ROUNDED, Kinship
from loramerge.algebra.moments import Moments
from loramerge.checkpoint import Checkpoint
from loramerge.errors import AdapterError, FamilyError, FormatError, LoramergeError
from loramerge.parameters import Bounds
from loramerge.steps.checkpoint_diff import CheckpointDiff, DiffResult, diff_checkpoints
from loramerge.steps.inputs import model_of, weighted
from loramerge.steps.parameters import Context, Doc, Verb
from loramerge.steps.prediction import Prediction, predict_reading, predict_report
from loramerge.steps.references import Reference

__all__ = ["VERB", "AdapterDiff", "CheckpointDiff", "Diff", "DiffResult", "diff", "diff_adapters"]


@dataclass(frozen=True, kw_only=True)
class Diff:
    """Compare the changes (ΔW) of two adapters of any dialect and rank, or two checkpoints.

    The checkpoints are of one family, in any layouts and types. Both are read once, in blocks; tensors
    of the same bytes need no computing.
    """

    a: Annotated[Reference, Doc("First adapter or checkpoint.", ("A",), None, "models")]
    b: Annotated[Reference, Doc("Second adapter or checkpoint.", ("B",), None, "models")]
    exit_code: Annotated[
        bool,
        Doc("End with exit code 1 if the two differ by more than the tolerance.", recipe=False),
    ] = False
    tolerance: Annotated[
        float,
        Bounds(ge=0),
        Doc(
            "Relative distance up to which the two count as the same; 0.002 is rounding to half. For "
            "checkpoints it applies to each tensor; unless it is 0, tensors that differ only by "
            "rounding to their types count as the same, too."
        ),
    ] = ROUNDED


@dataclass(repr=False, kw_only=True)
class AdapterDiff(DiffResult):
    """The comparison of two adapters.

    Args:
        measured: norms and spectra of the modules of both, for pages and pictures.
    """

    reported_as = "diff"

    comparison: Comparison
    measured: tuple[list[dict[str, Any]], list[dict[str, Any]]] | None = None

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
    """Return the alignment of the output and of the input spaces."""
    overlap = found.overlap(block)
    return {"output_alignment": overlap.outputs, "input_alignment": overlap.inputs}


def diff(parameters: Diff, context: Context = Context()) -> DiffResult:
    """Run the verb.

    Raises:
        FamilyError: if the two belong to different families.
        ShapeError: if a shared module has two shapes.
    """
    a, b = _opened(parameters, context)
    if isinstance(a, Adapter) and isinstance(b, Adapter):
        one, two = weighted(a, parameters.a.weight), weighted(b, parameters.b.weight)
        result: DiffResult = diff_adapters(one, two, context, tolerance=parameters.tolerance)
    elif isinstance(a, Adapter) or isinstance(b, Adapter):
        adapter, checkpoint = (a, b) if isinstance(a, Adapter) else (b, a)
        assert isinstance(adapter, Adapter) and isinstance(checkpoint, Checkpoint)
        raise FormatError(
            "this is a checkpoint, and cannot be compared with an adapter",
            file=checkpoint.path,
            found=f"the adapter {adapter.label}",
            hint="`loramerge verify CHECKPOINT --base BASE --lora ADAPTER` finds one in the other",
        )
    else:
        result = diff_checkpoints(a, b, context, tolerance=parameters.tolerance)
    result.checks = parameters.exit_code
    return result


def _opened(parameters: Diff, context: Context) -> list[Adapter | Checkpoint]:
    return [model_of(reference, context) for reference in (parameters.a, parameters.b)]


def predict(parameters: Diff, context: Context = Context()) -> Prediction:
    """Predict what comparing takes."""
    opened = _opened(parameters, context)
    found = predict_report([one for one in opened if isinstance(one, Adapter)])
    return predict_reading(found, [one.size for one in opened if not isinstance(one, Adapter)])


VERB = Verb("diff", Diff, "report", diff, predict)


def diff_adapters(
    a: Adapter,
    b: Adapter,
    context: Context = Context(),
    *,
    tolerance: float = ROUNDED,
) -> AdapterDiff:
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
    result = AdapterDiff(
        a=a.label,
        b=b.label,
        verdict=verdict(found),
        differs=differs,
        facts=facts,
        metadata=metadata,
        comparison=found,
    )
    if context.details:
        first, second = (
            examine(one, spectra=True, threads=context.threads, notify=context.notify).table
            for one in (a, b)
        )
        result.measured = first, second
    return result
