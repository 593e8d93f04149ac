"""The trainable part beside one layer: `y = layer(x) + weight · alpha / rank · up(down(x))`.

A layer with a branch stays the same object with the same parameters and names. Only its class changes,
to a subclass whose `forward` adds the branch. So hooks, tied weights and the names in `state_dict()`
survive, and the branch can be removed without a trace.

With a magnitude `m` (DoRA) the weight is `W' = m ⊙ V / ‖V‖` with `V = W + alpha / rank · up @ down`, and
`y = layer(x) + weight · (W' - W) x`. Norms are taken over each output's row; gradients treat them as
constants.

Source: Hu et al., LoRA (arXiv:2106.09685), section 4.1; Kalajdzievski, rsLoRA (arXiv:2312.03732) for
`alpha / sqrt(rank)`; Liu et al., DoRA (arXiv:2402.09353), sections 4.1 and 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from loramerge.train.spec.settings import Init

__all__ = [
    "Branch",
    "LoraConv1d",
    "LoraConv2d",
    "LoraConv3d",
    "LoraLinear",
    "attach",
    "detach",
    "full_rank",
    "supported",
    "weight_shape",
]


class Branch(nn.Module):
    """Up and down of one layer, never narrower than float32, on the device of the layer's weight.

    Args:
        layer: an `nn.Linear`, or an `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d` of one group.
        rank: at most `full_rank` of the layer.
        alpha: the scale is `alpha / rank`, or `alpha / sqrt(rank)` with `rslora`.
        dropout: probability with which an input of the branch is zeroed in training.
        init: of down: `kaiming` (uniform, ±1/sqrt(in·kh·kw)) or `gaussian` (deviation 1/rank); up
            is zero.
        decompose: DoRA, with the norms of the layer's rows as first magnitudes.

    Attributes:
        up: `(out, r)`, or `(out, r, 1, …)` for a convolution.
        down: `(r, in)`, or `(r, in, …)` with the kernel's axes.
        magnitude: `(out,)`, or None without DoRA.
        weight: the user's coefficient; at 0 the layer gives its own output, bit for bit.

    Initial values come from torch's global generator on the CPU, in the order of PEFT 0.15 to 0.21.
    So a seed gives the same numbers on every device and in PEFT. On the meta device they are drawn
    when the layer is materialised.
    """

    def __init__(
        self,
        layer: nn.Module,
        rank: int,
        alpha: float,
        *,
        rslora: bool = False,
        dropout: float = 0.0,
        init: Init = "kaiming",
        decompose: bool = False,
    ) -> None:
        super().__init__()
        out, *rest = weight_shape(layer)
        tail = (1,) * (len(rest) - 1)
        device = layer.weight.device
        self.rank, self.alpha, self.rslora, self.weight = rank, float(alpha), rslora, 1.0
        self.init: Init = init
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        place = "meta" if device.type == "meta" else "cpu"
        self.down = nn.Parameter(torch.empty(rank, *rest, device=place, dtype=torch.float32))
        self.up = nn.Parameter(torch.empty(out, rank, *tail, device=place, dtype=torch.float32))
        self.magnitude: Any = None
        if decompose:
            self.magnitude = nn.Parameter(_row_norms(layer.weight.detach().float()).to(place))
        self.reset()
        self._apply(lambda tensor: tensor.to(device))

    @property
    def own_scale(self) -> float:
        """The factor of `up @ down`, without the user's coefficient."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def scale(self) -> float:
        """The factor of `up @ down`, with the user's coefficient."""
        return self.weight * self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def parts(self) -> tuple[nn.Parameter, ...]:
        """The trained parameters: down, up, and the magnitude if there is one."""
        return (self.down, self.up, *([] if self.magnitude is None else [self.magnitude]))

    def reset(self) -> None:
        """Initialise down at random and up to zero, so that the branch changes nothing."""
        if self.down.is_meta:
            return
        # on the CPU for every device; the first two draws are those of the constructor in PEFT
        down = torch.empty(self.down.shape, dtype=torch.float32, device="cpu")
        up = torch.empty(self.up.shape, dtype=torch.float32, device="cpu")
        for drawn in (down, up):
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
        if self.init == "gaussian":
            nn.init.normal_(down, std=1 / self.rank)
        else:
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        with torch.no_grad():
            self.down.copy_(down)
            self.up.zero_()

    def product(self) -> Any:
        """Return `scale · up @ down` with the shape of the layer's weight, in the branch's type."""
        flat = self.up.flatten(1) @ self.down.flatten(1)
        return (flat * self.scale).reshape(self.up.shape[0], *self.down.shape[1:])

    def change(self, base: Any) -> Any:
        """Return ΔW of a layer with the weight `base`, in the wider dtype of both."""
        if self.magnitude is None:
            return self.product()
        wide = base.to(torch.promote_types(base.dtype, self.up.dtype))
        turned = self._turned(wide)
        return self.weight * (_rows(self.magnitude / _row_norms(turned), wide) * turned - wide)

    def _turned(self, base: Any) -> Any:
        """Return V of DoRA."""
        flat = self.up.flatten(1) @ self.down.flatten(1)
        return base + (flat * self.own_scale).reshape(base.shape)

    def stretch(self, base: Any) -> Any:
        """Return m / ‖V‖ of each output, `(out,)`; gradients flow through m alone."""
        with torch.no_grad():
            norms = _row_norms(self._turned(base.to(self.up.dtype)))
        return self.magnitude / norms

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Branch:
        """Follow the model to a device, but keep at least float32.

        A branch on the meta device has no values to move; they are drawn when it leaves that device.
        """
        unborn = self.down.is_meta
        super()._apply(lambda tensor: _wide(fn, tensor), recurse)
        if unborn:
            self.reset()
        return self

    def extra_repr(self) -> str:
        kind = ", rslora" if self.rslora else ""
        return f"rank={self.rank}, alpha={self.alpha:g}, weight={self.weight:g}{kind}"


