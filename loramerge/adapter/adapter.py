"""The adapter: an immutable mapping from sites to deltas, and everything known about its file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from loramerge.adapter.delta import Delta
from loramerge.adapter.info import Info, Origin
from loramerge.adapter.site import Site
from loramerge.adapter.widths import widest
from loramerge.errors import AdapterError, listed
from loramerge.families import Family
from loramerge.files.tensors import Tensor
from loramerge.records import record, replaced

if TYPE_CHECKING:
    from loramerge.adapter.shown import Overview

__all__ = ["Adapter"]


@record(eq=False)
class Adapter(Mapping[str, Delta]):
    """Deltas by site, embeddings, and `info`. Immutable.

    It is a mapping by module name: `len(a)`, `name in a`, `a[name]`, `for name in a`; a `Site` is
    taken for a name. `0.7 * a + 0.3 * b` is `loramerge.mix([(a, 0.7), (b, 0.3)])`.
    """

    deltas: Mapping[Site, Delta]
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)
    info: Info = field(default_factory=Info)

    def __post_init__(self) -> None:
        for name in ("deltas", "embeddings"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __reduce__(self) -> tuple[Any, ...]:
        return Adapter, (dict(self.deltas), dict(self.embeddings), self.info)

    # --- a mapping

    def __len__(self) -> int:
        return len(self.deltas)

    def __iter__(self) -> Iterator[str]:
        return (site.name for site in self.deltas)

    def __getitem__(self, name: str | Site) -> Delta:
        found = name if isinstance(name, Site) else self._sites.get(name)
        if found is None or found not in self.deltas:
            raise KeyError(name)
        return self.deltas[found]

    def __contains__(self, name: object) -> bool:
        return name in self.deltas if isinstance(name, Site) else name in self._sites

    def __bool__(self) -> bool:
        return True  # an adapter without deltas is one, too

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @cached_property
    def _sites(self) -> Mapping[str, Site]:
        return {site.name: site for site in self.deltas}

    def modules(self) -> Iterator[tuple[str, Delta]]:
        """Yield (name, delta) of every site."""
        for site, delta in self.deltas.items():
            yield site.name, delta

    # --- for people

    def __repr__(self) -> str:
        return self._overview().line()

    def _repr_html_(self) -> str:
        return self._overview().html()

    def _overview(self) -> Overview:
        from loramerge.adapter.shown import Overview

        return Overview(
            self.info,
            dict(self.modules()),
            self.kinds(),
            self.components(),
            self.ranks(),
            self.alphas(),
            tuple(self.embeddings),
        )

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
        """The path or step that made it, or None if it was changed since, or made by hand."""
        origin = self.info.origin
        if origin is None:
            return None
        now = (dict(self.deltas), dict(self.embeddings), self.info.metadata)
        return origin.maker if now == (origin.deltas, origin.embeddings, origin.metadata) else None

    @property
    def only_replaces(self) -> bool:
        """True if it contains only whole weights, like a checkpoint."""
        return all(delta.facts.replaces for delta in self.deltas.values())

    def kinds(self) -> dict[str, int]:
        """Count sites by kind."""
        return dict(Counter(delta.kind for delta in self.deltas.values()))

    def components(self) -> dict[str, int]:
        """Count sites by component."""
        return dict(Counter(site.component for site in self.deltas))

    def ranks(self) -> dict[int, int]:
        """Count sites by rank as the file counts it, kinds of factors only."""
        cores = (delta.core for delta in self.deltas.values())
        found = Counter(core.dim for core in cores if core is not None)
        return dict(sorted((rank, n) for rank, n in found.items() if rank is not None))

    def alphas(self) -> dict[float, int]:
        """Count sites by the alpha the file states."""
        found = Counter(delta.alpha for delta in self.deltas.values())
        return dict(sorted((alpha, n) for alpha, n in found.items() if alpha is not None))

    def dtypes(self) -> dict[str, int]:
        """Count stored tensors by type (alphas apart)."""
        return dict(Counter(t.dtype for d in self.deltas.values() for t in d.stored().values()))

    def with_deltas(
        self, deltas: Mapping[Site, Delta], *, made: Any = None, **info: Any
    ) -> Adapter:
        """Return an adapter of other deltas that keeps embeddings and facts.

        Args:
            made: what made it, see `maker`; None keeps what is known, which holds only while nothing
                has changed.
            info: fields of `info` to replace.
        """
        changed = replaced(self.info, **info)
        if made is not None:
            held = (dict(deltas), dict(self.embeddings), dict(changed.metadata))
            changed = replaced(changed, origin=Origin(made, *held))
        return Adapter(deltas, self.embeddings, changed)

    # --- arithmetic

    def __mul__(self, weight: float) -> Adapter:
        """Return `weight · ΔW`, exactly."""
        return _sum((self, weight)) if isinstance(weight, (int, float)) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Adapter:
        return self * (1.0 / divisor) if isinstance(divisor, (int, float)) else NotImplemented

    def __neg__(self) -> Adapter:
        return self * -1.0

    def __add__(self, other: Adapter) -> Adapter:
        """Return the exact sum of the changes of two adapters."""
        return _sum((self, 1.0), (other, 1.0)) if isinstance(other, Adapter) else NotImplemented

    def __sub__(self, other: Adapter) -> Adapter:
        return _sum((self, 1.0), (other, -1.0)) if isinstance(other, Adapter) else NotImplemented

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


def _sum(*terms: tuple[Adapter, float]) -> Adapter:
    """Return the weighted sum as the package's public `mix` gives it; one of nothing is zero.

    Operators are a way to write what `loramerge` itself offers, and it is asked by its name when they
    are used: so they work whatever was imported, and no layer above this one is imported by it.
    """
    import loramerge

    if any(weight != 0.0 for _, weight in terms):
        return loramerge.mix(terms)
    zero = terms[0][0]
    deltas = {site: delta.scaled(0.0) for site, delta in zero.deltas.items()}
    return zero.with_deltas(deltas, path=None, files=(), size=None)
