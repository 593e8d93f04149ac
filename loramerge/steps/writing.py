"""Parameters that verbs share: ranks to keep, a base, weights, and the output of an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from loramerge.algebra.ranks import RankRule
from loramerge.errors import Setting, UsageError, suggestion
from loramerge.files.dtypes import DTYPES, dtype_of, type_words
from loramerge.parameters import Bounds, Doc
from loramerge.steps.amounts import size_in_bytes, size_label

__all__ = [
    "ADAPTER_FLOATS",
    "BaseParameter",
    "DryRun",
    "FairParameter",
    "Force",
    "OwnType",
    "RankParameters",
    "RankSeries",
    "UnknownParameter",
    "UsualDialect",
    "WriteParameters",
    "float_type",
]

ADAPTER_FLOATS = ("F64", "F32", "F16", "BF16")  # the types adapters are written in

DryRun = Annotated[bool, Doc("List what would change, and write nothing.", recipe=False)]
Force = Annotated[bool, Doc("Replace an existing output.", ("--force", "-f"), recipe=False)]
UsualDialect = Annotated[
    str | None,
    Doc(
        "Dialect to write [default: the one that most programs read for the family].",
        metavar="DIALECT",
        completes="dialects",
    ),
]
OwnType = Annotated[
    str | None,
    Doc(
        "Float type to write: float32, float16, bfloat16 [default: every tensor's own].",
        metavar="TYPE",
    ),
]


def float_type(word: str | None, allowed: Sequence[str]) -> str | None:
    """Return the safetensors name of a float type to write, None for None.

    Raises:
        UsageError: if there is none of this name, or it is not `allowed`.
    """
    if word is None:
        return None
    words = {name: DTYPES[name].word for name in allowed}
    try:
        kind = dtype_of(word)
    except UsageError:
        kind = None
    if kind not in words:
        raise UsageError(
            f"{word!r} is not a type that can be written here",
            expected=type_words(allowed),
            hint=suggestion(word, words.values()) if kind is None else None,
        )
    return kind


@dataclass(frozen=True, kw_only=True)
class WeightParameters:
    """Weights that are too long to write behind a name."""

    weights: Annotated[
        tuple[str, ...],
        Doc(
            "Weight of an input from a YAML file: per component, block, depth or pattern of "
            "module names; may be repeated.",
            metavar="NAME=FILE",
            recipe=False,
        ),
    ] = ()


_RANK = "Keep at most this rank in every module."
_SIZE = (
    "Choose the ranks with the smallest error for a file of at most this size: 20MB, 800KB, or 50% of "
    "the input."
)


@dataclass(frozen=True, kw_only=True)
class _Rank:
    rank: Annotated[int | None, Bounds(ge=1), Doc(_RANK, ("--rank", "-r"))] = None


@dataclass(frozen=True, kw_only=True)
class _Ranks:
    rank: Annotated[
        tuple[int, ...],
        Bounds(ge=1),
        Doc(_RANK, ("--rank", "-r"), "N,…", separated=True),
    ] = ()


@dataclass(frozen=True, kw_only=True)
class _Shares:
    """Criteria of each module by itself."""

    conv_rank: Annotated[
        int | None, Bounds(ge=1), Doc("The same for kernels larger than 1×1 [default: --rank].")
    ] = None
    energy: Annotated[
        float | None,
        Bounds(gt=0, le=1),
        Doc("Keep the smallest rank with this share of the energy Σσ² of each module."),
    ] = None
    ratio: Annotated[
        float | None,
        Bounds(gt=1),
        Doc("Keep the singular values that are larger than the largest one divided by this."),
    ] = None
    cumulative: Annotated[
        float | None,
        Bounds(gt=0, le=1),
        Doc("Keep the smallest rank with this share of the sum Σσ of each module."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class _Size:
    max_size: Annotated[str | None, Doc(_SIZE, metavar="SIZE", number=int)] = None


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    max_size: Annotated[
        tuple[str, ...],
        Doc(_SIZE, metavar="SIZE,…", separated=True, number=int),
    ] = ()


@dataclass(frozen=True, kw_only=True)
class _Limits:
    """Limits on errors."""

    max_error: Annotated[
        float | None,
        Bounds(gt=0, le=1),
        Doc(
            "Alone: choose the smallest ranks whose total relative error is at most this. With "
            "another rank option: refuse a larger error."
        ),
    ] = None
    max_module_error: Annotated[
        float | None,
        Bounds(gt=0, le=1),
        Doc("Refuse if the relative error of any module is larger."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class RankParameters(_Limits, _Size, _Shares, _Rank):
    """The criteria that lower ranks."""

    def rule(self, input_bytes: int) -> RankRule:
        """Return the rule; percentages of `max_size` are of `input_bytes`."""
        return RankRule(
            rank=self.rank,
            conv_rank=self.conv_rank,
            energy=self.energy,
            ratio=self.ratio,
            cumulative=self.cumulative,
            max_size=None if self.max_size is None else size_in_bytes(self.max_size, input_bytes),
            max_error=self.max_error,
            max_module_error=self.max_module_error,
        )

    def rank_label(self) -> str:
        """Return the part of a default output name that stands for the criteria, e.g. `r8`."""
        parts = [
            f"{letter}{value:g}" if isinstance(value, (int, float)) else f"{letter}{value}"
            for letter, value in (
                ("r", self.rank), ("c", self.conv_rank), ("e", self.energy),
                ("ratio", self.ratio), ("cum", self.cumulative), ("", self.max_size),
                ("err", self.max_error),
            )
            if value is not None
        ]  # fmt: skip
        return size_label("-".join(parts))


@dataclass(frozen=True, kw_only=True)
class RankSeries(_Limits, _Sizes, _Shares, _Ranks):
    """The criteria that lower ranks, with several values where each gives a result of its own."""


@dataclass(frozen=True, kw_only=True)
class FairParameter:
    """The criterion by which a mix is cut."""

    fair: Annotated[
        bool,
        Doc(
            "Choose what is cut so that the adapter that loses most loses as little as possible: a "
            "quiet one is not lost beside a loud one. Without this the error of the sum is smallest. "
            "Needs --rank, --conv-rank, --max-size, or --max-error, which then limits the loss of "
            "each adapter."
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class BaseParameter:
    """The base for kinds that depend on it, which become full differences."""

    base: Annotated[
        str | None,
        Doc(
            "Base model, needed for kinds whose change depends on it (DoRA, (IA)³, OFT, BOFT, "
            "GLoRA), and for the order of rows in adapters of llama.cpp. Modules whose change depends "
            "on it become full differences, or plain LoRA with a rank option.",
            ("--base", "-b"),
            "BASE",
            "bases",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class UnknownParameter:
    """The option for adapters with unknown tensors."""

    skip_unknown: Annotated[
        bool,
        Doc(
            "Leave out unknown tensors of adapters; without this option they are an error.",
            result=False,
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class WriteParameters:
    """The output, and the dialect and type it is written in."""

    output: Annotated[
        str | None,
        Doc(
            "File to write [default: a name made from the inputs' names].",
            ("--output", "-o"),
            "FILE",
            recipe=False,
            path=True,
        ),
    ] = None
    to: Annotated[
        str | None,
        Doc(
            "Dialect to write [default: the inputs' own, if they agree].",
            metavar="DIALECT",
            completes="dialects",
        ),
    ] = None
    program: Annotated[
        Literal["comfyui", "a1111", "forge", "diffusers", "kohya", "invokeai", "peft"] | None,
        Doc("Program the file is for; chooses the dialect.", ("--for",)),
    ] = None
    dtype: Annotated[
        str | None,
        Doc(
            "Float type to write: float32, float16, bfloat16 [default: the widest of the inputs].",
            metavar="TYPE",
        ),
    ] = None
    force: Force = False

    @property
    def says_how(self) -> bool:
        """True if a dialect, program or type of the written file is given."""
        return bool(self.to or self.program or self.dtype)

    def target(self) -> str | None:
        """Return the dialect or program asked for.

        Raises:
            UsageError: if there is none of this name, or both are given.
        """
        from loramerge.dialects import DIALECTS, PROGRAMS

        if self.to and self.program:
            raise UsageError(
                "a dialect and a program are given, but only one of them can choose the dialect",
                hint=("give ", Setting("to", self.to), " or ", Setting("for", self.program)),
            )
        asked = self.to or self.program
        if asked is not None and asked not in DIALECTS and asked not in PROGRAMS:
            raise UsageError(
                f"{asked!r} is not a dialect",
                expected=", ".join(DIALECTS),
                hint=suggestion(asked, (*DIALECTS, *PROGRAMS)),
            )
        return asked

    def float_type(self) -> str | None:
        """Return the safetensors name of the type asked for; see `float_type`."""
        return float_type(self.dtype, ADAPTER_FLOATS)
