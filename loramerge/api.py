"""The Python interface: the same verbs on adapters in memory.

    import loramerge as lm

    a, b = lm.load("a.safetensors"), lm.load("b.safetensors")
    small = lm.resize(0.7 * a + 0.3 * b, rank=8)
    lm.save(small, "ab-r8.safetensors")
    lm.bake("sd21-custom", [(small, 1.0)], "out.safetensors")
    lm.run("recipe.yaml", set={"w": 0.5})

Wherever an adapter is taken, a path or a name is too, with a weight behind it: `"zuzu:0.7"`. Errors,
names and defaults are those of the command line; docs/python.md has runnable examples.
"""

from __future__ import annotations

import inspect as introspection
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeVar, Unpack, get_type_hints

from loramerge.adapter import Adapter
from loramerge.adapter.save import write_encoded
from loramerge.algebra.weights import Weight
from loramerge.errors import UsageError
from loramerge.events import Notify, ignore
from loramerge.habits import answer_to_parameter
from loramerge.library.lookup import find
from loramerge.parameters import parameters_of
from loramerge.signatures import (
    BakeParameters,
    ConvertParameters,
    ExtractParameters,
    HealParameters,
    MergeParameters,
    MixParameters,
    PreviewParameters,
    ResizeParameters,
    TrainParameters,
    UnbakeParameters,
    key_of,
)
from loramerge.steps import engine
from loramerge.steps.adapters import encoded_for
from loramerge.steps.given import listed_adapters, not_one_adapter, one_adapter, references_to
from loramerge.steps.inputs import adapter_of, read_adapter, weighted
from loramerge.steps.outputs import output_of
from loramerge.steps.parameters import Context
from loramerge.steps.writing import WriteParameters
from loramerge.verbs import verb_named
from loramerge.verbs.bake import Bake, BakeResult
from loramerge.verbs.card import Card, CardResult
from loramerge.verbs.card import card as _card
from loramerge.verbs.compare import CompareResult, compare_adapters
from loramerge.verbs.convert import Convert
from loramerge.verbs.diff import Diff, DiffResult
from loramerge.verbs.diff import diff as _diff
from loramerge.verbs.extract import Extract
from loramerge.verbs.heal import Heal, HealResult
from loramerge.verbs.inspect import Inspect, Inspected, inspect_adapter
from loramerge.verbs.inspect import inspect as _inspect
from loramerge.verbs.merge import Merge, MergeResult
from loramerge.verbs.mix import Mix
from loramerge.verbs.preview import Preview, PreviewResult, compute_preview
from loramerge.verbs.resize import CurveResult, Resize, compute_curve, compute_each
from loramerge.verbs.train.parameters import Train
from loramerge.verbs.unbake import Unbake, UnbakeResult
from loramerge.verbs.verify import Verify, VerifyResult
from loramerge.verbs.verify import verify as _verify

__all__ = [
    "Adapter",
    "bake",
    "card",
    "compare",
    "convert",
    "diff",
    "error_curve",
    "extract",
    "heal",
    "inspect",
    "load",
    "merge",
    "mix",
    "preview",
    "resize",
    "resize_each",
    "save",
    "train",
    "unbake",
    "verify",
]

Named = str | PathLike[str]
Given = Named | Adapter
Weighted = Given | tuple[Given, float | Weight]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _with_parameters(kind: type[Any], typed: type[Any]) -> Callable[[_Function], _Function]:
    """Give a function the signature and the help of the parameters that it hands on to a verb.

    Args:
        kind: the verb's parameters; `typed`: the dictionary that names those the function takes.
    """

    def decorate(function: _Function) -> _Function:
        types = get_type_hints(typed)
        own = introspection.signature(function)
        handed = [one for one in parameters_of(kind) if key_of(one) in types]
        named = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        named += [
            introspection.Parameter(
                key_of(one),
                introspection.Parameter.KEYWORD_ONLY,
                default=one.default,
                annotation=types[key_of(one)],
            )
            for one in handed
            if one.holder is None
        ]
        lines = [f"    {key_of(one)}: {one.doc.help}" for one in handed]
        text = introspection.cleandoc(function.__doc__ or "")
        function.__doc__ = "\n".join((text, "", "Parameters of the verb:", *lines))
        vars(function)["__signature__"] = own.replace(parameters=named)
        return function

    return decorate


def load(path: Named) -> Adapter:
    """Read an adapter of any dialect; factors are read when needed.

    Args:
        path: a file, a PEFT folder, or a name in the library.

    Raises:
        FormatError: if it is a checkpoint.
        LoramergeError: if there is no such adapter or it cannot be read.
    """
    if not isinstance(path, (str, PathLike)):
        raise UsageError("load takes a path or a name", found=repr(path))
    return read_adapter(find(fspath(path), "adapters"))


