"""The Python interface: the same verbs on adapters in memory.

    import loramerge as lm

    a, b = lm.load("a.safetensors"), lm.load("b.safetensors")
    small = lm.resize(0.7 * a + 0.3 * b, rank=8)
    lm.save(small, "ab-r8.safetensors")
    lm.bake("sd21-custom", [(small, 1.0)], "out.safetensors")
    lm.run("recipe.yaml", set={"w": 0.5})

Errors, names and defaults are those of the command line; docs/python.md has runnable examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike, fspath
from typing import Any

from loramerge.adapter import Adapter
from loramerge.adapter.load import load as _load
from loramerge.adapter.save import write_encoded
from loramerge.algebra.weights import Weight
from loramerge.events import Notify, ignore
from loramerge.library.lookup import find
from loramerge.steps import engine
from loramerge.steps.adapters import encoded_for
from loramerge.steps.outputs import output_of
from loramerge.steps.parameters import Context
from loramerge.steps.references import Reference
from loramerge.steps.writing import WriteParameters
from loramerge.verbs import verb_named
from loramerge.verbs.bake import BakeResult
from loramerge.verbs.diff import DiffResult, diff_adapters
from loramerge.verbs.inspect import Inspect, Inspected, inspect_adapter

__all__ = [
    "Adapter",
    "bake",
    "convert",
    "diff",
    "inspect",
    "load",
    "mix",
    "resize",
    "save",
    "train",
]

Weighted = tuple[Adapter, float | Weight]


def load(path: str | PathLike[str]) -> Adapter:
    """Read an adapter of any dialect; factors are read when needed.

    Args:
        path: a file, a PEFT folder, or a name in the library.

    Raises:
        LoramergeError: if there is no such adapter or it cannot be read.
    """
    return _load(find(fspath(path), "adapters"))


def save(
    adapter: Adapter,
    path: str | PathLike[str],
    *,
    dialect: str | None = None,
    dtype: str | None = None,
    force: bool = False,
    strip: bool = False,
) -> int:
    """Write an adapter atomically and return the bytes written.

    The header of one that was computed says what made it, unless it was changed by hand since.

    Args:
        dialect: a dialect or program; None keeps the adapter's own.
        dtype: `float32`, `float16`, `bfloat16`; None keeps the adapter's.
        force: replace an existing file.
        strip: write nothing into the header about what made it.

    Raises:
        NotExpressible: if the dialect cannot say what the adapter holds.
    """
    parameters = WriteParameters(output=fspath(path), to=dialect, dtype=dtype, force=force)
    output = output_of(parameters, [adapter], stem="")
    assert output.path is not None
    encoded = encoded_for(adapter, output, Context(strip=strip))
    return write_encoded(encoded, output.path, force=force)


def mix(
    adapters: Iterable[Weighted],
    *,
    device: str | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
    **parameters: Any,
) -> Adapter:
    """Return the exact weighted sum; see `algebra.mix.mix`.

    `0.7 * a + 0.3 * b` is the same.

    Args:
        adapters: (adapter, weight) pairs.
        parameters: fields of `verbs.mix.Mix`: criteria that lower ranks (`rank=8`, `max_error=0.1`,
            `max_size="20MB"` or bytes, …), `embeddings`, `compat`.
    """
    references, context = _given(adapters, Context(threads, device, notify))
    return _adapter("mix", parameters | {"adapters": references}, context)


def resize(
    adapter: Adapter,
    *,
    device: str | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
    **parameters: Any,
) -> Adapter:
    """Return the adapter at lower ranks; see `algebra.resize.resize`.

    Args:
        parameters: fields of `verbs.resize.Resize`: `rank`, `conv_rank`, `energy`, `ratio`,
            `cumulative`, `max_size` (bytes, or text such as `"20MB"`), `max_error`,
            `max_module_error`.
    """
    (reference,), context = _given([(adapter, 1.0)], Context(threads, device, notify))
    return _adapter("resize", parameters | {"adapter": reference}, context)


def convert(
    adapter: Adapter,
    *,
    device: str | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
    **parameters: Any,
) -> Adapter:
    """Return the adapter with some of its modules, rescaled, or as ordinary LoRA.

    Dialect and type are chosen where it is written: `save(adapter, path, dialect="diffusers")`.

    Args:
        parameters: fields of `verbs.convert.Convert`: `to_lora=True` (with criteria such as
            `rank=8` where a kind has no exact low-rank form), `keep=["unet"]`,
            `drop=["text_encoder"]`, `rescale=0.5`.
    """
    (reference,), context = _given([(adapter, 1.0)], Context(threads, device, notify))
    return _adapter("convert", parameters | {"adapter": reference}, context)


def _given(adapters: Iterable[Weighted], context: Context) -> tuple[tuple[Reference, ...], Context]:
    """Return references that stand for adapters in memory, and the context in which they do."""
    known: dict[str, Adapter] = {}
    references = []
    for index, (adapter, weight) in enumerate(adapters, 1):
        name = f"{index}:{adapter.label}"
        known[name] = adapter
        whole = weight if isinstance(weight, Weight) else Weight(float(weight))
        references.append(Reference(name, whole, whole.text()))
    how = Context(context.threads, context.device, context.notify, context.strip, known)
    return tuple(references), how


def _perform(name: str, values: Mapping[str, Any], context: Context, *, save: bool) -> Any:
    """Run a verb on plain values and return its result."""
    verb = verb_named(name)
    assert verb is not None
    parameters = engine.parameters_from(verb.parameters, values)
    return engine.perform(verb, parameters, context, save=save)


def _adapter(name: str, values: Mapping[str, Any], context: Context) -> Adapter:
    """Run a verb that gives an adapter, and return that without writing it."""
    found = _perform(name, values, context, save=False).adapter
    assert isinstance(found, Adapter)
    return found


def bake(
    base: str | PathLike[str],
    adapters: Sequence[Weighted],
    path: str | PathLike[str],
    *,
    seed: int | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
    strip: bool = False,
    **parameters: Any,
) -> BakeResult:
    """Bake adapters into a checkpoint and return what survived rounding, as `bake --json` says it.

    Args:
        base: a path, or a registered name.
        adapters: (adapter, weight) pairs.
        path: file, or folder where the base is one.
        seed: round stochastically with this seed; None rounds to nearest.
        parameters: further fields of `verbs.bake.Bake`: `skip_missing`, `dtype`, `force`, ….
    """
    references, context = _given(adapters, Context(threads, None, notify, strip))
    if seed is not None:
        parameters = parameters | {"rounding": "stochastic", "seed": seed}
    parameters |= {"base": base, "adapters": references, "output": path}
    found: BakeResult = _perform("bake", parameters, context, save=True)
    return found


def inspect(
    adapter: Adapter, *, deep: bool = False, base: str | PathLike[str] | None = None
) -> Inspected:
    """Describe an adapter; the result's fields are those of `inspect --json`."""
    name = None if base is None else fspath(base)
    return inspect_adapter(adapter, Inspect(files=(), deep=deep, base=name))


def diff(a: Adapter, b: Adapter) -> DiffResult:
    """Compare two adapters by what they change."""
    return diff_adapters(a, b, Context())


def train(
    base: str | PathLike[str],
    images: str | PathLike[str],
    *,
    device: str | None = None,
    notify: Notify = ignore,
    **parameters: Any,
) -> Adapter:
    """Train on a folder of images and return the adapter; `save` writes it.

    Log, samples and state go into the run's folder (`folder=`), which `resume=True` goes on from.

    Args:
        base: a diffusers folder, a single file, or a registered name.
        parameters: fields of `verbs.train.parameters.Train`: `trigger`, `rank`, `steps`, ….
    """
    parameters |= {"base": base, "images": images}
    return _adapter("train", parameters, Context(None, device, notify))
