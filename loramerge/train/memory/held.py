"""Predict the peak memory of a computation by running it on tensors without values.

On torch's meta device a whole training step, backward pass and checkpointing included, takes a second or
two, because only shapes are computed. Every tensor is counted as long as it lives. The sum is what a
real run allocates, apart from the workspaces inside single operations.

Two things are imitated, because the meta device lacks them: autocast, and attention kernels that keep no
matrix of scores.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from loramerge.train.lora.branch import autocast_assumed

__all__ = ["MemoryCounter", "bytes_of", "call_peak", "checkpointed", "kept_and_peak", "step_peak"]

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
_NARROWED = frozenset({
    functional.linear, functional.conv1d, functional.conv2d, functional.conv3d, torch.conv2d,
    torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.bmm, torch.addmm,
    torch.baddbmm, functional.scaled_dot_product_attention,
})  # fmt: skip
# on CUDA these become float32 under autocast, on a CPU they stay what they are.
# Source: torch's documentation, "CUDA Ops that autocast to float32"
_WIDENED: Mapping[str, frozenset[Any]] = {
    "cuda": frozenset({
        functional.group_norm, functional.layer_norm, functional.softmax, torch.softmax,
        torch.Tensor.softmax, torch.exp, torch.pow, torch.Tensor.pow, torch.rsqrt,
    }),
}  # fmt: skip
# where gradients are asked for too, these have attention whose memory grows with the pictures alone
_ATTENTION = ("cuda", "cpu")


class MemoryCounter(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is on, as long as they live.

    Attributes:
        now: bytes at present.
        peak: the most there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def know(self, tensors: Iterable[Any]) -> None:
        """Leave tensors out that were there before."""
        self._known.update(tensor.untyped_storage()._cdata for tensor in tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(value, torch.Tensor):
                self._count(value)
        return found

    def _count(self, tensor: Any) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _AsOn(TorchFunctionMode):
    """Imitates another device's autocast and attention on the meta device.

    Args:
        device: type of the other device.
        precision: of autocast; `no` for none.
    """

    def __init__(self, device: str, precision: str) -> None:
        super().__init__()
        self._narrow = _HALF.get(precision)
        self._wide = _WIDENED.get(device, frozenset())
        self._attention = device in _ATTENTION
        self._cache: dict[int, Any] = {}  # what a weight became; its values are of living tensors

    def __enter__(self) -> Any:
        self._before = autocast_assumed.set(self._narrow is not None)
        return super().__enter__()

    def __exit__(self, *caught: Any) -> None:
        autocast_assumed.reset(self._before)
        self._cache.clear()
        super().__exit__(*caught)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._narrow is not None:
            if func in _NARROWED:
                args = tuple(self._narrowed(value) for value in args)
                kwargs = {name: self._narrowed(value) for name, value in kwargs.items()}
            elif func in self._wide:
                args = tuple(_widened(value) for value in args)
        if func is functional.scaled_dot_product_attention and self._attention:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _narrowed(self, value: Any) -> Any:
        if not _is_float(value) or value.dtype == self._narrow:
            return value
        leaf = value.is_leaf and value.requires_grad and value.dtype == torch.float32
        if not leaf or not torch.is_grad_enabled():
            return value.to(self._narrow)
        if id(value) not in self._cache:
            self._cache[id(value)] = value.to(self._narrow)
        return self._cache[id(value)]


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _widened(value: Any) -> Any:
    return value.float() if _is_float(value) else value


def _attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, **_: Any,
) -> Any:  # fmt: skip
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]


def checkpointed(device: str, precision: str = "no") -> Callable[..., Any]:
    """Return the argument of a model's `enable_gradient_checkpointing` for the meta device.

    A backward pass runs outside of all modes, so its recomputation has to enter one.
    """

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), _AsOn(device, precision)

    return partial(checkpoint, use_reentrant=False, context_fn=contexts)


def bytes_of(tensors: Iterable[Any]) -> int:
    """Return the bytes of tensors."""
    return sum(value.numel() * value.element_size() for value in tensors)


def kept_and_peak(
    models: Iterable[Any], call: Callable[[], Any], *, device: str, precision: str = "no"
) -> tuple[int, int]:
    """Return the bytes that a forward pass leaves for the backward pass, and the most it held."""
    held = _held(models)
    with _AsOn(device, precision), held:
        found = call()
        kept = held.now
        del found
    return kept, held.peak


def call_peak(models: Iterable[Any], call: Callable[[], Any], *, device: str) -> int:
    """Return the most bytes that a call without gradients holds beside the models."""
    held = _held(models)
    with torch.no_grad(), _AsOn(device, "no"), held:
        call()
    return held.peak


def step_peak(
    models: Iterable[Any],
    call: Callable[[], Any],
    *,
    device: str,
    precision: str = "no",
    batches: int = 1,
) -> int:
    """Return the most bytes that forward and backward passes hold beside the models, gradients included.

    Args:
        models: on the meta device, trainable as in the run.
        call: the forward pass; gives a tensor.
        device: type of the device that it is to be run on.
        batches: whose gradients are added up.
    """
    models = list(models)
    held = _held(models)
    for _ in range(batches):
        with held:
            with _AsOn(device, precision):
                loss = call().float().square().mean()
            loss.backward()
            del loss
    for model in models:
        for value in model.parameters():
            value.grad = None
    return held.peak


def _held(models: Iterable[Any]) -> MemoryCounter:
    held = MemoryCounter()
    for model in models:
        held.know((*model.parameters(), *model.buffers()))
    return held
