"""Changes of the vocabulary and the output layer of language models by adapters.

An adapter may contain the weight that its factors change (PEFT's `base_layer.weight`), with more
rows if tokens were added to the vocabulary. And if the output layer shares the embedding's weight,
a change of only one of them separates the two. So tensors of the base are replaced or added before
deltas are matched to it, and its configuration is adapted.

Source: PEFT, of which a model that is not merged is what an adapter means; `merge_and_unload` adds into
the weight that both share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from loramerge.adapter import Adapter, Delta, Site
from loramerge.adapter.floats import cast, values
from loramerge.adapter.kinds.replacement import Replacement
from loramerge.algebra.terms import naming
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import Checkpoint, CheckpointFile, Place
from loramerge.checkpoint.generic import model_config, named_tensors, with_given
from loramerge.checkpoint.naming import renaming
from loramerge.errors import AdapterError, Setting, ShapeError, listed
from loramerge.files.tensors import Tensor, same_bytes
from loramerge.files.views import Derived
from loramerge.stream.sharing import TIE, head_of, modules_of, refuse_parts_of_shared, tied

__all__ = ["Adapted", "adapted"]

_SIZE = "vocab_size"

Inputs = Sequence[tuple[Adapter, Weight]]


@dataclass(frozen=True)
class Adapted:
    """A base changed as its adapters require, and the deltas that remain to be added.

    Args:
        config: fields of the model's configuration that change.
        notes: messages about differences from the base.
        warnings: messages about weights of adapters that replace different ones of the base.
    """

    checkpoint: Checkpoint
    inputs: Inputs
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()


def adapted(checkpoint: Checkpoint, inputs: Inputs) -> Adapted:
    """Return a transformers model with the vocabulary and output layer of its adapters.

    Raises:
        AdapterError: if two adapters contain different weights for one module, if a larger one is
        weighted, or if the configuration would change and lies beside a single file. ShapeError: if
        a weight of an adapter has another number of columns than the base's.
    """
    if checkpoint.candidates:
        return Adapted(checkpoint, inputs)
    for adapter, weight in inputs:
        refuse_parts_of_shared(checkpoint, adapter, weight)
    given = _BroughtWeights(checkpoint)
    rest = [(given.taken_from(adapter, weight), weight) for adapter, weight in inputs]
    shared = _Shared(checkpoint, given, rest)
    if shared.parts:
        given.part(shared.embedding, shared.head)
        rest += shared.aliases
    elif shared.head:
        given.tensors.pop(shared.head, None)
        rest = shared.kept
    if not given.tensors:
        return Adapted(checkpoint, rest)
    if checkpoint.files.weights[0].fields:
        raise AdapterError(
            "the adapter replaces or adds whole weights, which a GGUF base cannot take",
            file=checkpoint.path,
            module=listed(list(given.tensors), 3),
            hint="bake into the model that it was converted from, and convert the result",
        )
    changed = given.checkpoint()
    if given.config and checkpoint.files.root is None:
        raise AdapterError(
            f"the adapter changes {' and '.join(given.config)} in the model's configuration, "
            "which a single file does not contain",
            file=checkpoint.path,
            hint="give the folder of the model as the base",
        )
    return Adapted(changed, rest, given.config, given.notes, given.warnings)


@dataclass
class _BroughtWeights:
    """The whole weights in adapters for modules of a base."""

    base: Checkpoint
    tensors: dict[str, Tensor] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def place(self, module: str) -> Place | None:
        """Return the place of a module's weight in the base."""
        places = self.base.slots.get((module, "weight"))
        return places[0] if places else None

    def taken_from(self, adapter: Adapter, weight: Weight) -> Adapter:
        """Take the whole weights out of an adapter; return the adapter without them."""
        name = renaming((m for s in adapter.deltas for m in s.modules), modules_of(self.base))
        rest = dict(adapter.deltas)
        for site, delta in adapter.deltas.items():
            if not isinstance(delta, Replacement) or site.parameter == "bias":
                continue
            module = name(site.modules[0])
            place = self.place(module)
            like = place or self._like(module)
            larger = like is not None and _has_more_rows(delta, like)
            factor = weight.on(adapter)(site)
            if factor == 0.0 or not (site.parameter == "base" or larger):
                continue
            with naming(site, adapter.info.path):
                if factor != 1.0 and site.parameter == "weight":
                    raise AdapterError(
                        "a weight with more rows than the base's can be baked at weight 1 only",
                        found=factor,
                        hint="give this adapter weight 1, or bake into a base of this vocabulary",
                    )
                self._take(module, delta.value, place)
            del rest[site]
        return adapter if len(rest) == len(adapter.deltas) else adapter.with_deltas(rest)

    def _take(self, module: str, value: Tensor, place: Place | None) -> None:
        before = self.tensors.get(module)
        if before is not None and not same_bytes(before, value):
            raise AdapterError(
                "two adapters bring different weights for this module",
                hint="bake them one after the other, or drop this module from one of them",
            )
        if place is None and self._like(module) is None:
            raise AdapterError(
                "the adapter brings the weight of a module that the base lacks",
                hint=("leave it out: ", Setting("skip_missing", "all")),
            )
        if place is None or not same_bytes(place.tensor, value):
            self.tensors[module] = value

    def part(self, embedding: str, head: str) -> None:
        """Give the output layer its own weight, a copy of the unchanged embedding."""
        place = self.place(embedding)
        assert place is not None
        source = self.tensors.get(head) or self.tensors.get(embedding) or place.tensor
        self.tensors[head] = source
        self.config[TIE] = False
        self.notes.append(
            f"{head} gets a weight of its own, because the adapter changes it differently from "
            f"{embedding}"
        )

    def checkpoint(self) -> Checkpoint:
        """Return the base with the tensors in place."""
        found: dict[CheckpointFile, dict[str, Tensor]] = {}
        for module, value in self.tensors.items():
            place = self.place(module)
            like = place or self._like(module)
            assert like is not None
            name = f"{module}.weight" if place is None else place.name
            found.setdefault(like.file, {})[name] = _as_stored(value, like, module)
            if place is not None and value.shape != place.tensor.shape:
                self._resize(module, value, place)
            elif place is not None and _SIZE not in self.config and value is not place.tensor:
                self.warnings.append(
                    f"{module}: the adapter contains a whole weight that differs from the "
                    "base's, and it replaces the base's; was the adapter trained on this base?"
                )
        files = with_given(self.base.files, found)
        slots = {key: [Place(*where)] for key, where in named_tensors(files).items()}
        return replace(self.base, files=files, slots=slots)

    def _like(self, head: str) -> Place | None:
        """Return the place of the embedding whose weight an output layer shares."""
        for (module, parameter), places in self.base.slots.items():
            if parameter == "weight" and head_of(module, model_config(self.base.files)) == head:
                return places[0]
        return None

    def _resize(self, module: str, value: Tensor, place: Place) -> None:
        rows, *columns = value.shape
        if columns != [*place.tensor.shape[1:]]:
            raise ShapeError(
                "the adapter contains a whole weight whose shape is not the base's",
                module=module,
                expected=list(place.tensor.shape),
                found=list(value.shape),
                hint="the adapter was trained on a base of another size",
            )
        self.config[_SIZE] = rows
        self.notes.append(f"{module}: {rows} rows, {place.tensor.shape[0]} in the base")


