"""One interface to numpy (the default) and torch (if a device is given).

Algebra is written once against the array API; `namespace` gives the functions that go with an
array. Computation is in float64 (float32 on devices that have no float64), which at adapter sizes
costs no more than converting half precision to float32.
"""

from __future__ import annotations

from typing import Any

from loramerge.errors import MissingExtra, UsageError

__all__ = ["Array", "check_device", "namespace", "on_device", "to_numpy"]

Array = Any  # numpy.ndarray or torch.Tensor


def namespace(array: Array) -> Any:
    """Return the array-API namespace of an array: numpy itself, or torch behind the standard."""
    if type(array).__module__ == "numpy":
        import numpy

        return numpy
    from array_api_compat import array_namespace

    return array_namespace(array)


def check_device(device: str | None) -> str | None:
    """Return the torch device to use, or None for numpy on the CPU.

    Raises:
        MissingExtra: if torch is missing, or cannot reach the device.
        UsageError: if there is no such device.
    """
    if device in (None, "cpu", "numpy"):
        return None
    try:
        import array_api_compat  # noqa: F401  # only to fail early and clearly
        import torch
    except ImportError:
        raise MissingExtra(
            f"device {device} needs torch", hint="pip install 'loramerge[train]'"
        ) from None
    kind = str(device).partition(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda is not None
        raise MissingExtra(
            "torch sees no CUDA device" if built else "this torch is built for the CPU only",
            found=f"torch {torch.__version__}",
            hint="install a CUDA build: pip install torch --index-url "
            "https://download.pytorch.org/whl/cu126",
        )
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"no such device {device!r} ({error})") from None
    return device


def on_device(array: Array, device: str | None) -> Array:
    """Return a numpy array unchanged, or a copy on a torch device."""
    if device is None:
        return array
    import torch

    tensor = torch.from_numpy(array)
    if device.startswith("mps"):
        tensor = tensor.to(torch.float32)
    return tensor.to(device)


def to_numpy(array: Array) -> Array:
    """Return an array as numpy on the CPU."""
    if type(array).__module__ == "numpy":
        return array
    return array.cpu().numpy()