def save(
    adapter: Given,
    path: Named,
    *,
    dialect: str | None = None,
    dtype: str | None = None,
    force: bool = False,
    strip: bool = False,
) -> int:
    """Write an adapter atomically and return the bytes written.

    The header of a computed adapter contains its recipe, unless the adapter was changed by hand since.

    Args:
        dialect: a dialect or program; None keeps the adapter's own.
        dtype: `float32`, `float16`, `bfloat16`; None keeps the adapter's.
        force: replace an existing file.
        strip: do not record in the header how it was made.

    Raises:
        NotExpressible: if the dialect cannot store some modules of the adapter.
    """
    if not isinstance(path, (str, PathLike)):
        raise UsageError("save takes the adapter first, then the path", found=repr(path))
    (reference,), context = references_to([one_adapter("save", adapter)], Context(strip=strip))
    found = weighted(adapter_of(reference, context), reference.weight)
    parameters = engine.parameters_from(
        WriteParameters, {"output": path, "to": dialect, "dtype": dtype, "force": force}
    )
    output = output_of(parameters, [found], stem="")
    assert output.path is not None
    encoded = encoded_for(found, output, context)
    return write_encoded(encoded, output.path, force=force)


@_with_parameters(Mix, MixParameters)
def mix(
    adapters: Weighted | Iterable[Weighted],
    *,
    device: str | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
    **parameters: Unpack[MixParameters],
) -> Adapter:
    """Return the exact weighted sum, or the result of another operator (`method`).

    `0.7 * a + 0.3 * b` is `mix([(a, 0.7), (b, 0.3)])`.

    Args:
        adapters: adapters, paths or names, each alone, with a weight behind it (`"zuzu:0.7"`), or in a
            pair with its weight.
    """
    references, context = references_to(listed_adapters(adapters), Context(threads, device, notify))
    return _adapter("mix", parameters, {"adapters": references}, MixParameters, context)


@_with_parameters(Resize, ResizeParameters)
def resize(
    adapter: Given,
    *,
    ingredients: Weighted | Iterable[Weighted] = (),
    device: str | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
    **parameters: Unpack[ResizeParameters],
) -> Adapter:
    """Return the adapter at lower ranks, by truncated SVD.

    One of `rank`, `energy`, `ratio`, `cumulative`, `max_size` and `max_error` says what to keep.

    Args:
        ingredients: with `fair`, the adapters in the mix, as for `mix`; by default those that its
            recipe names.
    """
    for word, several in (("rank", "ranks"), ("max_size", "sizes")):
        if isinstance(parameters.get(word), (list, tuple)):
            raise UsageError(
                f"resize gives one result, and several values of {word} are given",
                hint=f"resize_each({several}=[…]) gives a result for each",
            )
    given, known = _with_ingredients("resize", adapter, ingredients)
    context = replace(Context(threads, device, notify), known=known)
    return _adapter("resize", parameters, given, ResizeParameters, context)


def _with_ingredients(
    verb: str, adapter: object, ingredients: object
) -> tuple[dict[str, Any], Mapping[str, Adapter | Path]]:
    """Return the parameters that name an adapter and its ingredients, and those in memory by name."""
    several = [] if ingredients == () else listed_adapters(ingredients)
    (reference, *others), context = references_to([one_adapter(verb, adapter), *several], Context())
    return {"adapter": reference, "ingredient": tuple(others)}, context.known


@_with_parameters(Resize, ResizeParameters)
def resize_each(
    adapter: Given,
    *,
    ranks: Iterable[int] = (),
    sizes: Iterable[str | int] = (),
    ingredients: Weighted | Iterable[Weighted] = (),
    device: str | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
    **parameters: Unpack[ResizeParameters],
) -> list[Adapter]:
    """Return the adapter at several ranks or file sizes, each as `resize` gives it, decomposed once.

    Args:
        ranks, sizes: a result for each, or for each pair where both are given.
        ingredients: as for `resize`.
    """
    given, known = _with_ingredients("resize_each", adapter, ingredients)
    context = replace(Context(threads, device, notify), known=known)
    each: list[dict[str, Any]] = [{}]
    for word, values in (("rank", list(ranks)), ("max_size", list(sizes))):
        if values:
            each = [{**one, word: value} for one in each for value in values]
    several = [_checked(Resize, {**parameters, **one}, given, ResizeParameters) for one in each]
    found = [one.adapter for one in compute_each(several, context)]
    return [one for one in found if one is not None]


