"""Oddities of alphas: beside those of other modules, beside the rank, and beside the header."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping

from loramerge.adapter import Adapter, Delta, Problem, Site
from loramerge.algebra.health.limits import LIMITS

__all__ = ["about_alphas", "about_header", "odd_alphas"]

_SHARE = 0.8  # of the modules that agree, so that the others are odd
_FEWEST = 5  # modules, below which none is odd
_NEAR = 5e-3  # an alpha in bfloat16 is rounded by 2e-3 at most
_DIGITS = 3


def about_alphas(adapter: Adapter) -> Iterator[Problem]:
    """Yield what alphas say by themselves and beside those of other modules."""
    for site, (own, usual) in odd_alphas(adapter).items():
        rank = _rank(adapter.deltas[site])
        yield Problem(
            "warning",
            "alpha-odd",
            site.name,
            f"alpha {own:g} at rank {rank}; the other modules have alpha / rank {usual:.3g}, which "
            f"would be alpha {usual * rank:g} here",
            "loramerge heal gives it the scale of the others",
        )
    for site, delta in adapter.deltas.items():
        alpha, factor = delta.alpha, None if delta.core is None else delta.core.factor
        if alpha is None or factor is None or not math.isfinite(factor):
            continue
        if abs(factor) >= LIMITS["alpha-large"].value:
            yield Problem(
                "warning",
                "alpha-large",
                site.name,
                f"alpha {alpha:g} multiplies the factors by {factor:.3g}",
                "if the change is too strong, use a smaller weight",
            )
        elif alpha < 0 and delta.pair is not None:
            yield Problem(
                "warning",
                "alpha-negative",
                site.name,
                f"alpha is {alpha:g}; some programs do not read negative ones",
                "loramerge heal moves the sign into up, and the change stays the same",
            )


def odd_alphas(adapter: Adapter) -> dict[Site, tuple[float, float]]:
    """Return site → (its alpha, the scale that nearly all others of the component have).

    Linear layers and convolutions are compared apart. A module is odd if neither its alpha nor its scale
    is that of the others: tools that change ranks keep one of the two.
    """
    groups: dict[tuple[str, bool], list[tuple[Site, Delta]]] = {}
    for site, delta in adapter.deltas.items():
        if delta.facts.plain and delta.pair is not None and delta.alpha != 0:
            kernel = math.prod(delta.shape[2:]) > 1
            groups.setdefault((site.component, kernel), []).append((site, delta))
    found: dict[Site, tuple[float, float]] = {}
    for members in groups.values():
        found |= _odd(members)
    return found


def _odd(members: list[tuple[Site, Delta]]) -> dict[Site, tuple[float, float]]:
    figures = [(site, _alpha(delta), _alpha(delta) / _rank(delta)) for site, delta in members]
    if len(figures) < _FEWEST or not all(math.isfinite(alpha) for _, alpha, _ in figures):
        return {}
    alpha, many = Counter(_rounded(one) for _, one, _ in figures).most_common(1)[0]
    scale, number = Counter(_rounded(one) for _, _, one in figures).most_common(1)[0]
    if max(many, number) < _SHARE * len(figures):
        return {}
    return {
        site: (own, scale)
        for site, own, ratio in figures
        if not math.isclose(own, alpha, rel_tol=_NEAR)
        and not math.isclose(ratio, scale, rel_tol=_NEAR)
    }


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _rank(delta: Delta) -> int:
    assert delta.pair is not None
    return delta.pair.rank


def _alpha(delta: Delta) -> float:
    return float(_rank(delta)) if delta.alpha is None else delta.alpha


def about_header(adapter: Adapter) -> Iterator[Problem]:
    """Yield where the header or the configuration contradicts the tensors."""
    metadata = adapter.info.metadata
    yield from _other_alpha(adapter, metadata)
    yield from _other_configuration(adapter)
    if metadata.get("ss_network_alpha") == "None" or metadata.get("ss_network_dim") == "None":
        yield Problem(
            "note",
            "header-stale",
            None,
            "the header says that alpha or rank is None, as sd-scripts' resize does with kinds "
            "that it leaves as they were",
            "loramerge resize cuts these kinds, too",
        )
    comment = metadata.get("ss_training_comment", "")
    magnitudes = [s for s, d in adapter.deltas.items() if d.kind.startswith("dora")]
    if magnitudes and re.match(r"(?i)(dimension is resized|dynamic resize)", comment):
        yield Problem(
            "warning",
            "magnitudes-stale",
            None,
            "sd-scripts resized this DoRA and kept its magnitudes, which belong to the change before",
            "resize the original with loramerge resize",
        )


def _other_alpha(adapter: Adapter, metadata: Mapping[str, str]) -> Iterator[Problem]:
    """Yield the warning about a file whose alphas are not those that the header says."""
    dim, alpha = (_number(metadata.get(f"ss_network_{name}", "")) for name in ("dim", "alpha"))
    arguments = metadata.get("ss_network_args", "")
    if (
        not dim
        or not alpha
        or re.search(r"block_(dims|alphas)|rs_?lora|reg_(dims|alphas)", arguments)
    ):
        return
    plain = [
        delta
        for delta in adapter.deltas.values()
        if delta.facts.plain and delta.alpha != 0 and math.prod(delta.shape[2:]) == 1
    ]
    scales = Counter(_rounded(abs(_alpha(delta)) / _rank(delta)) for delta in plain)
    stated = alpha / dim
    if not scales or any(math.isclose(scale, stated, rel_tol=5e-3) for scale in scales):
        return
    scale = scales.most_common(1)[0][0]
    ranks = {_rank(delta) for delta in plain}
    grown = all(rank % dim == 0 and rank > dim for rank in ranks) and any(
        math.isclose(_alpha(delta), alpha, rel_tol=_NEAR) for delta in plain
    )
    cause = (
        ", as after joining factors without raising alpha"
        if grown
        else ", as after a conversion that lost alpha"
    )
    yield Problem(
        "warning",
        "alpha-not-as-trained",
        None,
        f"alpha / rank is {scale:g}, and the header says {alpha:g} / {dim:g} = {stated:.3g}{cause}",
        f"at weight {stated / scale:.3g} it is as strong as the header says",
    )


def _other_configuration(adapter: Adapter) -> Iterator[Problem]:
    """Yield the warning about a PEFT folder whose configuration has another rank than its tensors."""
    for component, config in adapter.info.configs.items():
        rank = config.get("r")
        if (
            config.get("rank_pattern")
            or not isinstance(rank, int)
            or config.get("peft_type") != "LORA"
        ):
            continue
        ranks = {
            _rank(delta)
            for site, delta in adapter.deltas.items()
            if delta.facts.plain and component in ("", site.component)
        }
        if ranks and rank not in ranks:
            yield Problem(
                "warning",
                "rank-not-as-configured",
                None,
                f"adapter_config.json says rank {rank}, and the factors have {min(ranks)}"
                + ("" if len(ranks) == 1 else f" to {max(ranks)}"),
                "PEFT refuses to load it; correct r and check lora_alpha in adapter_config.json",
            )


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) and found > 0 else None
