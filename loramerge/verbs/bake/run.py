"""Add adapters to a checkpoint: open, plan, write, and report what rounding kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from loramerge.adapter import Adapter
from loramerge.checkpoint import Checkpoint, open_checkpoint
from loramerge.checkpoint.conversion import storing_of
from loramerge.errors import Message, Setting, UsageError, in_recipe, listed, spelled
from loramerge.events import Note, Warn
from loramerge.files.dtypes import FLOATS, PLAIN_FLOATS
from loramerge.steps.adding import named_adapters, opened_adapters, step_with, write_plan
from loramerge.steps.bake_result import (
    BakeResult,
    add_forecast,
    add_survival,
    described,
    grown,
    storage_of,
)
from loramerge.steps.checkpoints import (
    bytes_of,
    check_output,
    components_of,
    default_checkpoint,
    left_out,
    require_once,
)
from loramerge.steps.foreseen import warn
from loramerge.steps.inputs import base_path, open_base
from loramerge.steps.loss import forecast as forecast_of
from loramerge.steps.loss import require_kept, warned_of
from loramerge.steps.outputs import sum_name
from loramerge.steps.parameters import Context, Verb
from loramerge.steps.prediction import Prediction, predict_checkpoint
from loramerge.steps.provenance import (
    FileInput,
    Made,
    base_input,
)
from loramerge.steps.strength import strong_change, strong_weights
from loramerge.steps.writing import float_type
from loramerge.stream.bake import output_size
from loramerge.stream.drift import NO_DRIFT, by_block, drift
from loramerge.stream.edits import BakePlan
from loramerge.stream.on_grid import WAYS
from loramerge.stream.plan import plan_bake
from loramerge.stream.survival import Survival, rounding_of, totals_of
from loramerge.verbs.bake.parameters import Bake

__all__ = ["VERB", "Bake", "BakeResult", "bake"]


def bake(parameters: Bake, context: Context = Context()) -> BakeResult:
    """Bake adapters into a checkpoint and write it.

    Raises:
        LoramergeError: see `stream.plan.plan_bake` and `stream.bake.bake`.
    """
    parameters.check()
    parameters = parameters.settled()
    checkpoint = open_base(parameters.base, context)
    output = _output(parameters, checkpoint)
    suffix = _suffix(parameters, checkpoint)
    check_output(checkpoint, output, force=parameters.force, suffix=suffix)
    adapters = _opened(parameters, context)
    plan = _plan(parameters, checkpoint, adapters)
    result = _result(parameters, output, plan, adapters)
    _notify(plan, adapters, context)
    for text in strong_weights(parameters.adapters):
        context.notify(Warn(text))
    if parameters.trained_on is not None:
        _add_drift(result, adapters, checkpoint, parameters.trained_on, context)
    base, seed = base_input(checkpoint), _seed(parameters)
    made = _made(parameters, base, adapters)
    require_once(base, made, context, again=parameters.allow_again)
    if parameters.dry_run:
        result.touched = [described(plan, *one) for one in plan.all_edits()]
        result.size = _predicted(plan, made, context).size
        found, warnings, result.refused = _foreseen(parameters, plan, context)
        warn(result.notes, warnings, context)
        if found is not None:
            add_forecast(result, found)
        return result

    def accept(found: list[Survival]) -> None:
        if not _may_lose(parameters, context):
            require_kept(plan, found, seed, context.threads)

    survivals = write_plan(
        plan,
        output,
        made,
        base,
        context,
        force=parameters.force,
        seed=seed,
        allow_nonfinite=parameters.allow_nonfinite or context.allow_nonfinite,
        executor=context.executor,
        accept=accept,
    )
    if result.storage is not None:
        result.storage["relative_error"] = rounding_of(survivals)
    totals = totals_of(survivals)
    if totals is not None:
        add_survival(result, totals, survivals)
        for event in grown(totals):
            context.notify(event)
        warn(result.notes, warned_of(plan, totals.survived, totals.relative_error, seed), context)
        for text in strong_change(totals.change, result.family):
            context.notify(Warn(text))
    result.size = bytes_of(output)
    return result


def predict(parameters: Bake, context: Context = Context()) -> Prediction:
    """Predict the result from headers.

    Raises:
        LoramergeError: see `stream.plan.plan_bake`.
    """
    parameters = parameters.settled()
    checkpoint = open_base(parameters.base, context)
    adapters = _opened(parameters, context)
    plan = _plan(parameters, checkpoint, adapters)
    base = base_input(checkpoint)
    made = _made(parameters, base, adapters)
    require_once(base, made, context, again=parameters.allow_again)
    found = _predicted(plan, made, context)
    found.remarks += strong_weights(parameters.adapters)
    return found


def _predicted(plan: BakePlan, made: Made | None, context: Context) -> Prediction:
    return predict_checkpoint(len(plan.modules), partial(output_size, plan), made, context)


def forecast(parameters: Bake, context: Context = Context()) -> dict[str, Any]:
    """Return how much of the change rounding will keep, as `survival`; see `steps.loss.forecast`.

    Its `warnings` say what rounding takes or adds, and whether the bake will refuse that.
    """
    parameters.check()
    parameters = parameters.settled()
    checkpoint = open_base(parameters.base, context)
    plan = _plan(parameters, checkpoint, _opened(parameters, context))
    found, warnings, _ = _foreseen(parameters, plan, context)
    if found is None:
        return {"survival": None}
    return {"survival": {**found, "warnings": [spelled(text, in_recipe) for text in warnings]}}


def _foreseen(
    parameters: Bake, plan: BakePlan, context: Context
) -> tuple[dict[str, Any] | None, list[Message], int | None]:
    """Return what rounding will keep, the warnings of it, and the exit code of a refusal."""
    seed, allowed = _seed(parameters), _may_lose(parameters, context)
    forecast = forecast_of(
        plan, seed, allow_loss=allowed, threads=context.threads, notify=context.notify
    )
    if forecast is None:
        return None, [], None
    found, error = forecast
    if error is None:
        return found, list(warned_of(plan, found["kept"], found["relative_error"], seed)), None
    message = error.message()
    parts = (message,) if isinstance(message, str) else message
    source = "" if found["estimated"] is None else f", estimated {found['estimated']}"
    return found, [(f"the bake will refuse this{source}: ", *parts)], error.exit_code


def _may_lose(parameters: Bake, context: Context) -> bool:
    return parameters.allow_loss or context.allow_loss


def output_path(parameters: Bake, context: Context = Context()) -> Path:
    """Return the path that `bake` writes to, from headers."""
    parameters.check()
    return _output(parameters.settled(), open_base(parameters.base, context))


def _seed(parameters: Bake) -> int | None:
    return parameters.seed if parameters.rounding == "stochastic" else None


VERB = Verb(
    "bake",
    Bake,
    "checkpoint",
    bake,
    predict,
    distributes=True,
    large=512 << 20,
    forecast=forecast,
    output_path=output_path,
)


# --- before -----------------------------------------------------------------------------------------


def _plan(parameters: Bake, checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> BakePlan:
    weights = [reference.weight for reference in parameters.adapters]
    plan = plan_bake(
        checkpoint,
        list(zip(adapters, weights, strict=True)),
        skip_missing=components_of(parameters.skip_missing),
        dtype=float_type(parameters.dtype, FLOATS),
        wider=float_type(parameters.keep_touched, PLAIN_FLOATS),
        storing=storing_of(parameters.storage),
        suffix=Path(parameters.output or "").suffix.lower(),
    )
    return replace(plan, onto=parameters.rounding if parameters.rounding in WAYS else "")


def _opened(parameters: Bake, context: Context) -> list[Adapter]:
    return opened_adapters(parameters.adapters, context, skip_unknown=parameters.skip_unknown)


def _output(parameters: Bake, checkpoint: Checkpoint) -> Path:
    if parameters.output is not None:
        return Path(parameters.output)
    added, storing = sum_name(parameters.adapters), storing_of(parameters.storage)
    addition = f"+{added}" if added else ""
    if storing is not None or not added:
        addition += f"-{parameters.dtype if storing is None else storing.label}"
    return default_checkpoint(parameters.base, _suffix(parameters, checkpoint), addition)


def _suffix(parameters: Bake, checkpoint: Checkpoint) -> str:
    """Return the ending of the output, `''` for a folder."""
    storing, own = storing_of(parameters.storage), checkpoint.files.suffix
    named = Path(parameters.output or "").suffix.lower()
    return own if storing is None or not own else storing.suffix_of(own, named)


def _made(parameters: Bake, base: FileInput, adapters: Sequence[Adapter]) -> Made | None:
    """Return the step for the header of the result."""
    if parameters.rounding != "stochastic":
        parameters = replace(parameters, seed=0)  # it changes nothing
    given = {parameters.base: base}
    return step_with("bake", parameters, given, parameters.adapters, adapters)


def _notify(plan: BakePlan, adapters: Sequence[Adapter], context: Context) -> None:
    """Report modules, files and embeddings that are left out or come out otherwise."""
    if plan.skipped:
        context.notify(Warn(f"left out, because the base lacks them: {listed(plan.skipped, 5)}"))
    for warning in plan.warnings:
        context.notify(Warn(warning))
    for note in plan.notes:
        context.notify(Note(note))
    for text in left_out(adapters):
        context.notify(Note(text))


# --- after ------------------------------------------------------------------------------------------


def _result(
    parameters: Bake, output: Path, plan: BakePlan, adapters: Sequence[Adapter]
) -> BakeResult:
    checkpoint = plan.checkpoint
    return BakeResult(
        output=str(output),
        dry_run=parameters.dry_run,
        base=str(checkpoint.path),
        family=checkpoint.family_name,
        layouts=checkpoint.layouts,
        modules=len(plan.modules),
        tensors=plan.tensors,
        adapters=named_adapters(parameters.adapters, adapters),
        skipped=plan.skipped,
        notes=[*plan.warnings, *plan.notes],
        dtypes=plan.dtypes,
        storage=storage_of(plan),
    )


def _add_drift(
    result: BakeResult,
    adapters: Sequence[Adapter],
    checkpoint: Checkpoint,
    trained_on: str,
    context: Context,
) -> None:
    other = open_checkpoint(base_path(trained_on, context))
    found = drift(adapters, other, checkpoint, threads=context.threads, notify=context.notify)
    if not found:
        raise UsageError(
            "the bases cannot be compared: the adapters have no low-rank modules that both bases have",
            hint=("leave out ", Setting("trained_on")),
        )
    result.drift = {name: (d.distance, d.subspace) for name, d in by_block(found).items()}
    total = sum(found.values(), NO_DRIFT)
    result.drift_total = (total.distance, total.subspace)
