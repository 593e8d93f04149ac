"""The adapter: an ordered mapping from sites to deltas, and everything known about its file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from loramerge.adapter.delta import Delta
from loramerge.adapter.kinds import marks
from loramerge.adapter.site import Site
from loramerge.dialects.detect import Detection
from loramerge.errors import AdapterError, listed
from loramerge.families import Family
from loramerge.files.tensors import Tensor

__all__ = ["WIDTH", "Account", "Adapter", "Info", "Origin", "Problem", "define_sum", "widest"]

# order of width; what two different types of one width widen to is in `widest`
WIDTH = {"F8_E5M2": 0, "F8_E4M3": 0, "F16": 1, "BF16": 1, "F32": 2, "F64": 3}


def widest(dtypes: set[str]) -> str:
    """Return the narrowest type that holds every value of the given float types; never float8.

    The result does not depend on an order: float16 and bfloat16 together need float32.
    """
    floats = {dtype for dtype in dtypes if dtype in WIDTH}
    top = max((WIDTH[dtype] for dtype in floats), default=2)
    if top == 0:
        return "F16"
    if top == 1:
        halves = {dtype for dtype in floats if WIDTH[dtype] == 1}
        return halves.pop() if len(halves) == 1 else "F32"
    return "F32" if top == 2 else "F64"


@dataclass(frozen=True)
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


@dataclass
class Account:
    """What became of every tensor of the file; each key is in exactly one of the three."""

    used: list[str] = field(default_factory=list)
    carried: list[str] = field(default_factory=list)
    unknown: dict[str, str | None] = field(default_factory=dict)  # key → nearest known key


@dataclass(frozen=True)
class Origin:
    """What made an adapter, and what it held then: it counts only while that is still so.

    Args:
        maker: the path it was read from, or the step that computed it.
    """

    maker: Any
    deltas: Mapping[Site, Delta]
    embeddings: Mapping[str, Tensor]
    metadata: Mapping[str, str]


@dataclass
class Info:
    """What is known about an adapter beside its deltas.

    Args:
        path: where it was read from, None for a computed one.
        files: every file it was read from.
        size: bytes of that file or folder.
        dialects: dialect → number of modules spelled so.
        spelling: (site, role) → (dialect, key) as the file spells it.
        order: every key of the file, in the order of the data; none for a computed adapter.
        configs: component → PEFT configuration (`''` where there is one for all).
        dtype: float type to write by default (safetensors name), None: the widest stored.
        types: site → float type to write, for sites that were computed where `dtype` is None.
        origin: what made it, if that is known; see `Adapter.maker`.
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
    order: tuple[str, ...] = ()
    dtype: str | None = None
    types: dict[Site, str] = field(default_factory=dict)
    origin: Origin | None = None

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


@dataclass
class Adapter:
    """Deltas by site, embeddings carried along, and `info`."""

    deltas: dict[Site, Delta]
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    info: Info = field(default_factory=Info)

    @property
    def family(self) -> Family | None:
        """The family, if it is known for sure."""
        return self.info.detection.family

    @property
    def label(self) -> str:
        """The file's path, or a word for one that was computed."""
        return self.info.path or "the computed adapter"

    @property
    def dtype(self) -> str:
        """The float type results are written in by default."""
        if self.info.dtype is not None:
            return self.info.dtype
        types = self.info.types
        return widest(
            {
                types.get(site, tensor.dtype)
                for site, delta in self.deltas.items()
                for tensor in delta.stored().values()
            }
        )

    @property
    def maker(self) -> Any:
        """What made it: a path or a step, or None if it was changed since, or made by hand."""
        origin = self.info.origin
        if origin is None:
            return None
        then = (origin.deltas, origin.embeddings, origin.metadata)
        return origin.maker if then == (self.deltas, self.embeddings, self.info.metadata) else None

    def made_by(self, maker: Any) -> Adapter:
        """Return self, remembering what made it."""
        self.info.origin = Origin(
            maker, dict(self.deltas), dict(self.embeddings), dict(self.info.metadata)
        )
        return self

    def modules(self) -> Iterator[tuple[str, Delta]]:
        """Yield (name, delta) of every site."""
        for site, delta in self.deltas.items():
            yield site.name, delta

    def kinds(self) -> dict[str, int]:
        """Count sites by kind."""
        return dict(Counter(delta.kind for delta in self.deltas.values()))

    def components(self) -> dict[str, int]:
        """Count sites by component."""
        return dict(Counter(site.component for site in self.deltas))

    def ranks(self) -> dict[int, int]:
        """Count sites by rank as the file counts it, kinds of factors only."""
        cores = (delta.core for delta in self.deltas.values())
        found = Counter(c.dim for c in cores if c is not None and c.dim is not None)
        return dict(sorted(found.items()))

    def alphas(self) -> dict[float, int]:
        """Count sites by the alpha the file states."""
        found = Counter(d.alpha for d in self.deltas.values() if d.alpha is not None)
        return dict(sorted(found.items()))

    def dtypes(self) -> dict[str, int]:
        """Count stored tensors by type (alphas apart)."""
        return dict(Counter(t.dtype for d in self.deltas.values() for t in d.stored().values()))

    def with_deltas(self, deltas: Mapping[Site, Delta], **info: Any) -> Adapter:
        """Return an adapter of other deltas that keeps embeddings and what is known."""
        return Adapter(dict(deltas), dict(self.embeddings), replace(self.info, **info))

    def __mul__(self, weight: float) -> Adapter:
        """Return `weight · ΔW`, exactly."""
        return _sum([(self, weight)]) if isinstance(weight, (int, float)) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Adapter:
        return self * (1.0 / divisor) if isinstance(divisor, (int, float)) else NotImplemented

    def __neg__(self) -> Adapter:
        return self * -1.0

    def __add__(self, other: Adapter) -> Adapter:
        """Return the exact sum of what two adapters change."""
        return _sum([(self, 1.0), (other, 1.0)]) if isinstance(other, Adapter) else NotImplemented

    def __sub__(self, other: Adapter) -> Adapter:
        return _sum([(self, 1.0), (other, -1.0)]) if isinstance(other, Adapter) else NotImplemented

    def require_sound(self) -> Adapter:
        """Return self, or refuse to compute with an adapter whose content is broken.

        Raises:
            AdapterError: listing every error found when the file was read.
        """
        errors = [p for p in self.info.problems if p.severity == "error"]
        if errors:
            raise AdapterError(
                "; ".join(sorted({p.message for p in errors})[:5]),
                file=self.info.path,
                module=listed([p.module for p in errors if p.module], 5),
                hint=errors[0].remedy,
            )
        if not self.deltas:
            raise AdapterError(
                "no tensor of this file belongs to an adapter that loramerge knows",
                file=self.info.path,
                found=listed(list(self.info.account.unknown), 3) or "an empty file",
                hint="loramerge dialects lists what can be read",
            )
        return self


Sum = Callable[[list[tuple[Adapter, float]]], Adapter]
_defined: list[Sum] = []


def define_sum(function: Sum) -> None:
    """Say how `0.7 * a + 0.3 * b` is computed: by the mix of a layer above this one."""
    _defined[:] = [function]


def _sum(terms: list[tuple[Adapter, float]]) -> Adapter:
    if not _defined:
        raise TypeError("adapters can be added once loramerge is imported as a whole: lm.mix")
    return _defined[0](terms)
