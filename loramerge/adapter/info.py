"""Facts about an adapter beside its deltas: file, dialect, family, metadata, account, problems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from functools import cached_property
from pathlib import Path
from typing import Any

from loramerge.adapter.delta import Delta
from loramerge.adapter.kinds import marks
from loramerge.adapter.site import Site
from loramerge.dialects.detection import Detection
from loramerge.files.tensors import Tensor
from loramerge.records import record

__all__ = ["Account", "Info", "Origin", "Problem"]


@record
class Problem:
    """Something wrong with an adapter's content, as `inspect` lists it.

    Args:
        severity: `error` (operations refuse), `warning` or `note`.
        code: short and stable, e.g. `missing-partner`.
    """

    severity: str
    code: str
    module: str | None
    message: str
    remedy: str


@record
class Account:
    """The fate of every tensor of the file; each key is in exactly one of the three."""

    used: list[str] = field(default_factory=list)
    carried: list[str] = field(default_factory=list)
    unknown: dict[str, str | None] = field(default_factory=dict)  # key → nearest known key


@record
class Origin:
    """The maker of an adapter, and what it held then: it counts only while that is still so.

    Args:
        maker: the path it was read from, or the step that computed it.
    """

    maker: Any
    deltas: Mapping[Site, Delta]
    embeddings: Mapping[str, Tensor]
    metadata: Mapping[str, str]


@record
class Info:
    """Facts about an adapter beside its deltas.

    Args:
        path: where it was read from, None for a computed one.
        files: every file it was read from.
        size: bytes of that file or folder.
        dialects: dialect → number of modules spelled so.
        spelling: (site, role) → (dialect, key) as the file spells it.
        stems: module that no family knows → dialect → what a file calls it there.
        aside: whether the file names modules as a dialect is read but never written.
        order: every key of the file, in the order of the data; none for a computed adapter.
        configs: component → PEFT configuration (`''` where there is one for all).
        dtype: float type to write by default (safetensors name), None: the widest stored.
        types: site → float type to write, for sites that were computed where `dtype` is None.
        origin: its origin, if known; see `Adapter.maker`.
        translated: the program whose own format was read as a dialect's; None for files of a dialect.
        llama_cpp: the architecture that it is for and its numbers of heads, as fields of GGUF files;
            nothing where they are not known.
        network: of two networks of a pipeline, the one that the name of its file said, where the keys
            say neither; empty if nothing did.
    """

    path: str | None = None
    files: tuple[Path, ...] = ()
    size: int | None = None
    dialects: dict[str, int] = field(default_factory=dict)
    detection: Detection = field(default_factory=lambda: Detection((), "made in memory"))
    metadata: dict[str, str] = field(default_factory=dict)
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    account: Account = field(default_factory=Account)
    problems: list[Problem] = field(default_factory=list)
    spelling: dict[tuple[Site, str], tuple[str, str]] = field(default_factory=dict)
    stems: dict[str, dict[str, str]] = field(default_factory=dict)
    aside: bool = False
    order: tuple[str, ...] = ()
    dtype: str | None = None
    types: dict[Site, str] = field(default_factory=dict)
    origin: Origin | None = None
    translated: str | None = None
    llama_cpp: Mapping[str, str | int] = field(default_factory=dict)
    network: str = ""

    @cached_property
    def spelled(self) -> Mapping[Site, frozenset[str]]:
        """Site → the dialects that the file spells it in."""
        marking = marks({role for _, role in self.spelling})
        found: dict[Site, set[str]] = {}
        for (site, role), (dialect, _) in self.spelling.items():
            if role in marking:
                found.setdefault(site, set()).add(dialect)
        return {site: frozenset(dialects) for site, dialects in found.items()}

    @property
    def dialect(self) -> str | None:
        """The one dialect of the file, or the one most of its modules are in."""
        return max(self.dialects, key=lambda name: self.dialects[name], default=None)
