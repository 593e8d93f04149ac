"""unbake: take adapters out of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

from loramerge.adapter import Adapter
from loramerge.checkpoint import Checkpoint, open_checkpoint
from loramerge.errors import AdapterError, FamilyError, Setting, UsageError
from loramerge.events import Note
from loramerge.parameters import Doc
from loramerge.steps.adding import named_adapters, opened_adapters, step_with, write_plan
from loramerge.steps.as_baked import as_baked, require_inside
from loramerge.steps.bake_result import described
from loramerge.steps.checkpoints import (
    bytes_of,
    check_output,
    components_of,
    default_checkpoint,
    left_out,
)
from loramerge.steps.inputs import open_base
from loramerge.steps.outputs import sum_name
from loramerge.steps.parameters import Context, Verb
from loramerge.steps.prediction import Prediction, predict_checkpoint
from loramerge.steps.provenance import FileInput, Made, base_input
from loramerge.steps.references import Reference, with_weight_files
from loramerge.steps.unbake_result import UnbakeResult
from loramerge.steps.writing import DryRun, Force, UnknownParameter, WeightParameters
from loramerge.stream.bake import output_size
from loramerge.stream.edits import BakePlan
from loramerge.stream.likeness import likeness
from loramerge.stream.plan import plan_bake
from loramerge.stream.restore import restored
from loramerge.stream.survival import totals_of

__all__ = ["VERB", "Unbake", "UnbakeResult", "unbake"]

_AN_ADAPTER = (
    "this is an adapter, and adapters are taken out of checkpoints",
    "give the checkpoint first, and the adapter with --lora",
)


@dataclass(frozen=True, kw_only=True)
class Unbake(WeightParameters, UnknownParameter):
    """Take adapters out of a checkpoint that they were baked into; the layout stays the same.

    The change is subtracted at the weight of the bake, which the header of the checkpoint says, or at
    the weight that is given. Both the bake and this round to the type of the
    checkpoint, so weights come back to within a rounding or two, as the report says. With --base, every
    tensor that can be traced to the base gets the bytes of the base again.
    """

    checkpoint: Annotated[
        str,
        Doc("Checkpoint that the adapters are in.", ("CHECKPOINT",), None, "bases"),
    ]
    lora: Annotated[
        tuple[Reference, ...],
        Doc(
            "An adapter, as NAME, or with the weight at which it was baked, as NAME:0.8; may be "
            "repeated.",
            ("--lora", "-l"),
            "ADAPTER",
            "adapters",
        ),
    ]
    base: Annotated[
        str | None,
        Doc(
            "Checkpoint before the bake; tensors that can be traced to it get its bytes.",
            ("--base", "-b"),
            "BASE",
            "bases",
        ),
    ] = None
    output: Annotated[
        str | None,
        Doc(
            "File or folder to write [default: CHECKPOINT-ADAPTER].",
            ("--output", "-o"),
            "PATH",
            recipe=False,
            path=True,
        ),
    ] = None
    skip_missing: Annotated[
        tuple[str, ...],
        Doc(
            "Leave out adapter modules that the checkpoint lacks, in this component (unet, "
            "text_encoder, …) or, with `all`, in every one; may be repeated.",
            metavar="COMPONENT",
        ),
    ] = ()
    allow_unrecorded: Annotated[
        bool,
        Doc(
            "Subtract an adapter that is not in the checkpoint according to its header; without this "
            "option that is an error.",
            result=False,
        ),
    ] = False
    dry_run: DryRun = False
    force: Force = False

    def settled(self) -> Unbake:
        """Return these parameters with weights read from files."""
        return replace(self, lora=tuple(with_weight_files(self.lora, self.weights)), weights=())

    def check(self) -> None:
        """Refuse parameters without a meaning, before any file is opened.

        Raises:
            UsageError: naming the parameter.
        """
        if not self.lora:
            raise UsageError("unbake needs an adapter", hint=("give ", Setting("lora", "NAME:0.8")))
        components_of(self.skip_missing)


def unbake(parameters: Unbake, context: Context = Context()) -> UnbakeResult:
    """Take adapters out of a checkpoint and write it.

    Raises:
        AdapterError: if an adapter is not in the checkpoint according to its header.
        LoramergeError: see `stream.plan.plan_bake` and `stream.bake.bake`.
    """
    parameters.check()
    parameters = parameters.settled()
    checkpoint = open_base(parameters.checkpoint, context, _AN_ADAPTER)
    base = None if parameters.base is None else open_base(parameters.base, context)
    output = _output(parameters, checkpoint)
    suffix = checkpoint.files.suffix
    check_output(checkpoint, output, force=parameters.force, suffix=suffix)
    adapters = _opened(parameters, context)
    source = base_input(checkpoint)
    lora, adapters = as_baked(parameters.lora, source, adapters, context)
    parameters = replace(parameters, lora=lora)
    unrecorded = parameters.allow_unrecorded
    require_inside(lora, source, adapters, context, unrecorded=unrecorded)
    plan = _plan(parameters, checkpoint, adapters)
    result = _result(parameters, output, plan, adapters, base)
    for text in [*plan.warnings, *plan.notes, *left_out(adapters)]:
        context.notify(Note(text))
    if base is not None:
        plan, result.restored = _restored(parameters, plan, base, adapters, context)
    if parameters.dry_run:
        result.touched = [described(plan, *one) for one in plan.all_edits()]
        return result
    made = _made(parameters, source, base, adapters)
    survivals = write_plan(
        plan, output, made, source, context, force=parameters.force, allow_nonfinite=True
    )
    totals = totals_of(survivals)
    if totals is not None:
        result.change = totals.change
        if totals.change is not None:
            result.rounding = totals.relative_error * totals.change
    if base is not None:
        _add_distance(result, output, base, context)
    result.size = bytes_of(output)
    return result


def predict(parameters: Unbake, context: Context = Context()) -> Prediction:
    """Predict the result from headers.

    Raises:
        LoramergeError: see `stream.plan.plan_bake`.
    """
    parameters = parameters.settled()
    checkpoint = open_base(parameters.checkpoint, context, _AN_ADAPTER)
    base = None if parameters.base is None else open_base(parameters.base, context)
    adapters = _opened(parameters, context)
    source = base_input(checkpoint)
    lora, adapters = as_baked(parameters.lora, source, adapters, context)
    parameters = replace(parameters, lora=lora)
    plan = _plan(parameters, checkpoint, adapters)
    made = _made(parameters, source, base, adapters)
    return predict_checkpoint(
        len(plan.modules), partial(output_size, plan), made, context, inputs=1 + (base is not None)
    )


def output_path(parameters: Unbake, context: Context = Context()) -> Path:
    """Return the path that `unbake` writes to, from headers."""
    parameters.check()
    return _output(parameters.settled(), open_base(parameters.checkpoint, context, _AN_ADAPTER))


VERB = Verb("unbake", Unbake, "checkpoint", unbake, predict, output_path=output_path)


def _opened(parameters: Unbake, context: Context) -> list[Adapter]:
    return opened_adapters(parameters.lora, context, skip_unknown=parameters.skip_unknown)


def _output(parameters: Unbake, checkpoint: Checkpoint) -> Path:
    if parameters.output is not None:
        return Path(parameters.output)
    added = f"-{sum_name(parameters.lora)}"
    return default_checkpoint(parameters.checkpoint, checkpoint.files.suffix, added)


def _plan(
    parameters: Unbake, checkpoint: Checkpoint, adapters: Sequence[Adapter], sign: float = -1.0
) -> BakePlan:
    """Return the plan that subtracts the adapters, or adds them."""
    weights = [reference.weight.times(sign) for reference in parameters.lora]
    for adapter in adapters:
        for delta in adapter.deltas.values():
            if delta.needs_base or delta.facts.replaces:
                raise AdapterError(
                    f"an adapter of kind {delta.kind} depends on the weights that it was baked into, "
                    "and cannot be subtracted",
                    file=adapter.label,
                    hint="keep the checkpoint without it",
                )
    return plan_bake(
        checkpoint,
        list(zip(adapters, weights, strict=True)),
        skip_missing=components_of(parameters.skip_missing),
    )


def _restored(
    parameters: Unbake,
    plan: BakePlan,
    base: Checkpoint,
    adapters: Sequence[Adapter],
    context: Context,
) -> tuple[BakePlan, int]:
    named = plan.checkpoint.candidates
    if named and not any(family in base.candidates for family in named):
        raise FamilyError(
            "the checkpoint and the base belong to different families",
            file=f"{plan.checkpoint.path} and {base.path}",
            expected=plan.checkpoint.family_name,
            found=base.family_name,
        )
    forth = _plan(parameters, base, adapters, 1.0)
    return restored(plan, forth, threads=context.threads, notify=context.notify)


def _made(
    parameters: Unbake, source: FileInput, base: Checkpoint | None, adapters: Sequence[Adapter]
) -> Made | None:
    """Return the step for the header of the result."""
    given = {parameters.checkpoint: source}
    if parameters.base is not None and base is not None:
        given[parameters.base] = base_input(base)
    return step_with("unbake", parameters, given, parameters.lora, adapters)


def _result(
    parameters: Unbake,
    output: Path,
    plan: BakePlan,
    adapters: Sequence[Adapter],
    base: Checkpoint | None,
) -> UnbakeResult:
    return UnbakeResult(
        output=str(output),
        dry_run=parameters.dry_run,
        checkpoint=str(plan.checkpoint.path),
        base=None if base is None else str(base.path),
        family=plan.checkpoint.family_name,
        modules=len(plan.modules),
        tensors=plan.tensors,
        adapters=named_adapters(parameters.lora, adapters),
        skipped=plan.skipped,
        dtypes=plan.dtypes,
    )


def _add_distance(result: UnbakeResult, output: Path, base: Checkpoint, context: Context) -> None:
    """Compare the result with the base, in all that both have."""
    found = likeness(
        base, open_checkpoint(output), threads=context.threads, notify=context.notify
    ).total
    result.distance, result.differing = found.distance, found.differing
