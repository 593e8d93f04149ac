"""The parameters of `merge`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from loramerge.errors import UsageError
from loramerge.files.dtypes import FLOATS, type_words
from loramerge.parameters import Doc
from loramerge.steps.checkpoints import (
    components_of,
)
from loramerge.steps.methods import CheckpointMethodParameters
from loramerge.steps.references import Reference, with_weight_files
from loramerge.steps.taking import (
    require_layers_alone,
    rules_in,
    slices_in,
)
from loramerge.steps.writing import DryRun, Force, UnknownParameter, WeightParameters, float_type

__all__ = ["Merge"]


@dataclass(frozen=True, kw_only=True)
class Merge(CheckpointMethodParameters, WeightParameters, UnknownParameter):
    """Merge checkpoints of one family into one that has the layout of the first, or of another.

    Without --base the models themselves are combined, and the numbers behind their names must sum to 1:
    in `merge A B:0.3` A gets the other 0.7. With --base their changes are combined and added to it:
    `merge A B:0.5 --base C` is A + 0.5 (B − C). Adapters may stand among the models; they are added to
    the result, as by `bake`.
    """

    models: Annotated[
        tuple[Reference, ...],
        Doc(
            "Checkpoints with weights, NAME:0.7, NAME:unet=0.8:te=0, NAME:OUTALL or NAME:1,0,0,…, and "
            "adapters to add, NAME:0.8 or lora:NAME:0.8.",
            ("MODEL",),
            completes="models",
        ),
    ]
    base: Annotated[
        str | None,
        Doc(
            "Checkpoint that the others were trained from: their changes to it are combined, and "
            "added to it.",
            ("--base", "-b"),
            "BASE",
            "bases",
        ),
    ] = None
    take: Annotated[
        tuple[str, ...],
        Doc(
            "Take the modules that a pattern matches from one input as they are, such as "
            "'unet.mid_block.*=B'; may be repeated.",
            metavar="PATTERN=NAME",
        ),
    ] = ()
    layers: Annotated[
        tuple[str, ...],
        Doc(
            "Stack layers of language models in this order: A=0-15 takes layers 0 to 15 of A as they "
            "are; may be repeated.",
            metavar="NAME=FIRST-LAST",
        ),
    ] = ()
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
            path=True,
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
    skip_missing: Annotated[
        tuple[str, ...],
        Doc(
            "Leave out adapter modules that the first checkpoint lacks, in this component (unet, "
            "text_encoder, …) or, with `all`, in every one; may be repeated.",
            metavar="COMPONENT",
        ),
    ] = ()
    dtype: Annotated[
        str | None,
        Doc(
            f"Give all floating tensors this type: {type_words(FLOATS)} [default: as in the first].",
            metavar="TYPE",
        ),
    ] = None
    allow_nonfinite: Annotated[
        bool,
        Doc(
            "Copy NaN and infinity of tensors that are not merged; without this they are refused.",
            result=False,
        ),
    ] = False
    dry_run: DryRun = False
    force: Force = False

    def settled(self) -> Merge:
        """Return the same with the weights of files in place, and no setting that is a default."""
        models = with_weight_files(self.models, self.weights)
        return replace(
            self.with_own_settings(),
            models=tuple(models),
            weights=(),
            take=tuple(f"{one.pattern}=#{one.place + 1}" for one in rules_in(self.take, models)),
            layers=tuple(f"#{one.model + 1}={one.first}-{one.last}"
                         for one in slices_in(self.layers, models)),
        )  # fmt: skip

    def check(self) -> None:
        """Refuse parameters that contradict each other, before any file is opened.

        Raises:
            UsageError: naming the parameter.
        """
        float_type(self.dtype, FLOATS), components_of(self.skip_missing)
        if self.layers:
            require_layers_alone(self)
        if len(self.models) < (1 if self.layers else 2):
            raise UsageError(
                "merge needs at least two inputs",
                found=f"{len(self.models)}",
                hint="write each with its weight: A:0.7 B:0.3",
            )
        self.operation()
