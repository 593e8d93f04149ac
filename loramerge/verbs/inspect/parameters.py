"""The parameters of inspect."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from loramerge.steps.parameters import Doc

if TYPE_CHECKING:
    from loramerge.verbs.inspect.result import InspectResult

__all__ = ["Inspect"]


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show the dialect, family, kinds, ranks, training metadata and problems of files.

    Only headers and alphas are read, which is instant. --deep reads the weights and looks for NaN,
    untrained modules, spikes, odd strengths and other damage. Several files become one table.
    """

    files: Annotated[
        tuple[str, ...],
        Doc("Adapter files, folders (recursively), patterns or names.", ("FILE",), None, "files"),
    ]
    deep: Annotated[bool, Doc("Read the weights: exact norms, and problems such as NaN.")] = False
    modules: Annotated[bool, Doc("List every module with rank, alpha and norm (reads the weights).")
    ] = False  # fmt: skip
    spectrum: Annotated[
        bool, Doc("List a summary of every module's singular values (reads the weights).")
    ] = False
    check: Annotated[
        bool, Doc("End with exit code 5 if a problem is an error (reads the weights).")
    ] = False
    base: Annotated[
        str | None,
        Doc(
            "Check the adapter against this base, and show how much of it rounding to the "
            "base's type would keep.",
            ("--base", "-b"),
            "BASE",
            "bases",
        ),
    ] = None
    hash: Annotated[bool, Doc("Show the digests of the file and of its tensors.")] = False
    metadata: Annotated[bool, Doc("Show every entry of the header's metadata.", recipe=False)] = (
        False
    )
    verbose: Annotated[
        bool,
        Doc(
            "Show everything about each of several files, instead of a table.",
            ("--verbose", "-v"),
            recipe=False,
        ),
    ] = False
    sort: Annotated[
        Literal[
            "name", "family", "kind", "rank", "size", "trained-on", "triggers", "weight", "loads-in",
            "problems",
        ]
        | None,
        Doc(
            "Sort the table of several files by this column; numbers and problems from the largest "
            "[default: as given].",
            recipe=False,
        ),
    ] = None  # fmt: skip
    csv: Annotated[
        str | None,
        Doc(
            "Also write the table as CSV, with all modules' findings.",
            metavar="FILE.csv",
            recipe=False,
        ),
    ] = None

    def repeating_steps(self, result: InspectResult) -> list[tuple[Inspect, InspectResult]]:
        """Return the step of a recipe that inspects the same files."""
        return [(replace(self, files=tuple(file.path for file in result.files)), result)]
