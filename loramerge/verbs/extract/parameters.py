"""The parameters of `extract`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loramerge.errors import Setting, UsageError
from loramerge.steps.checkpoints import components_of
from loramerge.steps.parameters import Doc
from loramerge.steps.writing import RankParameters, UsualDialect, WriteParameters
from loramerge.stream.pairing import Sort

__all__ = ["Extract"]

_CRITERIA = tuple(
    part
    for name in ("energy", "ratio", "cumulative", "max_size", "max_error")
    for part in (", ", Setting(name))
)
_VECTORS: tuple[Sort, ...] = ("bias", "norm")
_ALL: tuple[Sort, ...] = (*_VECTORS, "embedding", "table")


@dataclass(frozen=True, kw_only=True)
class Extract(RankParameters, WriteParameters):
    """Make an adapter of the difference of two checkpoints: the tuned one minus its base.

    Both are of one family; layouts and types may differ. Every module gets the best approximation of
    its rank. Differences that rounding to the checkpoints' types explains are left out.
    """

    tuned: Annotated[
        str,
        Doc(
            "Checkpoint that was tuned: a file, a folder, or a registered name.",
            ("--tuned", "-t"),
            "CHECKPOINT",
            "bases",
        ),
    ]
    output: Annotated[
        str | None,
        Doc(
            "File to write [default: TUNED with the rank options, such as my-model-r64].",
            ("--output", "-o"),
            "FILE",
            recipe=False,
            path=True,
        ),
    ] = None
    to: UsualDialect = None
    dtype: Annotated[
        str | None,
        Doc(
            "Float type to write: float32, float16, bfloat16 [default: the wider of the two "
            "checkpoints'; float32 with --full].",
            metavar="TYPE",
        ),
    ] = None
    base: Annotated[
        str,
        Doc("Checkpoint that it was tuned from.", ("--base", "-b"), "BASE", "bases"),
    ]
    vectors: Annotated[bool, Doc("Also keep the changes of biases and norms, as differences.")] = (
        False
    )
    full: Annotated[
        bool,
        Doc(
            "Keep every change as an exact difference, embeddings included; with bake this adds the "
            "difference of two checkpoints to a third."
        ),
    ] = False
    keep_rounding: Annotated[
        bool, Doc("Also keep differences that rounding to the checkpoints' types explains.")
    ] = False
    skip_missing: Annotated[
        tuple[str, ...],
        Doc(
            "Leave out what only one of the checkpoints has, in this component (unet, text_encoder, "
            "…) or in `all`; may be repeated.",
            metavar="COMPONENT",
        ),
    ] = ()

    def check(self) -> None:
        """Refuse parameters that contradict each other, before anything is opened.

        Raises:
            UsageError: naming what is wrong.
        """
        self.target(), self.float_type(), components_of(self.skip_missing)
        cuts = self.rule(1).truncates
        if self.full and cuts:
            raise UsageError(
                "exact differences have no rank to choose",
                hint=("leave out ", Setting("full", True), ", or what lowers ranks"),
            )
        if not self.full and not cuts:
            raise UsageError(
                "extract needs to know what to keep",
                hint=("give ", Setting("rank", 64), *_CRITERIA, " or ", Setting("full", True)),
            )

    def sorts(self) -> tuple[Sort, ...]:
        """Return what is kept beside weights of layers."""
        return _ALL if self.full else _VECTORS if self.vectors else ()
