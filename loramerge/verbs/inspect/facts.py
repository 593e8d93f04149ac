"""The parameters and the results of inspect: one result for each file, and all of them."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from loramerge.adapter import Problem
from loramerge.adapter.metadata import RECIPE_KEY
from loramerge.families.usual import Usual
from loramerge.records import record, replaced
from loramerge.steps.parameters import Doc
from loramerge.steps.shown import Shown

__all__ = ["Inspect", "InspectResult", "Inspected"]

_CHECKED = ("bake", "merge", "unbake")  # what `verify` checks in a checkpoint


@record(kw_only=True)
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
            "name", "family", "kind", "rank", "size", "trained-on", "trigger-words", "weight",
            "loads-in", "problems",
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
        return [(replaced(self, files=tuple(file.path for file in result.files)), result)]


@record(eq=False, frozen=False, repr=False)
class Inspected(Shown):
    """The facts about one file; the names are those of `--json`."""

    headline = ("path", "what", "dialect", "family", "modules", "ranks")
    reported_as = "inspect"

    path: str
    size: int | None
    what: str
    dialect: str | None = None
    family: str | None = None
    family_reason: str | None = None
    trained_on: str | None = None
    kinds: dict[str, int] = field(default_factory=dict)
    modules: int = 0
    components: dict[str, int] = field(default_factory=dict)
    ranks: dict[int, int] = field(default_factory=dict)
    alphas: dict[float, int] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    embeddings: list[str] = field(default_factory=list)
    unknown_keys: list[str] = field(default_factory=list)
    nearest_keys: dict[str, str] = field(default_factory=dict)
    tags: list[tuple[str, int]] = field(default_factory=list)
    trigger_words: list[str] = field(default_factory=list)
    loads_in: list[str] = field(default_factory=list)
    loads_otherwise: dict[str, str] = field(default_factory=dict)
    usual_weight: float | None = None
    merged: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] | None = None
    checked: str = "header"
    findings: list[Problem] = field(default_factory=list)
    norm: float | None = None
    mean_norm: float | None = None
    usual_norm: Usual | None = None
    table: list[dict[str, Any]] | None = None
    base: dict[str, Any] | None = None
    error: str | None = None
    measured: list[dict[str, Any]] | None = None  # of every module, for pages and pictures

    @property
    def verifiable(self) -> bool:
        """True for a checkpoint whose header has a recipe that `verify` checks by the change."""
        if self.what != "checkpoint" or RECIPE_KEY not in self.metadata:
            return False
        from loramerge.steps.inside import last_step
        from loramerge.steps.provenance import recipe_in

        recipe = recipe_in(self.metadata)
        return recipe is not None and last_step(recipe)[0] in _CHECKED

    def json(self) -> dict[str, Any]:
        """Return this file's object in `--json`; keys are always present, null if not computed."""
        names = self.__dataclass_fields__.keys() - {"measured"}
        shown = {name: getattr(self, name) for name in self.__dataclass_fields__ if name in names}
        shown["findings"] = [
            {name: getattr(f, name) for name in ("severity", "code", "module", "message", "remedy")}
            for f in self.findings
        ]
        if self.usual_norm is not None:
            shown["usual_norm"] = self.usual_norm._asdict()
        if self.base is not None and self.base.get("usual_change"):
            shown["base"] = self.base | {"usual_change": self.base["usual_change"]._asdict()}
        return shown


@record
class InspectResult:
    """All files, in order."""

    files: list[Inspected]
    exit_code: int = 0
    all_metadata: bool = False
    verbose: bool = False
    sort: str | None = None

    def json(self) -> list[dict[str, Any]]:
        """Return the list that `--json` prints."""
        return [file.json() for file in self.files]
