"""merge: combine checkpoints of one family into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from loramerge.algebra.weights import Weight, shown_number
from loramerge.checkpoint import Checkpoint
from loramerge.checkpoint.files import CheckpointFiles, find_files
from loramerge.errors import UsageError
from loramerge.events import Note, Warn
from loramerge.files.dtypes import DTYPES, FLOATS
from loramerge.parameters import Doc
from loramerge.steps.checkpoints import bytes_of, header_of_bases
from loramerge.steps.inputs import base_path, open_base
from loramerge.steps.merge_result import MergeResult, add_figures
from loramerge.steps.methods import CheckpointMethodParameters
from loramerge.steps.outputs import checkpoint_output, default_name, sum_name
from loramerge.steps.parameters import Context, Verb
from loramerge.steps.prediction import Prediction, predict_checkpoint
from loramerge.steps.provenance import FileInput, Made, base_input, files_input, step_of
from loramerge.steps.references import Reference, with_weight_files
from loramerge.steps.strength import strong_change, strong_weights
from loramerge.steps.writing import WeightParameters, float_type
from loramerge.stream.merge import merge as merge_checkpoints
from loramerge.stream.merge import output_size
from loramerge.stream.merge_plan import MergePlan, plan_merge

__all__ = ["VERB", "Merge", "MergeResult", "merge"]


@dataclass(frozen=True, kw_only=True)
class Merge(CheckpointMethodParameters, WeightParameters):
    """Merge checkpoints of one family into one that has the layout of the first, or of another.

    Without a base the weights themselves are combined, and the weights of the inputs must sum to 1: in
    `merge A B:0.3` A gets the 0.7 that B leaves. With one, the changes from it are combined and added to
    it: `merge A B:0.5 --base C` is A + 0.5 (B − C).
    """

    models: Annotated[
        tuple[Reference, ...],
        Doc(
            "Checkpoints with weights: NAME:0.7, NAME:unet=0.8:te=0, NAME:OUTALL or NAME:1,0,0,…",
            ("CHECKPOINT",),
            completes="bases",
        ),
    ]
    base: Annotated[
        str | None,
        Doc(
            "Checkpoint that the others were trained from: what they change of it is combined, and "
            "added to it.",
            ("--base", "-b"),
            "BASE",
            "bases",
        ),
    ] = None
    vae: Annotated[
        str | None,
        Doc(
            "Checkpoint, or VAE alone, whose VAE the result has [default: the first input].",
            metavar="FROM",
            completes="bases",
        ),
    ] = None
    text_encoder: Annotated[
        str | None,
        Doc(
            "Checkpoint whose text encoders the result has [default: they are merged].",
            metavar="FROM",
            completes="bases",
        ),
    ] = None
    output: Annotated[
        str | None,
        Doc(
            "File or folder to write [default: a name that says what it is made of].",
            ("--output", "-o"),
            "PATH",
            recipe=False,
        ),
    ] = None
    layout: Annotated[
        str | None,
        Doc(
            "Checkpoint whose layout, types, configurations and constants the result has [default: the "
            "first input].",
            metavar="FROM",
            completes="bases",
        ),
    ] = None
    union: Annotated[
        Literal["first", "zero"] | None,
        Doc(
            "Tensors that some inputs lack: take them from the first that has them, or count what is "
            "missing as no change (as zeros without a base) [default: refuse]."
        ),
    ] = None
    dtype: Annotated[
        str | None,
        Doc("Give all floating tensors this type [default: as in the first].", metavar="TYPE"),
    ] = None
    allow_nonfinite: Annotated[
        bool,
        Doc(
            "Copy NaN and infinity of tensors that are not merged; without this they are refused.",
            result=False,
        ),
    ] = False
    force: Annotated[bool, Doc("Replace an existing output.", ("--force", "-f"), recipe=False)] = (
        False
    )

    def settled(self) -> Merge:
        """Return the same with the weights of files in place, and no setting that is a default."""
        models = tuple(with_weight_files(self.models, self.weights))
        return replace(self.with_own_settings(), models=models, weights=())

    def check(self) -> None:
        """Refuse parameters that contradict each other, before any file is opened.

        Raises:
            UsageError: naming the parameter.
        """
        float_type(self.dtype, FLOATS)
        if len(self.models) < 2:
            raise UsageError(
                "merge needs at least two checkpoints",
                found=f"{len(self.models)}",
                hint="write each with its weight: A:0.7 B:0.3",
            )
        self.operation().require_count(len(self.models))


def merge(parameters: Merge, context: Context = Context()) -> MergeResult:
    """Merge checkpoints and write the result.

    Raises:
        LoramergeError: see `stream.merge.plan_merge` and `stream.merge.merge`.
    """
    parameters = parameters.settled()
    parameters.check()
    inputs = _opened(parameters, context)
    output = _output(parameters, inputs.layout or inputs.models[0])
    plan = _plan(parameters, inputs)
    result = _result(parameters, output, plan, inputs)
    for text in plan.notes:
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
            notify=context.notify,
        )
    add_figures(result, found)
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
    inputs = _opened(parameters, context)
    plan = _plan(parameters, inputs)
    made, _ = _made(parameters, inputs)
    lineage = {} if context.strip else _lineage(inputs.models)
    return predict_checkpoint(
        plan.merged,
        lambda entries: output_size(plan, {**entries, **lineage}),
        made,
        context,
        inputs=len(inputs.models) + (inputs.base is not None),
    )


VERB = Verb("merge", Merge, "checkpoint", merge, predict)


_AN_ADAPTER = (
    "this is an adapter, and merge combines whole checkpoints",
    "`mix` combines adapters in one file, each at its weight",
)


@dataclass(frozen=True)
class _Opened:
    """The opened checkpoints of a merge, and the files that its VAE comes from."""

    models: list[Checkpoint]
    base: Checkpoint | None
    text_encoder: Checkpoint | None
    layout: Checkpoint | None
    vae: CheckpointFiles | None


def _opened(parameters: Merge, context: Context) -> _Opened:
    def other(name: str | None) -> Checkpoint | None:
        return None if name is None else open_base(name, context)

    models = [open_base(one.name, context, _AN_ADAPTER) for one in parameters.models]
    vae = None if parameters.vae is None else find_files(base_path(parameters.vae, context))
    base, text_encoder = other(parameters.base), other(parameters.text_encoder)
    return _Opened(models, base, text_encoder, other(parameters.layout), vae)


def _plan(parameters: Merge, inputs: _Opened) -> MergePlan:
    weights = [reference.weight for reference in parameters.models]
    plan = plan_merge(
        list(zip(inputs.models, weights, strict=True)),
        parameters.operation(),
        base=inputs.base,
        text_encoder=inputs.text_encoder,
        vae=inputs.vae,
        layout=inputs.layout,
        union=parameters.union,
        dtype=float_type(parameters.dtype, FLOATS),
    )
    if parameters.vae is not None:
        plan.notes.append(f"the VAE is that of {parameters.vae}")
    return plan


def _output(parameters: Merge, first: Checkpoint) -> Path:
    folder = first.files.root is not None
    if parameters.output is not None:
        path = Path(parameters.output)
    else:
        path = default_name(sum_name(parameters.models), "" if folder else ".safetensors")
    contents = first.files.contents() if folder else None
    return checkpoint_output(path, contents, force=parameters.force)


def _made(parameters: Merge, inputs: _Opened) -> tuple[Made | None, list[FileInput]]:
    """Return the step for the header of the result, and the checkpoints that it is made from."""
    others = (parameters.base, parameters.text_encoder, parameters.layout)
    names = [*(one.name for one in parameters.models), *others]
    opened = [*inputs.models, inputs.base, inputs.text_encoder, inputs.layout]
    given = {
        ("bases", name): base_input(one)
        for name, one in zip(names, opened, strict=True)
        if name is not None and one is not None
    }
    if parameters.vae is not None and inputs.vae is not None:
        path = inputs.vae.root or inputs.vae.weights[0].path
        given.setdefault(("bases", parameters.vae), files_input(path, inputs.vae))
    return step_of("merge", parameters, given), list(given.values())


def _lineage(models: Sequence[Checkpoint]) -> dict[str, str]:
    """Return the entry by which programs list what a checkpoint was merged from."""
    names = (model.path.name.encode("utf-8", "replace").decode() for model in models)
    return {"modelspec.merged_from": ", ".join(names)} if models[0].candidates else {}


def _result(
    parameters: Merge,
    output: Path,
    plan: MergePlan,
    inputs: _Opened,
) -> MergeResult:
    models, base = inputs.models, inputs.base
    method = parameters.operation()
    if plan.rest:
        parameters = replace(parameters, models=_with_rest(parameters.models))
    stored = {
        plan.dtype or blend.target.tensor.dtype
        for tensors in plan.blends.values()
        for blends in tensors.values()
        for blend in blends
    }
    return MergeResult(
        output=str(output),
        family=plan.first.family_name,
        layouts=plan.first.layouts,
        models=[
            {"path": str(one.path), "weight": reference.written}
            for one, reference in zip(models, parameters.models, strict=True)
        ],
        base=None if base is None else str(base.path),
        reference=str((base or models[0]).path),
        method=method.operator.name,
        scale=method.scale,
        merged=plan.merged,
        united=plan.united,
        dtypes=sorted(DTYPES[dtype].word for dtype in stored),
        notes=plan.notes,
    )


def _with_rest(models: Sequence[Reference]) -> tuple[Reference, ...]:
    """Return references of which the first has what the others leave, in words for tables."""
    first, *others = models
    numbers = [one.weight.default for one in others if one.weight == Weight(one.weight.default)]
    plain = len(numbers) == len(others)
    left = shown_number(round(1.0 - sum(numbers), 12)) if plain else "1 without the others'"
    return replace(first, written=left), *others
