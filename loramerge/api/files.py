"""Adapters in files: read, write, and describe them for hubs."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike, fspath
from typing import Any

from loramerge.adapter import Adapter
from loramerge.adapter.save import write_encoded
from loramerge.api.running import Given, Named
from loramerge.errors import UsageError
from loramerge.events import Notify, ignore
from loramerge.library.lookup import find
from loramerge.steps import engine
from loramerge.steps.adapters import encoded_for
from loramerge.steps.given import one_adapter, references_to
from loramerge.steps.inputs import adapter_of, read_adapter, weighted
from loramerge.steps.outputs import named_output
from loramerge.steps.parameters import Context
from loramerge.steps.writing import WriteParameters
from loramerge.verbs.card import Card, CardResult
from loramerge.verbs.card import card as _card

__all__ = ["card", "load", "save"]


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
    output = named_output(parameters, [found], stem="").checked()
    encoded = encoded_for(found, output, context)
    return write_encoded(encoded, output.place, force=force)


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
