"""Networks that a pipeline has twice, and which of the two an adapter changes.

Wan 2.2 has a transformer for the first, noisy steps (`transformer`) and one for the last
(`transformer_2`). An adapter of diffusers' spelling says which of them its modules belong to; files of
other programs are for one network, and only their names may say for which. What is not said is never
guessed: a weight for each network settles it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loramerge.adapter import Adapter, Site
from loramerge.adapter.networks import moved, network_in, network_said, renamed
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import Checkpoint
from loramerge.errors import AdapterError
from loramerge.families import Component

__all__ = ["Inputs", "halves_apart", "into_networks"]

Inputs = Sequence[tuple[Adapter, Weight]]

_SAYS_COMPONENTS = ("diffusers", "peft")


def into_networks(base: Checkpoint, inputs: Inputs) -> tuple[Inputs, list[str]]:
    """Return each adapter with the modules of the network that it changes, and notes on which.

    Raises:
        AdapterError: if nothing says which network of the base an adapter is for, or which of the
            adapter's two networks the base is.
    """
    known = base.candidates[0].components if base.candidates else ()
    seconds = [component for component in known if component.second_of]
    notes: list[str] = []
    for second in seconds:
        place = _beside if second.name in base.layouts else _alone
        inputs = [one for given in inputs for one in place(base, second, *given, notes)]
        notes += _unchanged(base, second, inputs)
    return inputs, notes


def halves_apart(inputs: Inputs) -> tuple[Inputs, list[str]]:
    """Return adapters of both networks, each with the modules of its own, and notes on which.

    Files of one network each have the same names in them, so that a sum would add up what belongs apart.

    Raises:
        AdapterError: if nothing says which network one of them is for.
    """
    seconds = {
        second.name: second
        for adapter, _ in inputs
        for second in (
            adapter.info.detection.naming.components if adapter.info.detection.naming else ()
        )
        if second.second_of
    }
    notes: list[str] = []
    for second in seconds.values():
        said = [network_said(adapter, second) for adapter, _ in inputs]
        plain = [_is_of_first_names(adapter, second) for adapter, _ in inputs]
        named = {name for name, alone in zip(said, plain, strict=True) if alone and name}
        if second.name not in named:
            continue  # all modules have the names of the network that they are for
        found = []
        for (adapter, weight), alone in zip(inputs, plain, strict=True):
            first = second.second_of
            weighed = _weighed(weight, first, second.name) if alone else ""
            if weighed == second.name:
                found.append((moved(adapter, first, second.name), weight))
            elif alone and not weighed and _one_said(adapter, second) == second.name:
                found.append(_as_other(adapter, weight, first, second.name))
            else:
                found.append((adapter, weight))
                continue
            notes.append(f"{adapter.label} is for {second.name}")
        inputs = found
    return inputs, notes


def _is_of_first_names(adapter: Adapter, second: Component) -> bool:
    """Return whether an adapter has modules by the names of the first network alone."""
    has = adapter.components()
    return second.second_of in has and second.name not in has


def _beside(
    base: Checkpoint, second: Component, adapter: Adapter, weight: Weight, notes: list[str]
) -> Iterator[tuple[Adapter, Weight]]:
    """Yield an adapter for a base that has both networks."""
    has = adapter.components()
    first = second.second_of
    if first not in has or second.name in has:
        yield adapter, weight
    elif second.name in weight.components:
        yield adapter, weight
        yield moved(adapter, first, second.name, only=True), weight
    else:
        name = _one_said(adapter, second)
        yield (adapter, weight) if name == first else _as_other(adapter, weight, first, name)
        notes.append(f"{adapter.label} is for {name}")


def _alone(
    base: Checkpoint, second: Component, adapter: Adapter, weight: Weight, notes: list[str]
) -> Iterator[tuple[Adapter, Weight]]:
    """Yield an adapter for a base that has one network, of which it is not told which it is."""
    first = second.second_of
    if second.name not in adapter.components() or first not in base.layouts:
        yield adapter, weight
        return
    name = _weighed(weight, first, second.name) or network_in(str(base.path.absolute()), second)
    if not name:
        raise AdapterError(
            f"the adapter has modules of {_all_of(adapter, first, second.name)}, and nothing says which "
            "of the two the base is",
            file=adapter.label,
            expected=f"a folder with both, or a base whose name says high_noise ({first}) or low_noise "
            f"({second.name})",
            found=str(base.path),
            hint=f"give one of them the weight 0: {_short(adapter)}:{second.name}=0 or "
            f"{_short(adapter)}:{first}=0",
        )
    other = first if name == second.name else second.name
    kept = {site: d for site, d in adapter.deltas.items() if site.component != other}
    left = len(adapter.deltas) - len(kept)
    chosen = adapter.with_deltas(kept)
    yield (chosen, weight) if name == first else _as_other(chosen, weight, name, first)
    notes.append(f"the base is {name}; {left} modules of {other} in {adapter.label} are not for it")


def _unchanged(base: Checkpoint, second: Component, inputs: Inputs) -> Iterator[str]:
    """Yield the network of a base that nothing changes."""
    if second.name not in base.layouts or not inputs:
        return
    changed = {
        site.component
        for adapter, weight in inputs
        for site in adapter.deltas
        if weight.on(adapter)(site)
    }
    for name in (second.second_of, second.name):
        if name not in changed:
            yield f"{name} of this base is copied unchanged"


@dataclass(frozen=True)
class _ByFormerName(Weight):
    """The weight of modules by the names that they had in their file."""

    former: Weight = Weight()
    component: str = ""
    now: str = ""

    def on(self, adapter: Adapter) -> Callable[[Site], float]:
        of = self.former.on(adapter)
        return lambda site: of(
            renamed(site, self.component) if site.component == self.now else site
        )


def _as_other(adapter: Adapter, weight: Weight, source: str, target: str) -> tuple[Adapter, Weight]:
    """Return an adapter whose modules go into another component, with the weights that they had."""
    return moved(adapter, source, target), _ByFormerName(
        former=weight, component=source, now=target
    )


def _one_said(adapter: Adapter, second: Component) -> str:
    """Return the network that an adapter is for, by its keys and its name.

    Raises:
        AdapterError: if they do not say, or contradict each other.
    """
    first, said = second.second_of, network_said(adapter, second)
    keyed = first if adapter.info.dialect in _SAYS_COMPONENTS else ""
    if (said or keyed) and (not said or not keyed or said == keyed):
        return said or keyed
    why = f"its keys say {first}, and its name {said}" if keyed else "nothing says it"
    raise AdapterError(
        f"is the adapter for {first} or for {second.name}? {why}",
        file=adapter.label,
        expected=f"a name with high_noise ({first}) or low_noise ({second.name}), or keys of both",
        hint=f"give a weight for each: {_short(adapter)}:{first}=1:{second.name}=0",
    )


def _weighed(weight: Weight, first: str, second: str) -> str:
    """Return the only one of two networks that a weight leaves, empty if it does not say."""
    given = weight.components
    if first not in given and second not in given:
        return ""
    left = [name for name in (first, second) if given.get(name, weight.default) != 0.0]
    return left[0] if len(left) == 1 else ""


def _all_of(adapter: Adapter, *components: str) -> str:
    return " and ".join(name for name in components if name in adapter.components())


def _short(adapter: Adapter) -> str:
    return Path(adapter.info.path).stem if adapter.info.path else "NAME"