def _row_norms(weight: Any) -> Any:
    """Return the norm of each output's row, `(out,)`."""
    return weight.flatten(1).norm(dim=1)


def _rows(values: Any, weight: Any) -> Any:
    """Return `(out,)` shaped to multiply the rows of a weight."""
    return values.reshape(-1, *[1] * (weight.ndim - 1))


def _wide(fn: Callable[[Any], Any], tensor: Any) -> Any:
    moved = fn(tensor)
    if not moved.is_floating_point() or moved.element_size() >= torch.float32.itemsize:
        return moved
    if tensor.is_meta:
        return torch.empty_like(tensor, device=moved.device)
    return tensor.to(moved.device)


# True to act as under autocast on the meta device, where torch has none; see `train.memory.held`
autocast_assumed: ContextVar[bool] = ContextVar("autocast_assumed", default=False)


def _taken(x: Any, branch: Branch) -> Any:
    """Return the input in the dtype of the branch's computation.

    Autocast casts by itself; a cast before it would make every layer keep its own copy of the input.
    """
    kind = x.device.type
    if autocast_assumed.get() or (
        torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    ):
        return x
    return x.to(branch.down.dtype)


class _WithBranch:
    """Mixin for a layer's class; `former` is that class and comes next in the resolution order."""

    lora: Branch
    former: type[Any]

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        base = super().forward(x, *args, **kwargs)  # type: ignore[misc]
        branch = self.lora
        if branch.weight == 0.0:
            return base
        if branch.magnitude is not None:
            return self._decomposed(x, base, branch)
        inner = branch.dropout(_taken(x, branch))
        return (base + self._through(inner, branch) * branch.scale).to(base.dtype)

    def _decomposed(self, x: Any, base: Any, branch: Branch) -> Any:
        """Return the output of W', interpolated from the base's by the weight."""
        x = x.to(branch.down.dtype)
        plain = base.to(branch.down.dtype)
        bias = getattr(self, "bias", None)
        if bias is not None:
            plain = plain - self._by_output(bias.to(plain.dtype))
        stretch = self._by_output(branch.stretch(getattr(self, "weight")))  # noqa: B009 - of the layer
        turned = stretch * (plain + self._through(x, branch) * branch.own_scale)
        return (base + branch.weight * (turned - plain)).to(base.dtype)

    def _by_output(self, values: Any) -> Any:
        """Return `(out,)` shaped to go with an output of the layer."""
        return values

    def _through(self, x: Any, branch: Branch) -> Any:
        raise NotImplementedError


class _Linear(_WithBranch):
    def _through(self, x: Any, branch: Branch) -> Any:
        return functional.linear(functional.linear(x, branch.down), branch.up)


class _Conv(_WithBranch):
    _conv_forward: Callable[[Any, Any, Any], Any]
    kernel_size: tuple[int, ...]

    def _through(self, x: Any, branch: Branch) -> Any:
        # stride, padding (its mode too) and dilation are the layer's
        inner = self._conv_forward(x, branch.down, None)
        return _POINTWISE[len(self.kernel_size)](inner, branch.up)

    def _by_output(self, values: Any) -> Any:
        return values.reshape(-1, *[1] * len(self.kernel_size))


_POINTWISE: dict[int, Callable[[Any, Any], Any]] = {
    1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d,
}  # fmt: skip


class LoraLinear(_Linear, nn.Linear):
    """A linear layer with a branch, `lora`."""

    former = nn.Linear


class LoraConv1d(_Conv, nn.Conv1d):
    """A convolution over one axis with a branch, `lora`."""

    former = nn.Conv1d


class LoraConv2d(_Conv, nn.Conv2d):
    """A convolution over two axes with a branch, `lora`."""

    former = nn.Conv2d


class LoraConv3d(_Conv, nn.Conv3d):
    """A convolution over three axes with a branch, `lora`."""

    former = nn.Conv3d


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_OWN = (LoraLinear, LoraConv1d, LoraConv2d, LoraConv3d)


@cache
def _with_branch(base: Any) -> type[Any]:
    """Return the class that a layer of class `base` gets."""
    known: dict[Any, type[Any]] = {one.former: one for one in _OWN}
    if base in known:
        return known[base]
    mixin = _Linear if issubclass(base, nn.Linear) else _Conv
    return type(f"Lora{base.__name__}", (mixin, base), {"__module__": __name__, "former": base})


def supported(layer: nn.Module) -> bool:
    """Return whether a layer can have a branch: a linear layer, or a convolution of one group."""
    if isinstance(layer, _CONVOLUTIONS):
        return bool(layer.groups == 1)
    return isinstance(layer, nn.Linear)


def weight_shape(layer: Any) -> tuple[int, ...]:
    """Return `(out, in)` or `(out, in, kernel…)`, for quantised layers too."""
    if isinstance(layer, _CONVOLUTIONS):
        return (layer.out_channels, layer.in_channels, *layer.kernel_size)
    return (layer.out_features, layer.in_features)


def full_rank(layer: nn.Module) -> int:
    """Return the largest rank a layer's ΔW can have: `min(out, in · kernel)`."""
    out, *rest = weight_shape(layer)
    return min(out, math.prod(rest))


def attach(layer: Any, branch: Branch) -> None:
    """Give a layer a branch."""
    former: Any = type(layer)
    layer.__class__ = _with_branch(former)
    layer.lora = branch


def detach(layer: Any) -> None:
    """Remove the branch and restore the layer's former class."""
    del layer.lora
    layer.__class__ = type(layer).former