def _has_more_rows(delta: Replacement, place: Place) -> bool:
    stored, brought = place.tensor.shape, delta.value.shape
    alike = len(brought) == len(stored) == 2 and brought[1] == stored[1]
    return alike and brought[0] > stored[0]


def _as_stored(value: Tensor, place: Place, module: str) -> Tensor:
    """Return a tensor in the type of the base's."""
    dtype = place.tensor.dtype
    if value.dtype == dtype:
        return value
    make = lambda: cast(values(value, "float64"), dtype, module).numpy()  # noqa: E731
    return Derived(dtype, value.shape, make)


# --- output layers that share the embedding's weight


class _Shared:
    """An embedding and the output layer that shares its weight, and whether adapters part them.

    Attributes:
        head: the output layer, '' where it has a weight of its own.
        parts: whether the two change differently.
        aliases: other deltas that change the output layer once it has its own weight.
        kept: the adapters without the output layer, if the two change equally.
    """

    def __init__(self, base: Checkpoint, given: _BroughtWeights, inputs: Inputs) -> None:
        self.embedding, self.head = tied(base)
        self.parts = False
        self.aliases: list[tuple[Adapter, Weight]] = []
        self.kept: list[tuple[Adapter, Weight]] = []
        if not self.head:
            return
        one, other = given.tensors.get(self.embedding), given.tensors.get(self.head)
        if one is not None and other is not None and not same_bytes(one, other):
            self.parts = True
        for adapter, weight in inputs:
            self._add(adapter, weight, base)
        if not self.parts and one is None and other is not None:
            given.tensors[self.embedding] = other

    def _add(self, adapter: Adapter, weight: Weight, base: Checkpoint) -> None:
        name = renaming(
            (m for s in adapter.deltas for m in s.modules), (*modules_of(base), self.head)
        )
        both = any(c.get("ensure_weight_tying") for c in adapter.info.configs.values())
        of = weight.on(adapter)
        deltas: dict[str, Delta] = {}
        sites: list[Site] = []
        for site, delta in adapter.deltas.items():
            module = name(site.modules[0])
            if module in (self.embedding, self.head) and site.parameter == "weight" and of(site):
                deltas[module] = delta if of(site) == 1.0 else delta.scaled(of(site))
                sites += [site] if module == self.head else []
        own, heads = deltas.get(self.embedding), deltas.get(self.head)
        shares = own is not None and (both or own.facts.tied)
        alike = both or (own is not None and heads is not None and _equal(own, heads))
        if (heads is not None and not alike) or (own is not None and not shares and not alike):
            self.parts = True
        if shares and own is not None and heads is None:
            alias = adapter.with_deltas({Site((self.head,)): own})
            self.aliases.append((alias, Weight()))
        rest = {site: d for site, d in adapter.deltas.items() if site not in sites}
        self.kept.append((adapter.with_deltas(rest) if alike and sites else adapter, weight))


def _equal(one: Delta, other: Delta) -> bool:
    """Return whether two replacements of an embedding and of an output layer are the same."""
    if not isinstance(one, Replacement) or not isinstance(other, Replacement):
        return False
    return one.weight == other.weight and same_bytes(one.value, other.value)