def error_curve(
    adapter: Given,
    *,
    ranks: Iterable[int] = (),
    sizes: Iterable[str | int] = (),
    base: Named | None = None,
    dialect: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
) -> CurveResult:
    """Return the error of an adapter at many ranks, and at the best ranks for files of the same sizes.

    Nothing is written: `result.save(path)` draws it as a PNG image.

    Args:
        ranks: to show; none shows 1, 2, 3, 4, 6, 8, 12, … up to the largest.
        sizes: further sizes to show.
        base: needed for kinds whose change depends on it.
        dialect, dtype: of the files whose sizes are shown; None keeps the adapter's own.
    """
    (reference,), context = references_to(
        [one_adapter("error_curve", adapter)], Context(threads, device, notify)
    )
    own = {"adapter": reference, "base": base, "to": dialect, "dtype": dtype}
    parameters = engine.parameters_from(Resize, own)
    return compute_curve(parameters, list(ranks), [str(size) for size in sizes], context)


@_with_parameters(Extract, ExtractParameters)
def extract(
    tuned: Named,
    base: Named,
    *,
    threads: int | None = None,
    notify: Notify = ignore,
    **parameters: Unpack[ExtractParameters],
) -> Adapter:
    """Return the difference of two checkpoints, `tuned − base`, as an adapter.

    One of `rank`, `energy`, `ratio`, `cumulative`, `max_size` and `max_error` says what to keep, or
    `full` keeps all of it.

    Args:
        tuned, base: paths, or registered names; layouts and types may differ.
    """
    own = {"tuned": tuned, "base": base}
    return _adapter("extract", parameters, own, ExtractParameters, Context(threads, None, notify))


@_with_parameters(Convert, ConvertParameters)
def convert(
    adapter: Given,
    *,
    device: str | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
    **parameters: Unpack[ConvertParameters],
) -> Adapter:
    """Return the adapter with some of its modules, rescaled, or as ordinary LoRA.

    Dialect and type are chosen where it is written: `save(adapter, path, dialect="diffusers")`.
    """
    given = one_adapter("convert", adapter)
    (reference,), context = references_to([given], Context(threads, device, notify))
    return _adapter("convert", parameters, {"adapter": reference}, ConvertParameters, context)


@_with_parameters(Heal, HealParameters)
def heal(
    adapter: Given,
    *,
    device: str | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
    **parameters: Unpack[HealParameters],
) -> HealResult:
    """Repair an adapter: `.adapter` is the repaired one, `.repairs` says what was done.

    Raises:
        AdapterError: if modules cannot be repaired, such as those with NaN, unless `drop_damaged`.
    """
    given = one_adapter("heal", adapter)
    (reference,), context = references_to([given], Context(threads, device, notify))
    found: HealResult = _perform(
        "heal", parameters, {"adapter": reference}, HealParameters, context, save=False
    )
    return found


@_with_parameters(Bake, BakeParameters)
def bake(
    base: Named,
    adapters: Weighted | Iterable[Weighted],
    path: Named,
    *,
    seed: int | None = None,
    threads: int | None = None,
    executor: Executor | None = None,
    notify: Notify = ignore,
    strip: bool = False,
    **parameters: Unpack[BakeParameters],
) -> BakeResult:
    """Bake adapters into a checkpoint and return what survived rounding, as `bake --json` says it.

    Args:
        base: a path, or a registered name.
        adapters: one or several, as for `mix`.
        path: file, or folder where the base is one.
        seed: round stochastically with this seed; None rounds to nearest.
        executor: computes parts of the checkpoint in other processes that see the same files, such as
            that of a Dask client; None computes them here.
    """
    if not isinstance(path, (str, PathLike)):
        raise UsageError("bake takes the path of its output last", found=repr(path))
    references, context = references_to(
        listed_adapters(adapters), Context(threads, None, notify, strip, executor=executor)
    )
    own: dict[str, Any] = {"base": base, "adapters": references, "output": path}
    if seed is not None:
        own |= {"rounding": "stochastic", "seed": seed}
    found: BakeResult = _perform("bake", parameters, own, BakeParameters, context, save=True)
    return found


