"""The tensors that not every checkpoint of a merge has: refused, or brought into the first's layout."""

from __future__ import annotations

from typing import Literal

from loramerge.checkpoint import Checkpoint, CheckpointFile, Place
from loramerge.errors import FormatError, Setting, listed
from loramerge.stream.counterparts import Counterparts, PairedTensors, named
from loramerge.stream.sharing import tied

__all__ = ["Union", "added", "require_same"]

Union = Literal["first", "zero"]


def require_same(found: PairedTensors, models: int, without: str | None = None) -> None:
    """Refuse checkpoints that do not hold the same tensors.

    Args:
        models: the number of those that are merged; the base and others follow.
        without: beginning of the names of components that do not count.

    Raises:
        FormatError: listing what is missing and what is extra.
    """
    texts = []
    for number, one in enumerate(found.checkpoints):
        names = [
            n for n in found.missing.get(number, ()) if not without or not n.startswith(without)
        ]
        if names:
            texts.append(f"{one.path.name} lacks {listed(names, 3)}")
        if number < models and (extra := found.extra.get(number)):
            texts.append(f"{one.path.name} has {listed(list(extra), 3)} beyond the first")
    if not texts:
        return
    raise FormatError(
        "the checkpoints do not hold the same tensors",
        file=found.checkpoints[0].path,
        found="; ".join(texts),
        hint=(
            "take what some lack from the first that has it: ",
            Setting("union", "first"),
            "; or count it as zero: ",
            Setting("union", "zero"),
        ),
    )


def added(found: PairedTensors, models: int) -> list[tuple[CheckpointFile, str, Counterparts]]:
    """Return the tensors that the first lacks: the file to add each to, its name, and its part.

    Raises:
        FormatError: if they cannot be stored in the layout of the first.
    """
    first = found.checkpoints[0]
    names: dict[tuple[str, str], dict[int, CheckpointFile]] = {}
    for number, extra in found.extra.items():
        for name, file in extra.items():
            names.setdefault((file.component, name), {})[number] = file
    names = {key: files for key, files in names.items() if min(files) < models}
    if not names:
        return []
    if not first.candidates and (head := tied(first)[1]):
        for (_, name), files in names.items():
            if name == f"{head}.weight":
                raise FormatError(
                    "the first checkpoint shares the weight of its output layer with the embedding, "
                    "and another does not",
                    file=next(iter(files.values())).path,
                    module=name,
                    hint="give that checkpoint first",
                )
    result = []
    for (component, name), files in names.items():
        number, source = next(iter(sorted(files.items(), key=lambda one: one[0])))
        file = _home(first, found.checkpoints[number], component)
        tensor = source.open()[0][name]
        shaped = tensor if tensor.shape else tensor.reshaped((1,))
        places: list[Place | None] = [None] * len(found.checkpoints)
        for where, one in files.items():
            places[where] = Place(one, one.open()[0][name], name)
        places[number] = Place(source, shaped, name)
        if places[number].require_held().beside:  # type: ignore[union-attr]
            raise FormatError(
                "a quantised tensor cannot be added to the first checkpoint",
                file=source.path,
                module=name,
                hint="give that checkpoint first",
            )
        result.append((file, name, Counterparts(named(name, component), tuple(places))))
    return result


def _home(first: Checkpoint, other: Checkpoint, component: str) -> CheckpointFile:
    """Return the file of the first checkpoint that takes tensors of another's component.

    Raises:
        FormatError: if it has none, or spells names otherwise.
    """
    files = [file for file in first.files.weights if file.component == component]
    alike = all(first.layouts.get(name, layout) == layout for name, layout in other.layouts.items())
    if files and alike:
        return files[-1]
    raise FormatError(
        "the first checkpoint cannot take what it lacks: the other stores it in another layout",
        file=other.path,
        expected=", ".join(sorted(set(first.layouts.values()))),
        found=", ".join(sorted(set(other.layouts.values()))),
        hint="give that checkpoint first",
    )
