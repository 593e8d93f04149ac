"""mix: a weighted combination of adapters, exact unless ranks are lowered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from loramerge.adapter import Adapter
from loramerge.adapter.encode import choose_dialect
from loramerge.adapter.metadata import trigger_words
from loramerge.adapter.sites import without_values
from loramerge.algebra.arrays import check_device
from loramerge.algebra.compat import mix_like
from loramerge.algebra.mix import mix as mix_adapters
from loramerge.algebra.mix import mixed_frame
from loramerge.algebra.outcome import Combined, uncut
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.terms import require_base_free, terms_of
from loramerge.algebra.weights import Weight
from loramerge.errors import UsageError
from loramerge.events import Note
from loramerge.steps.adapters import AdapterResult, budget, target_of, whole_size, written
from loramerge.steps.inputs import adapter_of, at_base, open_base
from loramerge.steps.outputs import sum_name, weighted_shapes
from loramerge.steps.parameters import Context, Doc, Verb
from loramerge.steps.prediction import Prediction, predict_adapter
from loramerge.steps.provenance import Made, Node, base_input, input_of, step_of
from loramerge.steps.references import Reference, with_weight_files
from loramerge.steps.writing import BaseParameter, RankParameters, WeightParameters, WriteParameters

__all__ = ["VERB", "Mix", "MixResult", "mix", "mixed"]


@dataclass(frozen=True, kw_only=True)
class Mix(WeightParameters, RankParameters, BaseParameter, WriteParameters):
    """Combine adapters with weights, exactly.

    The sum is taken of what the adapters change (ΔW), so ranks, alphas and dialects may differ, and
    `mix a:0.5` is exactly half of a. Nothing is cut unless a rank option asks for it.
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
    method: Annotated[
        Literal["linear"], Doc("How the weighted changes are combined: `linear` is their sum.")
    ] = "linear"
    compat: Annotated[
        Literal["kohya", "kohya-concat", "peft-linear"] | None,
        Doc(
            "Give what another tool's merge of these gives, for old results: merge_lora.py of "
            "sd-scripts, the same with --concat, or PEFT's linear combination."
        ),
    ] = None
    embeddings: Annotated[
        Literal["all", "first", "none"],
        Doc(
            "Textual-inversion embeddings in the files: carry all (two of one name are an error), "
            "let the first adapter win, or leave them out."
        ),
    ] = "all"

    def check(self) -> None:
        """Refuse parameters that cannot be meant, before anything is opened.

        Raises:
            UsageError: naming what is wrong.
        """
        self.target(), self.float_type()
        if self.rule(1).truncates and self.compat is not None:
            raise UsageError(
                "compat gives another tool's result as it is, and no criterion cuts it",
                hint="resize the result in a second step",
            )
        if not self.adapters:
            raise UsageError("mix needs at least one adapter")

    def settled(self) -> Mix:
        """Return the same with the weights of files in place."""
        return replace(
            self, adapters=tuple(with_weight_files(self.adapters, self.weights)), weights=()
        )


@dataclass(kw_only=True)
class MixResult(AdapterResult):
    """What was mixed, what that lost, and what of the inputs is in it."""

    inputs: list[dict[str, Any]]
    unknown_keys: dict[str, list[str]]

    def json(self) -> dict[str, Any]:
        return super().json() | {"inputs": self.inputs, "unknown_keys": self.unknown_keys}


Inputs = list[tuple[Adapter, Reference]]


def mix(parameters: Mix, context: Context = Context()) -> MixResult:
    """Mix and write.

    Raises:
        LoramergeError: see `algebra.mix.mix` and `adapter.encode.encode`.
    """
    parameters = parameters.settled()
    parameters.check()
    inputs = _inputs(parameters, context)
    stem = "-".join(filter(None, (sum_name(parameters.adapters), parameters.rank_label())))
    target = target_of(parameters, [adapter for adapter, _ in inputs], stem)
    result = written(_mixed(inputs, parameters, context), target, context)
    context.notify(Note("use it at weight 1: the weights are in the file"))
    return result


