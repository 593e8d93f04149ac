"""mix: combine adapters with weights by a merge operator, by default to the exact sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from loramerge.adapter import Adapter
from loramerge.adapter.metadata import trigger_words
from loramerge.adapter.opaque import commonly_named
from loramerge.adapter.sites import without_values
from loramerge.algebra.arrays import check_device
from loramerge.algebra.budget import Cut
from loramerge.algebra.compat import mix_like
from loramerge.algebra.fair import check_fair
from loramerge.algebra.interference import Interference, interference
from loramerge.algebra.method import Method
from loramerge.algebra.mix import common_detection, frame_of, method_on, require_one_base
from loramerge.algebra.mix import mix as mix_adapters
from loramerge.algebra.outcome import Combined, uncut
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.terms import require_base_free, terms_of
from loramerge.algebra.weights import Weight
from loramerge.errors import Setting, UsageError
from loramerge.events import Note, Warn
from loramerge.files.spool import spool_for
from loramerge.steps.adapters import AdapterResult, budget, whole_size, write_result
from loramerge.steps.methods import AdapterMethodParameters
from loramerge.steps.outputs import Output, named_output, output_of, sum_name
from loramerge.steps.parameters import Context, Doc, Explained, Verb
from loramerge.steps.prediction import Prediction, predict_adapter
from loramerge.steps.provenance import Made
from loramerge.steps.references import Reference, with_weight_files
from loramerge.steps.sizes import weighted_shapes
from loramerge.steps.source import Source, open_source
from loramerge.steps.strength import strong_weights
from loramerge.steps.writing import (
    BaseParameter,
    FairParameter,
    RankParameters,
    UnknownParameter,
    WeightParameters,
    WriteParameters,
)
from loramerge.stream.seconds import halves_apart

__all__ = ["VERB", "Mix", "MixResult", "compute_mix", "mix"]


@dataclass(frozen=True, kw_only=True)
class Mix(
    AdapterMethodParameters,
    WeightParameters,
    FairParameter,
    RankParameters,
    BaseParameter,
    UnknownParameter,
    WriteParameters,
):
    """Combine adapters with weights, exactly.

    An ADAPTER is a file or a name, with its weight: `style:0.7`; without one the weight is 1. What is
    summed is the change that each makes to the model (ΔW), so ranks, alphas and dialects may differ,
    and `mix a:0.5` is exactly half of a. No rank is lowered without a rank option.
    `loramerge operators` lists the other methods.
    """

    adapters: Annotated[
        tuple[Reference, ...],
        Doc(
            "Adapters with weights: NAME:0.7, NAME:unet=0.8:te=0, NAME:OUTALL, NAME:1,0,0,… or a "
            "pasted <lora:NAME:0.8>.",
            ("ADAPTER",),
            completes="adapters",
        ),
    ]
    compat: Annotated[
        Literal["kohya", "kohya-concat", "peft-linear"] | None,
        Doc(
            "Reproduce the merge of another tool, for old results: merge_lora.py of sd-scripts, "
            "the same with --concat, or PEFT's linear combination."
        ),
    ] = None
    embeddings: Annotated[
        Literal["all", "first", "none"],
        Doc(
            "Textual-inversion embeddings in the files: keep all (two of one name are an "
            "error), keep those of the first adapter that has them, or leave them out."
        ),
    ] = "all"
    explain: Annotated[
        bool,
        Doc(
            "Show how the adapters relate: cosines, shared spaces, and the norm of the result beside "
            "its parts, per block.",
            recipe=False,
        ),
    ] = False

    def check(self) -> None:
        """Refuse parameters that contradict each other, before anything is opened.

        Raises:
            UsageError: naming the problem.
        """
        self.target(), self.float_type()
        if self.rule(1).truncates and self.compat is not None:
            raise UsageError(
                "compat reproduces another tool's result, and a rank option would change it",
                hint="resize the result in a second step",
            )
        if not self.operation().is_sum and self.compat is not None:
            raise UsageError(
                "compat excludes method, scale and correction: it reproduces the result of another tool",
                hint="give one of the two",
            )
        if not self.adapters:
            raise UsageError("mix needs at least one adapter")
        self.operation().require_count(len(self.adapters))
        if self.fair:
            self._check_fair()

    def _check_fair(self) -> None:
        rule = self.rule(1)
        if not rule.truncates:
            raise UsageError(
                "fair is a way to lower ranks, and no rank option is given",
                hint=("give ", Setting("rank", 8), " or ", Setting("max_size", "20MB")),
            )
        check_fair(Cut(rule))

    def settled(self) -> Mix:
        """Return the same with the weights of files in place, and no setting that is a default."""
        return replace(
            self.with_own_settings(),
            adapters=tuple(with_weight_files(self.adapters, self.weights)),
            weights=(),
        )


@dataclass(kw_only=True, repr=False)
class MixResult(AdapterResult):
    """A mix: the adapter, its errors, and its inputs.

    Args:
        method, correction, scale: the operator, what corrected its result, and its final scale.
        factors: the least and the greatest factor of the final scale over the modules.
        compat: the tool whose result this is, None for our own.
        interference: how the inputs relate, where that was asked for.
    """

    inputs: list[dict[str, Any]]
    unknown_keys: dict[str, list[str]]
    method: str
    correction: str | None
    scale: str | float
    factors: tuple[float, float]
    compat: str | None = None
    interference: Interference | None = None

    def json(self) -> dict[str, Any]:
        least, most = self.factors
        found = super().json()
        if self.interference is not None:
            found["interference"] = self.interference.json()
        if self.correction is not None:
            found["correction"] = self.correction
        return found | {
            "method": self.method,
            "scale": {"rule": self.scale, "least": least, "most": most},
            "inputs": self.inputs,
            "unknown_keys": self.unknown_keys,
        }


def mix(parameters: Mix, context: Context = Context()) -> MixResult:
    """Mix and write.

    Raises:
        LoramergeError: see `algebra.mix.mix` and `adapter.encode.encode`.
    """
    parameters = parameters.settled()
    parameters.check()
    source = _opened(parameters, context)
    output = _output(parameters, source).checked()
    result = write_result(_compute(source, parameters, output, context), output, context)
    context.notify(Note("Load this file at strength 1: the weights are already applied."))
    return result


def output_path(parameters: Mix, context: Context = Context()) -> Path:
    """Return the path that `mix` writes to, from headers."""
    parameters = parameters.settled()
    parameters.check()
    return _output(parameters, _opened(parameters, context)).place


def _output(parameters: Mix, source: Source) -> Output:
    stem = "-".join(filter(None, (sum_name(parameters.adapters), parameters.rank_label())))
    return named_output(parameters, source.adapters, stem)


def compute_mix(parameters: Mix, context: Context = Context()) -> MixResult:
    """Mix without writing.

    Raises:
        LoramergeError: see `algebra.mix.mix`.
    """
    parameters = parameters.settled()
    parameters.check()
    source = _opened(parameters, context)
    return _compute(source, parameters, output_of(parameters, source.adapters), context)


def _opened(parameters: Mix, context: Context) -> Source:
    """Open the adapters, and refuse those that do not belong together before anything else."""
    source = open_source(
        parameters.adapters, parameters.base, context, skip_unknown=parameters.skip_unknown
    )
    if parameters.base is None:
        require_one_base(source.adapters)
    common_detection([adapter.require_sound() for adapter in source.adapters])
    found, notes = halves_apart(
        [(a, r.weight) for a, r in zip(source.adapters, source.references, strict=True)]
    )
    for text in notes:
        context.notify(Note(text))
    return replace(
        source,
        adapters=tuple(adapter for adapter, _ in found),
        references=tuple(
            replace(reference, weight=weight)
            for reference, (_, weight) in zip(source.references, found, strict=True)
        ),
    )


def _compute(source: Source, parameters: Mix, output: Output, context: Context) -> MixResult:
    adapters = source.at_base()
    weighted = [(a, r.weight) for a, r in zip(adapters, source.references, strict=True)]
    rule = parameters.rule(whole_size(adapters, parameters) if parameters.max_size else 0)
    if rule.max_size is not None:
        parameters = replace(parameters, max_size=str(rule.max_size))
    made = source.step("mix", parameters)
    adapter, combined = _summed(weighted, rule, parameters, output, made, context)
    if made is not None:
        adapter = adapter.with_deltas(adapter.deltas, made=made)
    gain = _gain(parameters.operation())
    for text in strong_weights(source.references, adapters, adapter, gain=gain):
        context.notify(Warn(text))
    explained = None
    if parameters.explain or context.details:
        explained = interference(
            terms_of(weighted, output.dialect),
            adapter,
            len(adapters),
            threads=context.threads,
            notify=context.notify,
        )
    return MixResult(
        **AdapterResult.figures(adapter, combined),
        method=parameters.method,
        correction=parameters.correction,
        scale=parameters.operation().scale,
        factors=combined.scales,
        inputs=[
            _described(a, r, combined.losses.get(place))
            for place, (a, r) in enumerate(zip(source.adapters, source.references, strict=True))
        ],
        unknown_keys={
            a.label: list(a.info.account.unknown) for a in adapters if a.info.account.unknown
        },
        compat=parameters.compat,
        interference=explained,
    )


def _gain(method: Method) -> float | None:
    """Return how much louder than the sum of its inputs a result can be, None if that is not known."""
    if method.scale == "norm-match":
        return 1.0
    if not (method.operator.is_sum and method.correction is None):
        return None
    return abs(method.scale) if isinstance(method.scale, float) else 1.0


def _summed(
    inputs: Sequence[tuple[Adapter, Weight]],
    rule: RankRule,
    parameters: Mix,
    output: Output,
    made: Made | None,
    context: Context,
) -> tuple[Adapter, Combined]:
    if parameters.compat is not None:
        found = mix_like(
            parameters.compat, inputs, embeddings=parameters.embeddings, notify=context.notify
        )
        return found, uncut(found)
    sizes = None
    adapters = [adapter for adapter, _ in inputs]
    if rule.max_size is not None:
        frame = frame_of(adapters, parameters.embeddings)
        shapes = weighted_shapes(inputs, output.dialect)
        sizes = budget(frame, shapes, output, made, context)
    return mix_adapters(
        inputs,
        rule,
        embeddings=parameters.embeddings,
        fair=parameters.fair,
        sizes=sizes,
        target=output.dialect,
        method=parameters.operation(),
        device=check_device(context.device),
        precise=output.precise,
        threads=context.threads,
        keep=spool_for(output.path),
        notify=context.notify,
    )


def predict(parameters: Mix, context: Context = Context()) -> Prediction:
    """Predict the result from headers."""
    parameters = parameters.settled()
    source = _opened(parameters, context)
    output = output_of(parameters, source.adapters)
    adapters = commonly_named(source.at_base())
    weighted = [(a, r.weight) for a, r in zip(adapters, source.references, strict=True)]
    rule = parameters.rule(whole_size(adapters, parameters))
    if parameters.compat is None:
        require_base_free(weighted, rule)
    method = parameters.operation()
    shadows = [(without_values(adapter, output.dialect), weight) for adapter, weight in weighted]
    terms = terms_of(shadows, output.dialect, one_weight=not method.is_sum)
    if parameters.compat in ("kohya", "peft-linear"):
        terms = {site: found[:1] for site, found in terms.items()}
    frame = frame_of(adapters, parameters.embeddings)
    made = source.step("mix", parameters)
    found = predict_adapter(frame, terms, rule, output, made, context, method=method)
    found.remarks += method_on(frame, terms, method).described(terms)
    found.remarks += strong_weights(parameters.adapters)
    return found


def explain(parameters: Mix, context: Context = Context()) -> Explained:
    """Return how the inputs relate; only other methods than the plain sum are mixed for that.

    Raises:
        LoramergeError: see `algebra.mix.mix`.
    """
    parameters = parameters.settled()
    parameters.check()
    whole = not parameters.rule(1).truncates and parameters.compat is None
    if not (whole and parameters.operation().is_sum):
        result = compute_mix(replace(parameters, explain=True), context)
        assert result.interference is not None
        return Explained(tuple(one["adapter"] for one in result.inputs), result.interference)
    source = _opened(parameters, context)
    adapters = commonly_named(source.at_base())
    weighted = [(a, r.weight) for a, r in zip(adapters, source.references, strict=True)]
    require_base_free(weighted, parameters.rule(1))
    found = interference(
        terms_of(weighted, output_of(parameters, source.adapters).dialect),
        1.0,
        len(adapters),
        known=None if context.kept is None else context.kept.figures,
        threads=context.threads,
        notify=context.notify,
    )
    return Explained(tuple(reference.label for reference in source.references), found)


VERB = Verb(
    "mix",
    Mix,
    "adapter",
    mix,
    predict,
    compute_mix,
    uses_device=True,
    explain=explain,
    output_path=output_path,
)


def _described(adapter: Adapter, reference: Reference, lost: float | None) -> dict[str, Any]:
    """Return an input; `lost` is the share of its norm that a fair mix loses."""
    found = {} if lost is None else {"relative_error": lost}
    return found | {
        "adapter": reference.label,
        "path": adapter.info.path,
        "weight": reference.weight_in_words,
        "ranks": adapter.ranks(),
        "trigger_words": trigger_words(adapter.info.metadata),
    }