@_with_parameters(Unbake, UnbakeParameters)
def unbake(
    checkpoint: Named,
    adapters: Weighted | Iterable[Weighted],
    path: Named,
    *,
    threads: int | None = None,
    notify: Notify = ignore,
    strip: bool = False,
    **parameters: Unpack[UnbakeParameters],
) -> UnbakeResult:
    """Take adapters out of a checkpoint, and return how exact the result is, as `unbake --json` says it.

    Args:
        checkpoint: a path, or a registered name.
        adapters: one or several, with the weights at which they were baked.
        path: file, or folder where the checkpoint is one.
    """
    if not isinstance(path, (str, PathLike)):
        raise UsageError("unbake takes the path of its output last", found=repr(path))
    references, context = references_to(
        listed_adapters(adapters), Context(threads, None, notify, strip)
    )
    own: dict[str, Any] = {"checkpoint": checkpoint, "lora": references, "output": path}
    found: UnbakeResult = _perform("unbake", parameters, own, UnbakeParameters, context, save=True)
    return found


@_with_parameters(Merge, MergeParameters)
def merge(
    models: Iterable[Weighted],
    path: Named,
    *,
    threads: int | None = None,
    executor: Executor | None = None,
    notify: Notify = ignore,
    strip: bool = False,
    **parameters: Unpack[MergeParameters],
) -> MergeResult:
    """Merge checkpoints of one family, and return how far each part moved, as `merge --json` says it.

    Args:
        models: paths or names of checkpoints, each alone, with a weight behind it (`"tiny:0.7"`), or in
            a pair with its weight; the first decides the layout of the result. Adapters, as for `bake`,
            are added to what the checkpoints make.
        path: file, or folder where the first is one.
        executor: computes parts of the checkpoint in other processes that see the same files, such as
            that of a Dask client; None computes them here.
    """
    if not isinstance(path, (str, PathLike)):
        raise UsageError("merge takes the path of its output last", found=repr(path))
    references, context = references_to(
        listed_adapters(models), Context(threads, None, notify, strip, executor=executor)
    )
    own = {"models": references, "output": path}
    found: MergeResult = _perform("merge", parameters, own, MergeParameters, context, save=True)
    return found


def inspect(
    adapter: Given,
    *,
    deep: bool = False,
    modules: bool = False,
    spectrum: bool = False,
    hash: bool = False,  # the word of the command line
    base: Named | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
) -> Inspected:
    """Describe an adapter or a checkpoint; the result's fields are those of `inspect --json`.

    Args:
        adapter: in memory, or the path or name of an adapter or a checkpoint.
        deep: read the weights: true norms and findings.
        modules, spectrum: list every module, with its singular values.
        hash: compute digests of the file.
        base: say whether the adapter works with this base.
    """
    if not isinstance(adapter, (str, PathLike, Adapter)):
        raise not_one_adapter("inspect", adapter)
    files = () if isinstance(adapter, Adapter) else (fspath(adapter),)
    asked = {"deep": deep, "modules": modules, "spectrum": spectrum, "hash": hash, "base": base}
    parameters = engine.parameters_from(Inspect, {"files": files, **asked})
    context = Context(threads, None, notify)
    if isinstance(adapter, Adapter):
        return inspect_adapter(adapter, parameters, context)
    found = _inspect(parameters, context).files
    if len(found) != 1:
        raise UsageError(
            "inspect describes one file",
            file=fspath(adapter),
            found=f"{len(found)} files",
            hint="call it for each of them",
        )
    return found[0]


def diff(a: Given, b: Given, *, threads: int | None = None, notify: Notify = ignore) -> DiffResult:
    """Compare the changes (ΔW) of two adapters, or two checkpoints, which are given by their names."""
    pair = [one_adapter("diff", a), one_adapter("diff", b)]
    (one, two), context = references_to(pair, Context(threads, None, notify))
    return _diff(Diff(a=one, b=two), context)


def card(
    adapter: Named,
    path: Named | None = None,
    *,
    base_model: str | None = None,
    license: str | None = None,
    pictures: Iterable[Named] = (),
    force: bool = False,
    notify: Notify = ignore,
) -> CardResult:
    """Write a model card for hubs, a README.md, from what is known about a file.

    Args:
        adapter: a file, a PEFT folder, or a name; not an adapter in memory.
        path: of the card; None is README.md beside the file.
        base_model: name of the base on the hub, as owner/name.
        license: None is that of the file's metadata.
        pictures: in the card's folder, or below; none takes those beside the file with its name.
        force: replace an existing card.

    Raises:
        OutputExists: unless `force`.
    """
    if not isinstance(adapter, (str, PathLike)):
        raise UsageError("card takes a path or a name", found=repr(adapter))
    own: dict[str, Any] = {
        "file": adapter,
        "base_model": base_model,
        "license": license,
        "picture": [fspath(one) for one in pictures],
        "output": path,
        "force": force,
    }
    return _card(engine.parameters_from(Card, own), Context(notify=notify))


