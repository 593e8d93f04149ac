"""The storages, one file each: the forms of stored weights. See `checkpoint.storage`.

Other packages add storages by the entry point `loramerge.storages`.
"""

from __future__ import annotations

from collections.abc import Mapping

from loramerge.checkpoint.storage import HeldTensor, Storage
from loramerge.discovery import Registry
from loramerge.files.tensors import Tensor

__all__ = ["STORAGES", "held", "quantised_by"]

STORAGES: Registry[Storage] = Registry(
    "loramerge.storages", "STORAGE", {__name__: str(__path__[0])}
)


def held(tensors: Mapping[str, Tensor], name: str) -> HeldTensor | None:
    """Return a weight in its storage, None if no storage knows it.

    Args:
        tensors: of the file.

    Raises:
        FormatError: if it is held in a way that is not understood.
    """
    while True:
        for storage in STORAGES.known():
            found = storage.recognise(tensors, name)
            if found is not None:
                return found
        if not STORAGES.look_for_others():
            return None


def quantised_by(tensors: Mapping[str, Tensor], name: str) -> str:
    """Return the quantisation of a weight that no storage knows, judged by the tensors beside it."""
    state = f"{name}.quant_state.bitsandbytes__"
    for kind in ("nf4", "fp4"):
        if state + kind in tensors:
            return f"{kind.upper()} of bitsandbytes"
    if f"{name.removesuffix('.weight')}.SCB" in tensors or f"{name}.SCB" in tensors:
        return "int8 of bitsandbytes"
    return tensors[name].dtype
