"""A device that is not there: values on the CPU, and every operation that mixes devices is an error.

with pretended():
    model.to(DEVICE)            # values stay where they are, but count as being on the device
    model(torch.zeros(1, 4))    # RuntimeError: … found at least two devices
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device(
    "mps", 0
)  # the code treats it as any card; Metal lacks float64, and so does it

_COPIES = {"copy_", "_to_copy", "set_", "_copy_from"}  # go from one device to another
_VALUES = {torch.Tensor.numpy, torch.Tensor.__array__}


class _Marks:
    """The storages that count as being on the device."""

    def __init__(self) -> None:
        self._keys: set[int] = set()

    def add(self, tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._keys:
            self._keys.add(key)
            weakref.finalize(storage, self._keys.discard, key)
        return tensor

    def __contains__(self, tensor: Any) -> bool:
        return tensor.untyped_storage()._cdata in self._keys


class _Checked(TorchDispatchMode):
    def __init__(self, marks: _Marks) -> None:
        super().__init__()
        self._marks = marks

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [v for v in tree_leaves((args, kwargs or {})) if isinstance(v, torch.Tensor)]
        on = [value in self._marks for value in given]
        name = func._schema.name.split("::")[-1]
        if name not in _COPIES:
            # numbers without axes may come from the CPU, and so may indices
            away = [v for v, there in zip(given, on, strict=True) if not there and v.ndim]
            if name in ("index", "index_put_", "index_put"):
                away = away if given[0] not in self._marks else []
            if any(on) and away:
                raise RuntimeError(
                    f"{name}: Expected all tensors to be on the same device, but found at least two "
                    "devices, mps:0 and cpu!"
                )
        found = func(*args, **(kwargs or {}))
        there = on[0] if name in ("copy_", "set_") and on else any(on)
        if there:
            for value in tree_leaves(found):
                if isinstance(value, torch.Tensor):
                    if value.dtype == torch.float64:
                        raise TypeError(f"{name}: Cannot convert a MPS Tensor to float64 dtype")
                    self._marks.add(value)
        return found


class _Placing(TorchFunctionMode):
    def __init__(self, marks: _Marks) -> None:
        super().__init__()
        self._marks = marks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return DEVICE if args[0] in self._marks else func(*args)
        if func in _VALUES and args[0] in self._marks:
            raise TypeError(
                "can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first"
            )
        if func is torch.Tensor.cpu:
            return self._moved(args[0], None, torch.device("cpu"))
        if func is torch.Tensor.to:
            return self._to(args[0], args[1:], kwargs)
        place = kwargs.get("device")
        if place is not None and torch.device(place).type == DEVICE.type:
            kwargs["device"] = "cpu"
            return self._marks.add(func(*args, **kwargs))
        return func(*args, **kwargs)

    def _to(self, tensor: Any, args: Any, kwargs: Any) -> Any:
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        for one in args:
            if isinstance(one, torch.Tensor):
                device, dtype = (DEVICE if one in self._marks else torch.device("cpu")), one.dtype
            elif isinstance(one, torch.dtype):
                dtype = one
            elif isinstance(one, (str, torch.device)):
                device = one
        here = DEVICE if tensor in self._marks else torch.device("cpu")
        return self._moved(tensor, dtype, here if device is None else torch.device(device))

    def _moved(self, tensor: Any, dtype: Any, device: Any) -> Any:
        there = device.type == DEVICE.type
        if there == (tensor in self._marks):
            return (
                tensor
                if dtype in (None, tensor.dtype)
                else torch.ops.aten._to_copy(tensor, dtype=dtype)
            )
        if there and (dtype or tensor.dtype) == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        with torch._C._DisableTorchDispatch():
            found = tensor.clone() if dtype is None else tensor.clone().type(dtype)
        return self._marks.add(found) if there else found


@contextmanager
def pretended() -> Iterator[None]:
    """Let `DEVICE` be there for a while."""
    marks = _Marks()
    with _Checked(marks), _Placing(marks):
        yield
