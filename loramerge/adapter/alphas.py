"""Alphas as a dialect writes them: beside the factors, in a configuration, or folded into up."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from loramerge.adapter.adapter import Adapter
from loramerge.adapter.delta import AlphaPlace, Delta, Pair
from loramerge.adapter.site import Site
from loramerge.adapter.sites import spelled_before
from loramerge.dialects import Dialect
from loramerge.files.tensors import RawTensor, StoredTensor, Tensor

__all__ = [
    "Alphas",
    "had_alpha",
    "keeps_alpha",
    "of_each",
    "plan_alphas",
    "roles_of",
    "states_alpha",
]


@dataclass(frozen=True)
class Alphas:
    """The alphas to write beside the factors of a component.

    Args:
        one: the alpha to state for every module; None where the file's own are kept.
        none: no module has one: alpha is the rank, as in the file.
    """

    one: float | None = None
    none: bool = False


def plan_alphas(adapter: Adapter, target: Dialect) -> dict[str, Alphas]:
    """Choose the alphas of each component.

    diffusers takes the alpha of one module for all of its component, so alphas that differ, or that
    only some modules have, load at a wrong strength there. A component that did not change is
    written as it came; of others, every module states the same alpha, or none does.
    """
    naming = adapter.info.detection.naming
    if naming is not None and not naming.one_alpha:
        return {}
    found: dict[str, dict[Site, Pair]] = {}
    for site, delta in adapter.deltas.items():
        pair = delta.pair
        if pair is not None and pair.factor:
            found.setdefault(site.component, {})[site] = pair
    return {component: _component_alphas(adapter, target, d) for component, d in found.items()}


def _component_alphas(adapter: Adapter, target: Dialect, deltas: Mapping[Site, Pair]) -> Alphas:
    spelled = all(spelled_before(adapter, site, target) for site in deltas)
    stated = any((site, "alpha") in adapter.info.spelling for site in deltas)
    if spelled and not stated and all(d.factor == 1.0 for d in deltas.values()):
        return Alphas(none=True)
    if spelled and all(d.scale.unchanged for d in deltas.values()):
        return Alphas()
    alphas = {s: abs(d.factor) * d.rank for s, d in deltas.items()}
    # half types would be rounded once more, so theirs is kept if it can be
    narrow = [alphas[s] for s, d in deltas.items() if d.up.dtype in ("F16", "BF16")]
    counts = Counter(narrow or alphas.values())
    return Alphas(one=max(counts, key=lambda alpha: (counts[alpha], alpha)))


def had_alpha(
    adapter: Adapter, site: Site, delta: Delta, target: Dialect, *, spelled: bool
) -> bool:
    """Return whether an alpha is written even if it equals the rank."""
    if (site, "alpha") in adapter.info.spelling or states_alpha(adapter, target):
        return True
    naming = adapter.info.detection.naming
    pair = delta.pair
    if naming is None or naming.one_alpha or pair is None:
        return not spelled
    return pair.scale.weight != 1.0


def states_alpha(adapter: Adapter, target: Dialect) -> bool:
    """Return whether every module needs an alpha, as the loaders of a dialect's trainers do.

    Those of UNets take the rank for one that is absent; what they make of an unknown family is not
    known, and such a file keeps what it has.
    """
    naming = adapter.info.detection.naming
    return target.states_alpha and naming is not None and not naming.one_alpha


def keeps_alpha(adapter: Adapter, site: Site, target: Dialect) -> bool:
    """Return whether alpha is kept beside the factors, rather than folded into up.

    The header of a diffusers file can hold alphas, but programs other than diffusers ignore them;
    so they stay there only where a component is written again just as it came.
    """
    if target.alpha == "header":
        return site.component in adapter.info.configs and all(
            _as_loaded(adapter, other, delta, target)
            for other, delta in adapter.deltas.items()
            if other.component == site.component
        )
    return target.alpha in ("tensor", "config")


def of_each(adapter: Adapter) -> list[Site]:
    """Return one site of each component."""
    return list({site.component: site for site in adapter.deltas}.values())


def _as_loaded(adapter: Adapter, site: Site, delta: Delta, target: Dialect) -> bool:
    """Return whether a delta is the one its file holds, in the target's spelling."""
    return (
        all(isinstance(tensor, StoredTensor) for tensor in delta.stored().values())
        and (delta.core is None or delta.core.scale.weight == 1.0)
        and spelled_before(adapter, site, target)
    )


def roles_of(
    delta: Delta,
    target: Dialect,
    dtype: str | None,
    keeps: bool,
    alphas: Alphas,
    had: bool,
    always: bool,
) -> dict[str, Tensor]:
    """Return the tensors of one site, by role.

    Args:
        keeps: keep alpha beside the factors instead of folding it into up.
        alphas: how the component's alphas are written.
        had: the file has an alpha for the site.
        always: every module states its alpha, whatever its kind.
    """
    place: AlphaPlace = "folded"
    if keeps:
        place = "beside" if target.alpha == "tensor" else "apart"
    pair = delta.pair
    if pair is not None and place == "beside" and alphas.one is not None:
        if pair.factor and abs(pair.factor) * pair.rank != alphas.one:
            return pair.stated(dtype, alphas.one)
        return delta.encoded(dtype, alpha=place)
    roles = delta.encoded(dtype, alpha=place)
    if always and "alpha" not in roles and delta.core is not None and delta.core.dim:
        roles["alpha"] = RawTensor(struct.pack("<f", delta.core.dim), "F32", ())
    if pair is not None and (
        alphas.none or (pair.scale.alpha is None and pair.scale.ratio is None and not had)
    ):
        roles.pop("alpha", None)  # the file had none, and it would say nothing
    return roles
