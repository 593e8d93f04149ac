"""The parameters of `bake`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from loramerge.checkpoint.conversion import storing_of
from loramerge.errors import Setting, UsageError
from loramerge.files.dtypes import FLOATS, PLAIN_FLOATS, type_words
from loramerge.parameters import Bounds, Doc
from loramerge.steps.checkpoints import (
    components_of,
)
from loramerge.steps.references import Reference, with_weight_files
from loramerge.steps.writing import DryRun, Force, UnknownParameter, WeightParameters, float_type
from loramerge.stream.on_grid import WAYS

__all__ = ["Bake"]


@dataclass(frozen=True, kw_only=True)
class Bake(WeightParameters, UnknownParameter):
    """Add adapters to a checkpoint; the result has the same layout as the base.

    Tensors that no adapter changes stay byte-identical. The report shows how much of the change was
    kept after rounding to the base's type.
    """

    base: Annotated[
        str,
        Doc(
            "Checkpoint: a file, a diffusers folder, or a registered name.",
            ("--base", "-b"),
            "BASE",
            "bases",
        ),
    ]
    adapters: Annotated[
        tuple[Reference, ...],
        Doc("Adapters with weights: NAME:0.8.", ("ADAPTER",), None, "adapters"),
    ] = ()
    lora: Annotated[
        tuple[Reference, ...],
        Doc(
            "An adapter with its weight, as NAME:0.8; may be repeated.",
            ("--lora", "-l"),
            "ADAPTER",
            "adapters",
            recipe=False,
        ),
    ] = ()
    output: Annotated[
        str | None,
        Doc(
            "File or folder to write [default: BASE+ADAPTER].",
            ("--output", "-o"),
            "PATH",
            recipe=False,
            path=True,
        ),
    ] = None
    skip_missing: Annotated[
        tuple[str, ...],
        Doc(
            "Leave out adapter modules that the base lacks, in this component (unet, "
            "text_encoder, …) or, with `all`, in every one; may be repeated.",
            metavar="COMPONENT",
        ),
    ] = ()
    trained_on: Annotated[
        str | None,
        Doc(
            "Base that the adapter was trained on; the report then shows how much BASE differs "
            "from it in the adapter's modules.",
            metavar="BASE",
            completes="bases",
            result=False,
        ),
    ] = None
    rounding: Annotated[
        Literal["nearest", "stochastic", "feedback", "balanced"],
        Doc(
            "Rounding to the base's type. Stochastic rounding keeps weak adapters on average, and "
            "adds noise; feedback adds the error of each weight to the next in its row; balanced lowers "
            "the threshold until the whole change is kept, with the least noise of the three."
        ),
    ] = "nearest"
    seed: Annotated[int, Bounds(ge=0), Doc("Seed of stochastic rounding.")] = 0
    dtype: Annotated[
        str | None,
        Doc(
            f"Give all floating tensors this type: {type_words(FLOATS)} [default: as in the base].",
            metavar="TYPE",
        ),
    ] = None
    keep_touched: Annotated[
        str | None,
        Doc(
            "Give the tensors that adapters change this type where the base stores them in a narrower "
            "one, such as float8 or GGUF blocks; the others stay as they are.",
            metavar="TYPE",
        ),
    ] = None
    storage: Annotated[
        tuple[str, ...],
        Doc(
            "Store the weights in another form, with adapters or without: a type such as bfloat16, "
            "float8-scaled, int8, mxfp8, nvfp4, or a type of GGUF blocks such as Q8_0 or Q4_K. Few bits "
            "are for matrices in the blocks of the denoiser; PATTERN=TYPE gives tensors or modules with "
            "such names another form. May be repeated.",
            metavar="TYPE",
        ),
    ] = ()
    allow_loss: Annotated[
        bool,
        Doc(
            "Write the result even if less than 90 % of the change is kept after rounding; without "
            "this option that is an error, which names what keeps more.",
            result=False,
        ),
    ] = False
    allow_again: Annotated[
        bool,
        Doc(
            "Add an adapter once more that is baked into the base already, according to its header; "
            "without this option that is an error.",
            result=False,
        ),
    ] = False
    allow_nonfinite: Annotated[
        bool,
        Doc(
            "Copy NaN and infinity of the base where nothing is added; without this option they "
            "are an error.",
            result=False,
        ),
    ] = False
    dry_run: DryRun = False
    force: Force = False

    def settled(self) -> Bake:
        """Return these parameters with all adapters in `adapters`, and weights read from files."""
        references = with_weight_files([*self.adapters, *self.lora], self.weights)
        return replace(self, adapters=tuple(references), lora=(), weights=())

    def check(self) -> None:
        """Refuse parameters that contradict each other, before any file is opened.

        Raises:
            UsageError: naming the parameter.
        """
        if not self.adapters and not self.lora and self.dtype is None and not self.storage:
            hint = ("give adapters with weights, such as NAME:0.8, or another ", Setting("storage"))
            raise UsageError("bake needs an adapter", hint=hint)
        float_type(self.dtype, FLOATS), components_of(self.skip_missing)
        storing_of(self.storage)
        if self.storage and self.rounding in WAYS:
            raise UsageError(
                f"{self.rounding} rounding is for weights that lie on the numbers of their storage, and "
                "another storage has other numbers",
                hint=("leave out ", Setting("rounding"), " or ", Setting("storage")),
            )
        one = self.dtype is not None and not self.storage
        if float_type(self.keep_touched, PLAIN_FLOATS) and one:
            raise UsageError(
                "one type for all tensors leaves none that could be kept wider",
                hint=("leave out ", Setting("dtype"), " or ", Setting("keep_touched")),
            )
