"""How a verb's field says what it means, and how a verb is run.

A parameter is a dataclass field `Annotated` with `Doc` (its help) and bounds from `annotated_types`.
The command line derives its options from these fields.
"""

from __future__ import annotations

from dataclasses import dataclass

from loramerge.events import Notify, ignore

__all__ = ["Context", "Doc"]


@dataclass(frozen=True)
class Doc:
    """What a parameter means.

    Args:
        help: one or two sentences.
        flags: option names; `()` derives one from the field's name, `("ARGUMENT",)` style upper case
            makes it positional.
        metavar: what stands for the value in help.
        completes: what shell completion offers: `adapters`, `bases`, `dialects`, or nothing.
    """

    help: str
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    completes: str | None = None

    @property
    def positional(self) -> bool:
        """Whether the value stands without an option name."""
        return bool(self.flags) and not self.flags[0].startswith("-")


@dataclass(frozen=True)
class Context:
    """How to run, as opposed to what: nothing here changes a result.

    Args:
        threads: worker threads; None takes all processors.
        device: torch device for decompositions, None for numpy.
        notify: told of progress, notes and warnings.
    """

    threads: int | None = None
    device: str | None = None
    notify: Notify = ignore