def verify(
    file: Named,
    *,
    base: Named | None = None,
    adapters: Weighted | Iterable[Weighted] = (),
    inputs: Mapping[str, Named] | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
) -> VerifyResult:
    """Check whether a file holds what its recipe says, or the adapters that are given.

    Args:
        base: checkpoint that the adapters were added to; without it the recipe in the header counts.
        adapters: those that should be in it; one without a weight is looked for at any strength.
        inputs: input of the recipe → path, for inputs that are not found by name and digest.
    """
    references, context = references_to(listed_adapters(adapters), Context(threads, None, notify))
    own: dict[str, Any] = {
        "file": file,
        "base": base,
        "lora": references,
        "input": [f"{name}={fspath(path)}" for name, path in (inputs or {}).items()],
    }
    return _verify(engine.parameters_from(Verify, own), context)


def compare(
    adapters: Iterable[Weighted],
    *,
    ingredients: Weighted | None = None,
    alike: float = 0.5,
    threads: int | None = None,
    notify: Notify = ignore,
) -> CompareResult:
    """Find copies and relatives among adapters, by their changes (ΔW).

    Args:
        ingredients: an adapter to explain as a weighted sum of the others.
        alike: cosine from which adapters belong to one cluster.
    """
    given = listed_adapters(adapters)
    every = [*given, *([] if ingredients is None else [one_adapter("compare", ingredients)])]
    references, context = references_to(every, Context(threads, None, notify))
    found = [weighted(adapter_of(one, context), one.weight) for one in references]
    mystery = found.pop() if ingredients is not None else None
    if not found:
        raise UsageError("there is nothing to compare", expected="at least one adapter")
    return compare_adapters(found, mystery, alike=alike, context=context)


@_with_parameters(Preview, PreviewParameters)
def preview(
    base: Named | Sequence[Named],
    adapters: Weighted | Iterable[Weighted] = (),
    *,
    device: str | None = None,
    notify: Notify = ignore,
    **parameters: Unpack[PreviewParameters],
) -> PreviewResult:
    """Generate images with adapters side by side; the result shows them in a notebook.

    Nothing is written: `result.save(path)` writes the grid, `result.images` are its cells.

    Args:
        base: a diffusers folder, a single file, or a registered name; or several.
        adapters: one or several, as for `mix`; each gets a column.
    """
    references, context = references_to(listed_adapters(adapters), Context(None, device, notify))
    own = {"base": base, "adapters": references}
    return compute_preview(_checked(Preview, parameters, own, PreviewParameters), context)


@_with_parameters(Train, TrainParameters)
def train(
    base: Named,
    images: Named,
    *,
    device: str | None = None,
    notify: Notify = ignore,
    **parameters: Unpack[TrainParameters],
) -> Adapter:
    """Train on a folder of images and return the adapter; `save` writes it.

    Log, samples and state go into the run's folder (`folder=`), from which `resume=True` continues.

    Args:
        base: a diffusers folder, a single file, or a registered name.
        images: folder of images with captions.
    """
    own = {"base": base, "images": images}
    context = Context(None, device, notify, allow_import=True)
    return _adapter("train", parameters, own, TrainParameters, context)


# --- running verbs ------------------------------------------------------------------------------


def _checked(
    kind: type[Any], given: Mapping[str, Any], own: Mapping[str, Any], typed: type[Any]
) -> Any:
    """Return the parameters of a verb from those that were given, and those set by the function."""
    for one in parameters_of(kind):
        word = next((word for word in (one.word, one.name) if word in given), None)
        if word is not None and one.holder is None and key_of(one) not in typed.__annotations__:
            raise UsageError(
                f"{word!r} is not a parameter of this function",
                expected=", ".join(typed.__annotations__),
                hint="save writes the result"
                if word in ("output", "force")
                else answer_to_parameter(word, kind.__name__.lower(), typed.__annotations__),
            )
    return engine.parameters_from(kind, {**given, **own})


def _perform(
    name: str,
    given: Mapping[str, Any],
    own: Mapping[str, Any],
    typed: type[Any],
    context: Context,
    *,
    save: bool,
) -> Any:
    """Run a verb on plain values and return its result."""
    verb = verb_named(name)
    assert verb is not None
    parameters = _checked(verb.parameters, given, own, typed)
    return engine.perform(verb, parameters, context, save=save)


def _adapter(
    name: str,
    given: Mapping[str, Any],
    own: Mapping[str, Any],
    typed: type[Any],
    context: Context,
) -> Adapter:
    """Run a verb that gives an adapter, and return that without writing it."""
    found = _perform(name, given, own, typed, context, save=False).adapter
    assert isinstance(found, Adapter)
    return found
