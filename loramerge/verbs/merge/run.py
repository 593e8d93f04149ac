"""Combine checkpoints of one family into one: open, plan, write, and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loramerge.algebra.weights import Weight, shown_number
from loramerge.errors import in_recipe, listed, spelled
from loramerge.events import Note, Warn
from loramerge.files.dtypes import FLOATS
from loramerge.steps.checkpoints import (
    bytes_of,
    check_output,
    components_of,
    header_of_bases,
    left_out,
)
from loramerge.steps.foreseen import warn
from loramerge.steps.merge_forecast import (
    changes_of,
    survivals_of,
    types_of,
    warned_of,
    why_unknown,
)
from loramerge.steps.merge_forecast import forecast as forecast_of
from loramerge.steps.merge_result import MergeResult, add_figures, add_survivals
from loramerge.steps.outputs import default_name, sum_name
from loramerge.steps.parameters import Context, Verb
from loramerge.steps.prediction import Prediction, predict_checkpoint
from loramerge.steps.provenance import Made
from loramerge.steps.references import Reference
from loramerge.steps.strength import strong_change, strong_weights
from loramerge.steps.taking import (
    require_matches,
    stack_of,
    with_layers,
)
from loramerge.steps.writing import float_type
from loramerge.stream.merge import merge as merge_checkpoints
from loramerge.stream.merge import output_size
from loramerge.stream.merge_plan import MergePlan, plan_merge
from loramerge.verbs.merge.opened import Opened, lineage, made_of, opened
from loramerge.verbs.merge.parameters import Merge

__all__ = ["VERB", "Merge", "MergeResult", "merge"]


def merge(parameters: Merge, context: Context = Context()) -> MergeResult:
    """Merge checkpoints and write the result; a dry run says what that would be, and writes nothing.

    Raises:
        LoramergeError: see `stream.merge.plan_merge` and `stream.merge.merge`.
    """
    parameters = parameters.settled()
    parameters.check()
    parameters, inputs = opened(parameters, context)
    output = _output(parameters, inputs)
    check_output(
        inputs.layout or inputs.first, output, force=parameters.force, suffix=inputs.suffix
    )
    plan = _plan(parameters, inputs)
    result = _result(parameters, output, plan, inputs)
    if plan.skipped:
        text = listed(plan.skipped, 5)
        context.notify(Warn(f"left out, because the first checkpoint lacks them: {text}"))
    for text in (*plan.notes, *left_out(adapter for _, adapter in inputs.models.adapters)):
        context.notify(Note(text))
    for text in strong_weights(parameters.models):
        context.notify(Warn(text))
    made, bases = made_of(parameters, inputs)
    if parameters.dry_run:
        result.touched = changes_of(plan)
        result.size = _predicted(plan, made, inputs, context).size
        _foresee(result, plan, parameters, context)
        return _with_warnings(result, plan, context)
    with header_of_bases(made, bases, strip=context.strip) as (metadata, late):
        entries = {**metadata, **_lineage(inputs, context)}
        found = merge_checkpoints(
            plan,
            output,
            force=parameters.force,
            allow_nonfinite=parameters.allow_nonfinite or context.allow_nonfinite,
            metadata=entries,
            late=late,
            threads=context.threads,
            executor=context.executor,
            notify=context.notify,
        )
    add_figures(result, found)
    result.size = bytes_of(output)
    return _with_warnings(result, plan, context)


def _foresee(result: MergeResult, plan: MergePlan, parameters: Merge, context: Context) -> None:
    """Add what rounding will keep to the result of a dry run, or a note on why nobody can say."""
    if why := _unknown(parameters):
        context.notify(Note(why))
        result.notes.append(why)
        return
    survivals, result.estimated = survivals_of(plan, threads=context.threads, notify=context.notify)
    add_survivals(result, survivals)


def _with_warnings(result: MergeResult, plan: MergePlan, context: Context) -> MergeResult:
    """Return a result after warnings of what rounding takes from it or adds, and of a large change."""
    if result.survived is not None and result.relative_error is not None:
        warn(result.notes, warned_of(plan, result.survived, result.relative_error), context)
    if result.base is not None:
        for text in strong_change(result.moved, result.family):
            context.notify(Warn(text))
    return result


def predict(parameters: Merge, context: Context = Context()) -> Prediction:
    """Predict the result from headers.

    Raises:
        LoramergeError: see `stream.merge.plan_merge`.
    """
    parameters = parameters.settled()
    parameters, inputs = opened(parameters, context)
    plan = _plan(parameters, inputs)
    made, _ = made_of(parameters, inputs)
    return _predicted(plan, made, inputs, context)


def _predicted(plan: MergePlan, made: Made | None, inputs: Opened, context: Context) -> Prediction:
    own = _lineage(inputs, context)
    return predict_checkpoint(
        plan.merged,
        lambda entries: output_size(plan, {**entries, **own}),
        made,
        context,
        inputs=len(inputs.models.checkpoints) + (inputs.base is not None),
    )


def _lineage(inputs: Opened, context: Context) -> dict[str, str]:
    return {} if context.strip else lineage(inputs.models)


def forecast(parameters: Merge, context: Context = Context()) -> dict[str, Any]:
    """Return an estimate of what rounding keeps, as `survival`, or why there is none, as `unknown`.

    See `steps.merge_forecast.forecast`. Its `warnings` say what rounding takes or adds.
    """
    parameters = parameters.settled()
    parameters.check()
    if why := _unknown(parameters):
        return {"survival": None, "unknown": why}
    plan = _plan(*opened(parameters, context))
    found = forecast_of(plan, threads=context.threads, notify=context.notify)
    if found is None:
        return {"survival": None}
    warnings = warned_of(plan, found["kept"], found["relative_error"])
    return {"survival": {**found, "warnings": [spelled(text, in_recipe) for text in warnings]}}


def _unknown(parameters: Merge) -> str | None:
    """Return why nobody can say what rounding will keep, None if that can be measured."""
    return None if parameters.layers else why_unknown(parameters.operation().operator)


def output_path(parameters: Merge, context: Context = Context()) -> Path:
    """Return the path that `merge` writes to, from headers."""
    parameters = parameters.settled()
    parameters.check()
    return _output(*opened(parameters, context))


VERB = Verb(
    "merge",
    Merge,
    "checkpoint",
    merge,
    predict,
    distributes=True,
    large=512 << 20,
    forecast=forecast,
    output_path=output_path,
)


def _plan(parameters: Merge, inputs: Opened) -> MergePlan:
    models = [(model, reference.weight) for reference, model in inputs.models.checkpoints]
    config: Mapping[str, Any] = {}
    if parameters.layers:
        stack = stack_of(parameters.layers, inputs.models, inputs.rules, parameters.dtype)
        models, config = [(stack.checkpoint, Weight())], stack.config
    plan = plan_merge(
        models,
        parameters.operation(),
        base=inputs.base,
        text_encoder=inputs.text_encoder,
        vae=inputs.vae,
        layout=inputs.layout,
        union=parameters.union,
        dtype=float_type(parameters.dtype, FLOATS),
        adapters=[(adapter, reference.weight) for reference, adapter in inputs.models.adapters],
        skip_missing=components_of(parameters.skip_missing),
        config=config,
    )
    if not parameters.layers:
        require_matches(inputs.rules, (site.modules[0] for site in plan.sites()))
    if parameters.vae is not None:
        plan.notes.append(f"the VAE is that of {parameters.vae}")
    return plan


def _output(parameters: Merge, inputs: Opened) -> Path:
    if parameters.output is not None:
        return Path(parameters.output)
    return default_name(sum_name(parameters.models), inputs.suffix)


def _result(
    parameters: Merge,
    output: Path,
    plan: MergePlan,
    inputs: Opened,
) -> MergeResult:
    base, method = inputs.base, parameters.operation()
    references = [reference for reference, _ in inputs.models.checkpoints]
    if plan.rest:
        references = _with_rest(references)
    if parameters.layers:
        references = with_layers(parameters.layers, inputs.models)
    return MergeResult(
        output=str(output),
        dry_run=parameters.dry_run,
        family=plan.first.family_name,
        layouts=plan.first.layouts,
        models=[
            {
                "path": str(one.path),
                "layers" if parameters.layers else "weight": reference.weight_in_words,
            }
            for (_, one), reference in zip(inputs.models.checkpoints, references, strict=True)
        ],
        adapters=[
            {"path": one.label, "weight": reference.weight_in_words}
            for reference, one in inputs.models.adapters
        ],
        base=None if base is None else str(base.path),
        reference=str((base or inputs.first).path),
        method="passthrough" if parameters.layers else method.operator.name,
        scale=method.scale,
        merged=plan.merged,
        united=plan.united,
        dtypes=types_of(plan),
        notes=list(plan.notes),
    )


def _with_rest(models: Sequence[Reference]) -> list[Reference]:
    """Return references of which the first has what the others leave, in words for tables."""
    first, *others = models
    numbers = [one.weight.default for one in others if one.weight == Weight(one.weight.default)]
    plain = len(numbers) == len(others)
    left = shown_number(round(1.0 - sum(numbers), 12)) if plain else "1 without the others'"
    return [replace(first, written=left), *others]
