"""The results of inspect: one for each file, and all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from loramerge.adapter import Problem
from loramerge.steps.shown import Shown

__all__ = ["InspectResult", "Inspected"]


@dataclass(repr=False, eq=False)
class Inspected(Shown):
    """The facts about one file; the names are those of `--json`."""

    headline = ("path", "what", "dialect", "family", "modules", "ranks")

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
    table: list[dict[str, Any]] | None = None
    base: dict[str, Any] | None = None
    error: str | None = None

    def json(self) -> dict[str, Any]:
        """Return this file's object in `--json`; keys are always present, null if not computed."""
        shown = {name: getattr(self, name) for name in self.__dataclass_fields__}
        shown["findings"] = [
            {name: getattr(f, name) for name in ("severity", "code", "module", "message", "remedy")}
            for f in self.findings
        ]
        return shown


@dataclass
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
