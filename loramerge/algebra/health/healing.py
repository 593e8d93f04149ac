"""Healing: the repairs one after the other, each on what the one before it left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loramerge.adapter import Adapter, Delta, Site
from loramerge.adapter.kinds.lora import as_lora
from loramerge.adapter.widths import widest
from loramerge.algebra.health.examination import measures_of
from loramerge.algebra.health.repairs import REPAIRS
from loramerge.errors import AdapterError, Setting, listed
from loramerge.events import Notify, ignore

__all__ = ["Repaired", "heal_adapter", "without_damaged"]


@dataclass(frozen=True)
class Repaired:
    """One repair that was made.

    Args:
        repair: its name, or `damaged` for what was left out on demand.
        exact: whether ΔW is what it was.
    """

    repair: str
    module: str
    words: str
    exact: bool


def without_damaged(
    adapter: Adapter, *, drop: bool, threads: int | None = None, notify: Notify = ignore
) -> tuple[Adapter, list[Repaired]]:
    """Return an adapter without modules that cannot be repaired, and what was left out.

    Args:
        drop: leave them out; otherwise they are refused.

    Raises:
        AdapterError: naming the modules.
    """
    broken = {
        m.site: "NaN or infinity"
        for m in measures_of(adapter, norms=True, threads=threads, notify=notify)
        if m.not_finite
    }
    errors = {p.module: p for p in adapter.info.problems if p.severity == "error"}
    named = {site.name: site for site in adapter.deltas}
    broken |= {named[name]: p.message for name, p in errors.items() if name in named}
    absent = {name or "the file": p.message for name, p in errors.items() if name not in named}
    if not broken and not absent:
        return adapter, []
    names = {site.name: why for site, why in broken.items()} | absent
    if not drop:
        raise AdapterError(
            f"{listed(sorted(set(names.values())), 3)} cannot be repaired",
            file=adapter.info.path,
            module=listed(sorted(names), 8),
            hint=(
                "use an earlier checkpoint, or leave these modules out with ",
                Setting("drop_damaged", True),
            ),
        )
    left = {site: delta for site, delta in adapter.deltas.items() if site not in broken}
    _require_some(adapter, left)
    unknown = list(adapter.info.account.unknown)
    info = replace(
        adapter.info,
        problems=[p for p in adapter.info.problems if p.severity != "error"],
        account=replace(adapter.info.account, unknown={}),
    )
    done = [Repaired("damaged", name, f"left out: {why}", False) for name, why in names.items()]
    done += [Repaired("damaged", key, "left out: this tensor alone makes no module", False)
             for key in unknown]  # fmt: skip
    return replace(adapter.with_deltas(left), info=info), done


def heal_adapter(
    adapter: Adapter,
    repairs: Sequence[str] = tuple(REPAIRS),
    *,
    alpha_zero: str = "drop",
    threads: int | None = None,
    notify: Notify = ignore,
) -> tuple[Adapter, list[Repaired]]:
    """Return a repaired adapter, and every repair.

    Args:
        repairs: names out of `REPAIRS`; they are made in its order.
        alpha_zero: `drop` reads alpha 0 as no effect, `rank` as alpha = rank.

    Raises:
        AdapterError: if nothing would be left.
    """
    done: list[Repaired] = []
    if alpha_zero == "rank" and "alpha" in repairs:
        adapter, done = _with_effect(adapter)
    for name, repair in REPAIRS.items():
        if name not in repairs:
            continue
        measures = measures_of(adapter, threads=threads, notify=notify)
        changes = repair.find(adapter, measures)
        if not changes:
            continue
        deltas: dict[Site, Delta] = {}
        types = dict(adapter.info.types)
        for site, delta in adapter.deltas.items():
            if site not in changes:
                deltas[site] = delta
                continue
            change = changes[site]
            done.append(Repaired(name, site.name, change.words, change.exact))
            if change.delta is not None:
                deltas[site] = change.delta
                types.setdefault(site, widest({t.dtype for t in delta.stored().values()}))
        _require_some(adapter, deltas)
        adapter = adapter.with_deltas(deltas, types=types)
    return adapter, done


def _with_effect(adapter: Adapter) -> tuple[Adapter, list[Repaired]]:
    """Return an adapter whose alphas of 0 are the rank."""
    deltas, done = dict(adapter.deltas), []
    for site, delta in adapter.deltas.items():
        lora = as_lora(delta)
        if lora is not None and lora.alpha == 0:
            scale = lora.scale._replace(alpha=float(lora.rank), stored=None)
            deltas[site] = replace(lora, scale=scale)
            done.append(Repaired("alpha", site.name, f"alpha 0 became {lora.rank}", False))
    return adapter.with_deltas(deltas), done


def _require_some(adapter: Adapter, left: object) -> None:
    if not left:
        raise AdapterError(
            "nothing would be left: no module of the adapter changes anything",
            file=adapter.info.path,
            hint="it was never trained, or is wholly damaged; use another file",
        )