def mixed(parameters: Mix, context: Context = Context()) -> MixResult:
    """Mix without writing.

    Raises:
        LoramergeError: see `algebra.mix.mix`.
    """
    parameters = parameters.settled()
    parameters.check()
    return _mixed(_inputs(parameters, context), parameters, context)


def _inputs(parameters: Mix, context: Context) -> Inputs:
    return [(adapter_of(reference, context), reference) for reference in parameters.adapters]


def _mixed(inputs: Inputs, parameters: Mix, context: Context) -> MixResult:
    adapters, given = _given(inputs, parameters, context)
    weighted = [(a, r.weight) for a, (_, r) in zip(adapters, inputs, strict=True)]
    rule = parameters.rule(whole_size(adapters, parameters) if parameters.max_size else 0)
    if rule.max_size is not None:
        parameters = replace(parameters, max_size=str(rule.max_size))
    made = step_of("mix", parameters, given)
    adapter, combined = _summed(weighted, rule, parameters, made, context)
    if made is not None:
        adapter.made_by(made)
    return MixResult(
        **AdapterResult.figures(adapter, combined),
        inputs=[_described(a, r) for a, r in inputs],
        unknown_keys={
            a.label: list(a.info.account.unknown) for a in adapters if a.info.account.unknown
        },
    )


def _given(
    inputs: Inputs, parameters: Mix, context: Context
) -> tuple[list[Adapter], dict[tuple[str, str], Node | None]]:
    """Return the adapters, at the base if there is one, and what the step is given."""
    given: dict[tuple[str, str], Node | None] = {
        ("adapters", reference.name): input_of(adapter) for adapter, reference in inputs
    }
    base = None
    if parameters.base is not None:
        base = open_base(parameters.base, context)
        given["bases", parameters.base] = base_input(base)
    return [at_base(adapter, base) for adapter, _ in inputs], given


def _summed(
    inputs: Sequence[tuple[Adapter, Weight]],
    rule: RankRule,
    parameters: Mix,
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
    target = choose_dialect(parameters.target(), adapters)
    if rule.max_size is not None:
        frame = mixed_frame(adapters, parameters.embeddings)
        shapes = weighted_shapes(inputs, target)
        sizes = budget(adapters, frame, shapes, parameters, made, context)
    return mix_adapters(
        inputs,
        rule,
        embeddings=parameters.embeddings,
        sizes=sizes,
        target=target,
        device=check_device(context.device),
        precise=parameters.float_type() == "F64",
        threads=context.threads,
        notify=context.notify,
    )


def predict(parameters: Mix, context: Context = Context()) -> Prediction:
    """Foretell the result from headers."""
    parameters = parameters.settled()
    inputs = _inputs(parameters, context)
    adapters, given = _given(inputs, parameters, context)
    target = choose_dialect(parameters.target(), adapters)
    weighted = [(a, r.weight) for a, (_, r) in zip(adapters, inputs, strict=True)]
    rule = parameters.rule(whole_size(adapters, parameters))
    if parameters.compat is None:
        require_base_free(weighted, rule)
    terms = terms_of([(without_values(a, target), weight) for a, weight in weighted], target)
    if parameters.compat in ("kohya", "peft-linear"):
        terms = {site: deltas[:1] for site, deltas in terms.items()}
    made = step_of("mix", parameters, given)
    frame = mixed_frame(adapters, parameters.embeddings)
    return predict_adapter(adapters, frame, terms, rule, parameters, made, context)


VERB = Verb("mix", Mix, "adapter", mix, predict, mixed)


def _described(adapter: Adapter, reference: Reference) -> dict[str, Any]:
    return {
        "adapter": reference.label,
        "path": adapter.info.path,
        "weight": reference.written,
        "ranks": adapter.ranks(),
        "trigger_words": trigger_words(adapter.info.metadata),
    }
