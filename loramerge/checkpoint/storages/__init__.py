"""The storages, one file each: the forms of stored weights. See `checkpoint.storage`.

Other packages add storages by the entry point `loramerge.storages`.
"""

from __future__ import annotations

from collections.abc import Mapping

from loramerge.checkpoint.composed import Composed, Window
from loramerge.checkpoint.storage import (
    Encoding,
    HeldTensor,
    Naming,
    Reshaping,
    Storage,
    Writing,
)
from loramerge.discovery import Registry
from loramerge.files.tensors import Tensor

__all__ = ["STORAGES", "as_weights", "encodings", "held", "quantised_by", "recognised"]

STORAGES: Registry[Storage] = Registry(
    "loramerge.storages", "STORAGE", {__name__: str(__path__[0])}
)


def held(tensors: Mapping[str, Tensor], name: str) -> HeldTensor | None:
    """Return a weight in its storage, None if no storage knows it; see `recognised`."""
    found = recognised(tensors, name)
    return None if found is None else found[1]


def recognised(tensors: Mapping[str, Tensor], name: str) -> tuple[Storage, HeldTensor] | None:
    """Return the storage of a weight, and the weight in it; None if no storage knows it.

    Args:
        tensors: of the file.

    Raises:
        FormatError: if it is held in a way that is not understood.
    """
    while True:
        for storage in STORAGES.known():
            found = storage.recognise(tensors, name)
            if found is not None:
                return storage, found
        if not STORAGES.look_for_others():
            return None


def encodings() -> dict[str, Encoding]:
    """Return every form in which weights can be stored anew, by name."""
    STORAGES.look_for_others()
    writing = [one for one in STORAGES.known() if isinstance(one, Writing)]
    return {encoding.name: encoding for one in reversed(writing) for encoding in one.encodings}


def as_weights(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the tensors of a file, packed ones with the types and shapes of the weights they hold.

    Weights with other names than their tensors are added.
    """
    reshaping = [one for one in STORAGES.known() if isinstance(one, Reshaping)]
    found = {
        name: weight
        for one in reshaping
        if one.fixes_types(tensors)
        for name in tensors
        if (weight := one.weight(tensors, name)) is not None
    }
    if not found:
        return _named(tensors)
    return _named({**tensors, **found})


def _named(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the tensors of a file, and in the place of those with other names the model's weights."""
    found = {
        name: weight
        for storage in STORAGES.known()
        if isinstance(storage, Naming) and storage.fixes_types(tensors)
        for name, weight in storage.weights(tensors).items()
    }
    if not found:
        return tensors
    wholes = (one.whole if isinstance(one, Window) else one for one in found.values())
    parts = {id(part) for one in wholes if isinstance(one, Composed) for part in one.sources}
    return {name: one for name, one in tensors.items() if id(one) not in parts} | found


def quantised_by(tensors: Mapping[str, Tensor], name: str) -> str:
    """Return the quantisation of a weight that no storage knows, judged by the tensors beside it."""
    state = f"{name}.quant_state.bitsandbytes__"
    for kind in ("nf4", "fp4"):
        if state + kind in tensors:
            return f"{kind.upper()} of bitsandbytes"
    if f"{name.removesuffix('.weight')}.SCB" in tensors or f"{name}.SCB" in tensors:
        return "int8 of bitsandbytes"
    return tensors[name].dtype
