"""Combine checkpoints of one family into one: open, plan, write, and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loramerge.algebra.weights import Weight, shown_number
from loramerge.checkpoint import Checkpoint
from loramerge.checkpoint.files import CheckpointFiles, find_files
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
from loramerge.steps.inputs import base_path, open_base
from loramerge.steps.merge_forecast import forecast as forecast_of
from loramerge.steps.merge_forecast import types_of, warned_of, why_unknown
from loramerge.steps.merge_result import MergeResult, add_figures
from loramerge.steps.models import Models, Rule, open_models
from loramerge.steps.outputs import default_name, sum_name
from loramerge.steps.parameters import Context, Verb
from loramerge.steps.prediction import Prediction, predict_checkpoint
from loramerge.steps.provenance import (
    FileInput,
    Made,
    Node,
    base_input,
    files_input,
    input_of,
    step_of,
)
from loramerge.steps.references import Reference
from loramerge.steps.strength import strong_change, strong_weights
from loramerge.steps.taking import (
    require_matches,
    rules_in,
    stack_of,
    with_layers,
)
from loramerge.steps.writing import float_type
from loramerge.stream.merge import merge as merge_checkpoints
from loramerge.stream.merge import output_size
from loramerge.stream.merge_plan import MergePlan, plan_merge
from loramerge.verbs.merge.parameters import Merge

__all__ = ["VERB", "Merge", "MergeResult", "merge"]


def merge(parameters: Merge, context: Context = Context()) -> MergeResult:
    """Merge checkpoints and write the result.

    Raises:
        LoramergeError: see `stream.merge.plan_merge` and `stream.merge.merge`.
    """
    parameters = parameters.settled()
    parameters.check()
    parameters, inputs = _opened(parameters, context)
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
    made, bases = _made(parameters, inputs)
    with header_of_bases(made, bases, strip=context.strip) as (metadata, late):
        entries = {**metadata, **({} if context.strip else _lineage(inputs.models))}
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
    if result.survived is not None and result.relative_error is not None:
        for lost in warned_of(plan, result.survived, result.relative_error):
            context.notify(Warn(lost))
            result.notes.append(spelled(lost, in_recipe))
    if parameters.base is not None:
        for text in strong_change(result.moved, result.family):
            context.notify(Warn(text))
    result.size = bytes_of(output)
    return result


def predict(parameters: Merge, context: Context = Context()) -> Prediction:
    """Predict the result from headers.

    Raises:
        LoramergeError: see `stream.merge.plan_merge`.
    """
    parameters = parameters.settled()
    parameters, inputs = _opened(parameters, context)
    plan = _plan(parameters, inputs)
    made, _ = _made(parameters, inputs)
    lineage = {} if context.strip else _lineage(inputs.models)
    return predict_checkpoint(
        plan.merged,
        lambda entries: output_size(plan, {**entries, **lineage}),
        made,
        context,
        inputs=len(inputs.models.checkpoints) + (inputs.base is not None),
    )


def forecast(parameters: Merge, context: Context = Context()) -> dict[str, Any]:
    """Return an estimate of what rounding keeps, as `survival`, or why there is none, as `unknown`.

    See `steps.merge_forecast.forecast`.
    """
    parameters = parameters.settled()
    parameters.check()
    if not parameters.layers and (why := why_unknown(parameters.operation().operator)):
        return {"survival": None, "unknown": why}
    plan = _plan(*_opened(parameters, context))
    return {"survival": forecast_of(plan, threads=context.threads, notify=context.notify)}


def output_path(parameters: Merge, context: Context = Context()) -> Path:
    """Return the path that `merge` writes to, from headers."""
    parameters = parameters.settled()
    parameters.check()
    return _output(*_opened(parameters, context))


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


@dataclass(frozen=True)
class _Opened:
    """The opened inputs of a merge, and the files that its VAE comes from."""

    models: Models
    base: Checkpoint | None
    text_encoder: Checkpoint | None
    layout: Checkpoint | None
    vae: CheckpointFiles | None
    rules: Sequence[Rule] = ()

    @property
    def first(self) -> Checkpoint:
        """The checkpoint whose layout the result has, unless there is another for that."""
        return self.models.checkpoints[0][1]

    @property
    def suffix(self) -> str:
        """The ending of the output, `''` for a folder."""
        return (self.layout or self.first).files.suffix


def _opened(parameters: Merge, context: Context) -> tuple[Merge, _Opened]:
    """Return the inputs, and the parameters with what they take from one input in its weights."""

    def other(name: str | None) -> Checkpoint | None:
        return None if name is None else open_base(name, context)

    models = open_models(parameters.models, context, whole=not parameters.skip_unknown)
    vae = None if parameters.vae is None else find_files(base_path(parameters.vae, context))
    rules = rules_in(parameters.take, models.references)
    if not parameters.layers:
        models = models.taking(rules, on_base=parameters.base is not None)
        parameters = replace(parameters, take=())
    parameters = replace(parameters, models=tuple(models.references))
    base, text_encoder = other(parameters.base), other(parameters.text_encoder)
    layout = other(parameters.layout)
    return parameters, _Opened(models, base, text_encoder, layout, vae, rules)


def _plan(parameters: Merge, inputs: _Opened) -> MergePlan:
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


def _output(parameters: Merge, inputs: _Opened) -> Path:
    if parameters.output is not None:
        return Path(parameters.output)
    return default_name(sum_name(parameters.models), inputs.suffix)


def _made(parameters: Merge, inputs: _Opened) -> tuple[Made | None, list[FileInput]]:
    """Return the step for the header of the result, and the checkpoints that it is made from."""
    given: dict[tuple[str, str], Node | None] = {
        ("models", reference.name): base_input(one) for reference, one in inputs.models.checkpoints
    }
    others = {
        parameters.base: inputs.base,
        parameters.text_encoder: inputs.text_encoder,
        parameters.layout: inputs.layout,
    }
    for name, one in others.items():
        if name is not None and one is not None:
            given["bases", name] = given.get(("models", name)) or base_input(one)
    if parameters.vae is not None and inputs.vae is not None:
        path = inputs.vae.root or inputs.vae.weights[0].path
        given.setdefault(("bases", parameters.vae), files_input(path, inputs.vae))
    files = {id(node): node for node in given.values() if isinstance(node, FileInput)}
    bases = list(files.values())
    for reference, adapter in inputs.models.adapters:
        given["adapters", reference.name] = input_of(adapter)
    return step_of("merge", parameters, given), bases


def _lineage(models: Models) -> dict[str, str]:
    """Return the entry by which programs list what a checkpoint was merged from."""
    if not models.checkpoints[0][1].candidates:
        return {}
    paths = [model.path.name for _, model in models.checkpoints]
    paths += [Path(adapter.label).name for _, adapter in models.adapters]
    names = (name.encode("utf-8", "replace").decode() for name in paths)
    return {"modelspec.merged_from": ", ".join(names)}


def _result(
    parameters: Merge,
    output: Path,
    plan: MergePlan,
    inputs: _Opened,
) -> MergeResult:
    base, method = inputs.base, parameters.operation()
    references = [reference for reference, _ in inputs.models.checkpoints]
    if plan.rest:
        references = _with_rest(references)
    if parameters.layers:
        references = with_layers(parameters.layers, inputs.models)
    return MergeResult(
        output=str(output),
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
