"""The inputs that the recipe in a header names, found by name and digest, or computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loramerge.adapter import Adapter
from loramerge.algebra.weights import weight_of
from loramerge.errors import (
    AdapterError,
    NotFound,
    RecipeError,
    Setting,
    UsageError,
    listed,
    suggestion,
)
from loramerge.library.known import KnownFiles, digest_at
from loramerge.library.lookup import find
from loramerge.parameters import parameters_of
from loramerge.steps.engine import parameters_from
from loramerge.steps.inside import Recipe, last_step
from loramerge.steps.parameters import Context, Verb
from loramerge.steps.references import Reference

__all__ = ["Recorded", "require_inputs"]

# parameters of a step that lower the ranks of its result, and those that choose how it is written
_CUTS = frozenset({
    "rank", "conv_rank", "energy", "ratio", "cumulative", "max_size", "max_error", "max_module_error",
    "fair",
})  # fmt: skip
_WRITTEN = frozenset({"to", "for", "dtype", "skip_unknown", "save"})


def require_inputs(recipe: Mapping[str, Any], given: Iterable[str], path: Path) -> None:
    """Refuse places for inputs that a recipe, and those in it, do not have.

    Args:
        given: names of inputs.
        path: file of the recipe.

    Raises:
        UsageError: naming the first, and those that there are.
    """
    names = dict.fromkeys(_names(recipe))
    for name in given:
        if name not in names:
            raise UsageError(
                f"the recipe has no input {name!r}",
                file=path,
                expected=listed(list(names)) or None,
                hint=suggestion(name, names),
            )


def _names(recipe: Mapping[str, Any]) -> Iterator[str]:
    """Yield the inputs of a recipe and of the recipes of these."""
    inputs = recipe.get("inputs")
    for name, entry in inputs.items() if isinstance(inputs, Mapping) else ():
        yield name
        if isinstance(entry, Mapping) and isinstance(entry.get("recipe"), Mapping):
            yield from _names(entry["recipe"])


@dataclass
class Recorded:
    """A recipe in a header, and the places where its inputs may be.

    Args:
        path: the file with the header.
        given: input → path, for inputs that are not found by name and digest.
        verb_named: finds a verb by its name.
        notes: what is another file than the one that was used.
    """

    path: Path
    recipe: Recipe
    given: Mapping[str, str]
    verb_named: Callable[[str], Verb | None]
    context: Context
    known: KnownFiles = field(default_factory=KnownFiles)
    notes: list[str] = field(default_factory=list)

    @property
    def last(self) -> tuple[str, Mapping[str, Any]]:
        """The verb and the parameters of the step that made the file."""
        return last_step(self.recipe)

    def entry(self, name: str) -> Mapping[str, Any]:
        """Return what the recipe says of an input; empty for a step, and for what it does not say."""
        found = self.recipe["inputs"].get(name)
        return found if isinstance(found, Mapping) else {}

    def file(self, name: str) -> Path:
        """Return the file of an input.

        Raises:
            NotFound: saying how to give its place.
        """
        found = self._found(name)
        if found is None:
            shown = str(self.entry(name).get("path", name))
            raise NotFound(
                "an input of its recipe was not found",
                file=self.path,
                module=name if name == shown else f"{name} ({shown})",
                hint=(
                    "give its place with ",
                    Setting("input", f"{name}=PATH"),
                    ", or add its folder to the library",
                ),
            )
        return found

    def adapter(self, name: str) -> Adapter | Path:
        """Return the adapter of an input or a step; one without a file is computed again.

        Raises:
            NotFound, LoramergeError: if it can be neither found nor computed.
        """
        step = self.recipe["steps"].get(name)
        if name not in self.recipe["inputs"] and isinstance(step, Mapping):
            return self.computed({**self.recipe, "steps": {name: step}})
        found = self._found(name)
        own = self.entry(name).get("recipe")
        if found is None and isinstance(own, Mapping) and {"inputs", "steps"} <= own.keys():
            self.notes.append(
                f"{self.entry(name).get('path', name)} is neither beside this file, nor in the "
                "current folder, nor in the library, and was computed again"
            )
            return replace(self, recipe=own).computed(own)
        return self.file(name) if found is None else found

    def uncut(self) -> Adapter | None:
        """Compute the adapter that the last step cuts to lower ranks, before it is cut.

        None where it does not cut, or does more than to add and to cut.

        Raises:
            LoramergeError: see `adapter` and `computed`.
        """
        word, content = self.last
        plain = content.keys() <= _CUTS | _WRITTEN | {"adapter", "adapters"}
        if word not in ("mix", "resize") or not plain or not content.keys() & _CUTS:
            return None
        rest = {name: value for name, value in content.items() if name not in _CUTS}
        if word == "resize":
            rest = {"adapters": [rest.pop("adapter")], **rest}
        return self.computed({**self.recipe, "steps": {"exact": {"mix": rest}}})

    def computed(self, recipe: Recipe) -> Adapter:
        """Compute the adapter that the last step of a recipe makes.

        Raises:
            RecipeError: if that step cannot be computed in memory.
            LoramergeError: of the step.
        """
        word, content = last_step(recipe)
        verb = self.verb_named(word)
        if verb is None or verb.compute is None or verb.gives != "adapter":
            raise RecipeError(
                f"a step {word or 'without a verb'} cannot be computed again in memory",
                file=self.path,
                hint="`loramerge run FILE` makes the file again and compares the two",
            )
        if word == "train":
            raise AdapterError(
                "a trained adapter is not computed again to check it",
                file=self.path,
                hint="`loramerge run FILE` trains it again and compares the two",
            )
        known: dict[str, Adapter | Path] = {}
        values: dict[str, Any] = {}
        for one in parameters_of(verb.parameters, installed=True):
            if one.word not in content:
                continue
            value = content[one.word]
            if one.refers:
                parts = value if one.many else [value]
                made = [self._reference(part, one.items, known) for part in parts]
                named: list[Any] = [r if one.weighted else r.name for r in made]
                value = named if one.many else named[0]
            values[one.word] = value
        rest = content.keys() - values.keys() - {"save"}
        if rest:
            raise RecipeError(
                "the recipe in the header has parameters that are not known",
                file=self.path,
                found=listed(sorted(rest), 4),
            )
        context = replace(self.context, known=known, skip_unknown=True)
        found: Adapter = verb.compute(parameters_from(verb.parameters, values), context).adapter
        return found

    def _reference(
        self, part: Any, items: tuple[str, ...], known: dict[str, Adapter | Path]
    ) -> Reference:
        """Return a reference of a step, whose adapter or file is then known by its name."""
        weight: Any = 1.0
        name = part
        if isinstance(part, Mapping):
            name = next((part[word] for word in items if word in part), None)
            weight = part.get("weight", 1.0)
        if not isinstance(name, str):
            raise RecipeError("the recipe in the header cannot be read", file=self.path, found=part)
        if name in self.recipe["inputs"] and not self.entry(name).get("recipe"):
            known[name] = self.file(name)
        else:
            known[name] = self.adapter(name)
        found = weight_of(weight, "a recipe in a header")
        return Reference(name, found, found.text(), stated=True)

    def _found(self, name: str) -> Path | None:
        entry = self.entry(name)
        digest, wanted = entry.get("sha256"), Path(str(entry.get("path", name))).name
        if name in self.given:
            found = find(self.given[name], "models")
            if digest is not None and digest_at(found) != digest:
                self.notes.append(f"{name}: {found} is not the file that was used")
            return found
        folders = (self.path.absolute().parent, Path.cwd())
        return self.known.search(wanted, digest, folders)
