"""Compute some tensors of a merge without writing anything, as an estimate of what rounding keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from loramerge.checkpoint.storages import recognised
from loramerge.events import Notify, ignore
from loramerge.files.dtypes import DTYPES
from loramerge.stream.ingredients import Blended
from loramerge.stream.merge import layouts_of
from loramerge.stream.merge_plan import MergePlan
from loramerge.stream.survival import Survival
from loramerge.stream.walk import Layout, compute
from loramerge.stream.whole import Whole

__all__ = ["Surveyed", "survey"]


@dataclass
class Surveyed:
    """Some tensors of one storage, as a merge would write them.

    Args:
        survivals: of their parameters that are not only copied. The sums of each are multiplied by the
            number of parameters like it that it stands for, so that the sums of all are an estimate for
            the whole storage.
        measured: number of these tensors.
        tensors: number of all tensors in the storage that the merge computes.
    """

    survivals: list[Survival] = field(default_factory=list)
    measured: int = 0
    tensors: int = 0


def survey(
    plan: MergePlan,
    share: float = 1.0,
    least: int = 1,
    *,
    threads: int | None = None,
    notify: Notify = ignore,
) -> dict[str, Surveyed]:
    """Return storage → what `merge` finds there, from some tensors: the largest, and some of the rest.

    The operator must not need to know all parameters together (`Operator.pool`).

    Args:
        share: of the tensors of each storage that are computed; 1 is all of them.
        least: number of tensors that are computed in each storage, where it has so many.

    Raises:
        NumericsError: see `merge.merge`.
    """
    layouts = layouts_of(plan, Whole(plan.blends))
    places: dict[str, list[tuple[int, str]]] = {}
    for number, layout in enumerate(layouts):
        for name in (one for one in layout.tensors if one in layout.computed):
            places.setdefault(_storage(layout, name), []).append((number, name))
    found = {storage: Surveyed(tensors=len(several)) for storage, several in places.items()}
    for storage, several in places.items():
        sizes = [layouts[number].tensors[name].size for number, name in several]
        some = spread(sizes, max(least, round(share * len(several))))
        times = {several[place]: count for place, count in some.items()}
        found[storage].measured = len(times)
        for number, layout in enumerate(layouts):
            chosen = {n: v for n, v in layout.computed.items() if (number, n) in times}
            found[storage].survivals += [
                _times(one.survival, times[number, one.survival.tensor])
                for one in compute(
                    [replace(layout, computed=chosen)],
                    task="surveying",
                    threads=threads,
                    notify=notify,
                )
                if not one.copied
            ]
    return found


def spread(sizes: Sequence[int], count: int) -> Mapping[int, float]:
    """Return the places of some things, by their sizes, and the number of things that each stands for.

    What is large is always among them. The rest are drawn evenly over their sizes: a thing of twice the
    size is twice as likely drawn, and stands for half as many.

    Args:
        count: of those that are chosen, at most all.
    """
    if count >= len(sizes):
        return dict.fromkeys(range(len(sizes)), 1.0)
    total, found = sum(sizes), dict[int, float]()
    for place in sorted(range(len(sizes)), key=lambda one: -sizes[one]):
        if count == 0 or sizes[place] * count < total:
            break
        found[place] = 1.0
        total, count = total - sizes[place], count - 1
    reached, step = 0.0, total / max(1, count)
    point = step / 2
    for place, size in enumerate(sizes):
        if count == 0 or place in found:
            continue
        reached += size
        if reached > point:  # once at most, since each is smaller than a step
            found[place] = step / size
            point += step
    return found


def _times(one: Survival, count: float) -> Survival:
    return replace(
        one,
        asked=count * one.asked,
        along=count * one.along,
        error=count * one.error,
        base=count * one.base,
    )


def _storage(layout: Layout[Blended], name: str) -> str:
    """Return the form in which a tensor is written: its type, and its storage where that is another."""
    word, found = DTYPES[layout.infos[name].dtype].word, recognised(layout.tensors, name)
    if found is None or word.startswith(found[0].name):
        return word
    storage, held = found
    plain = held.packing is None and not held.beside
    return word if plain else f"{word}, {storage.name}"
