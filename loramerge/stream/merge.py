"""Merge checkpoints of one family into one that has the layout of the first.

A plan is made from headers alone, and refused if it cannot be carried out. `counterparts` pairs the
tensors, `blend` computes them in blocks of rows, and `writing` writes the files. Memory is a few blocks
for each thread and input, whatever the size of the checkpoints.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

from loramerge.adapter import Site
from loramerge.algebra.combine import SUM
from loramerge.algebra.operator import Method
from loramerge.algebra.operators import OPERATORS
from loramerge.algebra.weights import Weight, shown_number
from loramerge.checkpoint import Checkpoint, CheckpointFile, Place
from loramerge.checkpoint.files import CheckpointFiles
from loramerge.checkpoint.generic import with_given
from loramerge.errors import FormatError, Setting, UsageError, listed
from loramerge.events import Notify, ignore
from loramerge.files.atomic import check_target
from loramerge.files.header import build_header
from loramerge.files.tensors import Tensor
from loramerge.stream.blend import Blend, Blended, Ingredient, merge_tensor
from loramerge.stream.counterparts import Counterparts, Pairing, pair, require_one_family
from loramerge.stream.plan import require_changeable
from loramerge.stream.sharing import tied
from loramerge.stream.walk import Layout
from loramerge.stream.writing import dtype_of, unchanged, write_checkpoint, write_index

__all__ = ["MergePlan", "Union", "merge", "output_size", "plan_merge"]

Union = Literal["first", "zero"]

_ONE = 1e-6  # distance of a sum of weights from 1 that is their rounding


@dataclass
class MergePlan:
    """The plan of a merge, tensor by tensor; made from headers alone.

    Args:
        first: the checkpoint whose layout the result has.
        files: its files, with tensors that others bring along.
        blends: how the tensors of each file are made; the others are copied.
        averages: names of tensors that are left out: running averages of the weights before.
        dtype: safetensors name of the type that all floating tensors get, or None.
        notes: what else is not merged, in words.
        united: number of parameters that not every input has.
        rest: whether the first input has the weight that the others leave.
    """

    first: Checkpoint
    files: CheckpointFiles
    blends: dict[PurePosixPath, dict[str, list[Blend]]]
    averages: frozenset[str]
    dtype: str | None
    notes: list[str] = field(default_factory=list)
    united: int = 0
    rest: bool = False

    @property
    def merged(self) -> int:
        """Number of tensors that are merged, rather than copied."""
        return sum(
            not all(blend.is_copy for blend in blends)
            for tensors in self.blends.values()
            for blends in tensors.values()
        )


def plan_merge(
    models: Sequence[tuple[Checkpoint, Weight]],
    method: Method = SUM,
    *,
    base: Checkpoint | None = None,
    union: Union | None = None,
    dtype: str | None = None,
) -> MergePlan:
    """Pair the tensors of checkpoints, and plan how each is made.

    Args:
        base: what the changes of the models are taken from, and added to; None combines the weights
            themselves.
        union: what becomes of tensors that some model lacks: `first` takes them from the first that
            has them, `zero` counts what is missing as no change, or as zeros without a base.
        dtype: safetensors name of a type that all floating tensors shall have.

    Raises:
        FamilyError: if they belong to different families.
        FormatError: if they do not hold the same tensors, or hold them in ways that are not known.
        ShapeError: if tensors differ in shape.
        UsageError: if the method cannot merge checkpoints, or weights do not sum to 1 where they must.
    """
    _require_method(method, len(models), base)
    checkpoints = [checkpoint for checkpoint, _ in models]
    sources = [*checkpoints, *([] if base is None else [base])]
    require_one_family(sources)
    if dtype is not None:
        require_changeable(checkpoints[0])
    found = pair(sources)
    if union is None:
        _require_same(found, len(models))
    added = _added(found, len(models)) if union is not None else []
    planner = _Planner(models, method, base is not None, union)
    blends: dict[PurePosixPath, dict[str, list[Blend]]] = {}
    for file, tensors in found.parts.items():
        blends[file.relative] = {
            name: [planner.blend(part) for part in parts] for name, parts in tensors.items()
        }
    given: dict[CheckpointFile, dict[str, Tensor]] = {}
    for file, name, part in added:
        blends.setdefault(file.relative, {})[name] = [planner.blend(part)]
        given.setdefault(file, {})[name] = part.target.file.open()[0][name]
    planner.require_one()
    first = checkpoints[0]
    return MergePlan(
        first,
        with_given(first.files, given),
        blends,
        frozenset(found.averages),
        dtype,
        [*first.files.notes, *_notes(found)],
        planner.united,
        planner.rest,
    )


def merge(
    plan: MergePlan,
    output: Path,
    *,
    force: bool = False,
    metadata: Mapping[str, str] | None = None,
    late: Future[Mapping[str, str]] | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
) -> list[Blended]:
    """Carry out a plan.

    Args:
        output: file, or folder if the first checkpoint is one.
        metadata: entries to add to the header of every file that changes.
        late: replacements for entries of `metadata`, of the same lengths, before the files get their
            names.

    Returns:
        What became of every parameter that was merged, in file order.

    Raises:
        OutputExists, DiskFull, NumericsError.
    """
    check_target(output, force=force)
    return write_checkpoint(
        plan.files,
        [_layout(file, plan, metadata or {}) for file in plan.files.weights],
        output,
        task="merging",
        copy_other=partial(_copy_other, plan=plan),
        force=force,
        late=late,
        threads=threads,
        notify=notify,
    )


def output_size(plan: MergePlan, metadata: Mapping[str, str]) -> int:
    """Return the exact bytes of the weight files that a plan writes."""
    return sum(_layout(file, plan, metadata)[1].size for file in plan.files.weights)


# --- planning -----------------------------------------------------------------------------------------


def _require_method(method: Method, models: int, base: Checkpoint | None) -> None:
    """Refuse a method that cannot merge checkpoints, or so many, or without a base.

    Raises:
        UsageError: naming what can.
    """
    operator = method.operator
    if operator.space == "factors":
        able = [one.name for one in OPERATORS.known() if one.space != "factors"]
        raise UsageError(
            f"the method {operator.name} works on low-rank factors, which checkpoints do not have",
            expected=listed(able, 40),
        )
    if base is None and not operator.of_weights:
        able = [one.name for one in OPERATORS.known() if one.of_weights]
        raise UsageError(
            f"the method {operator.name} combines changes of a base, and none is given",
            expected=f"a base; without one: {', '.join(able)}",
            hint=("give the checkpoint that all were trained from: ", Setting("base", "C")),
        )
    method.require_count(models)


@dataclass
class _Planner:
    """Decides how each parameter is made.

    Args:
        united: number of parameters so far that not every model has.
    """

    models: Sequence[tuple[Checkpoint, Weight]]
    method: Method
    on_base: bool
    union: Union | None
    united: int = 0
    rest: bool = field(init=False)
    _sums: dict[str, list[str]] = field(default_factory=dict)  # weights that are not 1 → sites

    def __post_init__(self) -> None:
        first, *others = (weight for _, weight in self.models)
        # the first has what the others leave where only they have weights
        self.rest = not self.on_base and first == Weight() and any(w != first for w in others)
        self._weights = [
            weight.among(
                (module for module, _ in checkpoint.slots),
                checkpoint.candidates[0] if checkpoint.candidates else None,
                str(checkpoint.path),
            )
            for checkpoint, weight in self.models
        ]

    def blend(self, part: Counterparts) -> Blend:
        """Return how a parameter is made."""
        places = part.places[: len(self.models)]
        base = part.places[len(self.models)] if self.on_base else None
        if None in places:
            self.united += 1
            if self.union == "first":
                position = next(i for i, place in enumerate(places) if place is not None)
                return Blend(part.site, part.target, (Ingredient(part.target, 1.0, position),), SUM)
        weights = self._of(part.site)
        terms = tuple(
            Ingredient(place, weight, position)
            for position, (place, weight) in enumerate(zip(places, weights, strict=True))
            if place is not None and weight != 0.0
        )
        if not terms and not self.on_base:  # what has the weight is missing
            terms = (Ingredient(part.target, 0.0, 0),)
        return Blend(part.site, part.target, terms, self.method, self.on_base, base)

    def _of(self, site: Site) -> list[float]:
        """Return the weight of each model at a site."""
        weights = [of(site) for of in self._weights]
        if self.rest:
            weights[0] = 1.0 - sum(weights[1:])
        if not self.on_base and abs(sum(weights) - 1.0) > _ONE:
            self._sums.setdefault(" + ".join(map(shown_number, weights)), []).append(site.name)
        return weights

    def require_one(self) -> None:
        """Refuse weights that do not sum to 1 where weights themselves are combined.

        Raises:
            UsageError: naming the sums.
        """
        if not self._sums:
            return
        text, sites = next(iter(self._sums.items()))
        shares = [shown_number(round(1 / len(self.models), 4))] * len(self.models)
        raise UsageError(
            "without a base the weights of all inputs must sum to 1",
            module=listed(sites, 3),
            found=f"{text} = {shown_number(sum(map(float, text.split(' + '))))}",
            hint=(
                f"give weights such as {' and '.join(shares)}; an unweighted first input gets what the "
                "others leave; or give the checkpoint that all were trained from: ",
                Setting("base", "C"),
            ),
        )


def _require_same(found: Pairing, models: int) -> None:
    """Refuse checkpoints that do not hold the same tensors.

    Raises:
        FormatError: listing what is missing and what is extra.
    """
    texts = []
    for number, one in enumerate(found.checkpoints):
        if names := found.missing.get(number):
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


def _added(found: Pairing, models: int) -> list[tuple[CheckpointFile, str, Counterparts]]:
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
        stem, _, last = name.rpartition(".")
        module = stem if stem and last in ("weight", "bias") else name
        prefix = f"{component}." if component else ""
        site = Site((prefix + module,), "bias" if last == "bias" else "weight")
        result.append((file, name, Counterparts(site, tuple(places))))
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


def _notes(found: Pairing) -> Iterator[str]:
    """Yield what is not merged, in words."""
    first = found.checkpoints[0].path.name
    if count := len(found.averages):
        yield f"left out {count} running averages (EMA), which merged weights do not have"
    if count := len(found.copied.get("vae", ())):
        yield f"the VAE is that of {first} ({count} tensors)"
    if count := len(found.copied.get("buffer", ())):
        yield f"constants and tensors of whole numbers are those of {first} ({count} tensors)"


# --- writing ------------------------------------------------------------------------------------------


def _layout(
    file: CheckpointFile, plan: MergePlan, extra: Mapping[str, str]
) -> tuple[CheckpointFile, Layout[Blended], bool]:
    """Return a file, its layout after the merge, and whether anything in it changes."""
    opened, metadata = file.open()
    tensors = {name: one for name, one in opened.items() if name not in plan.averages}
    blends = plan.blends.get(file.relative, {})
    changes = bool(blends) or len(tensors) < len(opened) or plan.dtype is not None
    if not changes and not file.pickled:
        return file, unchanged(file, finite=True), False
    merged = {k: v for k, v in metadata.items() if k != "modelspec.hash_sha256"}
    merged |= dict(extra) if changes else {}
    entries = [(name, dtype_of(one, plan.dtype), one.shape) for name, one in tensors.items()]
    head, infos = build_header(entries, merged)
    made = {
        name: found
        for name, tensor in tensors.items()
        if (found := _made(file, name, tensor, blends, infos[name].dtype))
    }
    computed = {name: partial(merge_tensor, name, infos, found) for name, found in made.items()}
    beside = {name for found in made.values() for name in found[0].target.require_held().beside}
    return file, Layout(head, infos, tensors, merged, computed, beside, finite=True), True


def _made(
    file: CheckpointFile,
    name: str,
    tensor: Tensor,
    blends: Mapping[str, list[Blend]],
    dtype: str,
) -> list[Blend]:
    """Return how a tensor is computed, nothing if it is copied."""
    known = blends.get(name, [])
    if dtype == tensor.dtype and all(blend.is_copy for blend in known):
        return []
    if known:
        return known
    shaped = tensor if tensor.shape else tensor.reshaped((1,))
    place = Place(file, shaped, name)  # only its type changes
    return [Blend(Site((name,)), place, (Ingredient(place, 1.0, 0),), SUM)]


def _copy_other(source: Path, target: Path, plan: MergePlan) -> None:
    """Copy a file that holds no weights; an index is written anew where it would be wrong."""
    changes = plan.dtype or plan.averages or any(file.given for file in plan.files.weights)
    if source.name.endswith(".index.json") and changes:
        write_index(source, target, plan.files, plan.dtype)
    else:
        shutil.copyfile(source, target)
