"""Roles → deltas: what the tensors of one module make together.

The rarer kinds are imported where a file has one: `inspect` of a plain LoRA shall not wait for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from loramerge.adapter.delta import Delta
from loramerge.adapter.kinds.foreign import Foreign
from loramerge.adapter.kinds.low_rank import LowRank, Scale, Tucker
from loramerge.dialects.roles import BETRAYING, FOREIGN, kind_of
from loramerge.errors import ShapeError
from loramerge.files.tensors import Tensor

if TYPE_CHECKING:
    from loramerge.adapter.kinds.relative import Axis

__all__ = ["Asked", "Made", "make_bias", "make_weight"]


class Asked(NamedTuple):
    """The tensors of one module, and what is known beside them.

    Args:
        parts: role → tensor.
        scale: gives the scale of the module's factors; read only for kinds that have one.
        module: its name, for errors.
        like: its shape in the family, None if that is not known.
        config: PEFT's configuration of it, if there is one; `path` is the name it goes by there.
    """

    parts: Mapping[str, Tensor]
    scale: Callable[[], Scale]
    module: str
    like: tuple[int, ...] | None = None
    config: Mapping[str, Any] = {}
    path: str = ""

    def only(self, *roles: str) -> dict[str, Tensor]:
        """Return the tensors of some roles, those that are there."""
        return {role: self.parts[role] for role in roles if role in self.parts}


class Made(NamedTuple):
    """A delta, and the roles it takes."""

    delta: Delta
    roles: tuple[str, ...]


def make_weight(asked: Asked) -> Made | None:
    """Return the delta of the weight, None if partners are missing.

    Raises:
        ShapeError: if tensors do not fit together.
    """
    kind = kind_of(asked.parts.keys())
    if kind is not None and kind in FOREIGN:
        return Made(Foreign(dict(asked.parts), kind, (0, 0)), tuple(asked.parts))
    maker = _MAKERS.get(kind or "")
    return maker(asked) if maker else None


def make_bias(asked: Asked, weight: Made | None) -> Made | None:
    """Return the delta of the bias that comes with the tensors of the weight, if there is one."""
    delta = weight.delta if weight else None
    if "up_bias" in asked.parts and delta is not None and delta.dim is not None:
        from loramerge.adapter.kinds.additions import AddedBias

        return Made(AddedBias.of(asked.parts["up_bias"], asked.scale(), delta.dim), ("up_bias",))
    if delta is not None and delta.kind == "ia3":
        from loramerge.adapter.kinds.relative import IA3

        if isinstance(delta, IA3) and "ia3_l" in delta.parts and delta.axis == "out":
            return Made(delta.of_bias(), ())
    return None


def _lora(asked: Asked) -> Made | None:
    parts = asked.only("up", "down", "mid")
    if not {"up", "down"} <= parts.keys():
        return None
    delta: Delta
    if "mid" in parts:
        delta = Tucker.of(parts["up"], parts["down"], parts["mid"], asked.scale(), asked.module)
    else:
        delta = LowRank.of(parts["up"], parts["down"], asked.scale(), asked.module)
    return Made(delta, (*parts, "alpha", "scale"))


def _loha(asked: Asked) -> Made | None:
    from loramerge.adapter.kinds.hadamard import LoHa

    parts = asked.only(*sorted(BETRAYING["loha"]))
    factors = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
    if not factors <= parts.keys():
        return None
    delta = LoHa.of(parts, asked.scale(), asked.like, asked.module)
    return Made(delta, (*parts, "alpha", "scale"))


def _lokr(asked: Asked) -> Made | None:
    from loramerge.adapter.kinds.kronecker import LoKr

    parts = asked.only(*sorted(BETRAYING["lokr"]))
    for half in "12":
        pair = {f"lokr_w{half}_a", f"lokr_w{half}_b"}
        if f"lokr_w{half}" not in parts and not pair <= parts.keys():
            return None
    delta = LoKr.of(parts, asked.scale(), asked.like, asked.module)
    return Made(delta, (*parts, "alpha", "scale"))


def _dora(asked: Asked) -> Made | None:
    from loramerge.adapter.kinds.decomposed import DoRA
    from loramerge.adapter.kinds.hadamard import LoHa
    from loramerge.adapter.kinds.kronecker import LoKr

    (role,) = list(asked.only("magnitude", "dora_scale"))[:1]
    rest = {r: t for r, t in asked.parts.items() if r not in ("magnitude", "dora_scale")}
    inner = make_weight(asked._replace(parts=rest))
    if inner is None or not isinstance(inner.delta, (LowRank, Tucker, LoHa, LoKr)):
        return None
    delta = DoRA.of(inner.delta, asked.parts[role], role, asked.module)
    return Made(delta, (*inner.roles, role))


def _sparse(asked: Asked) -> Made | None:
    from loramerge.adapter.kinds.additions import SparseSum

    parts = asked.only("bias_indices", "bias_values", "bias_size")
    product = _lora(asked._replace(scale=Scale))
    if len(parts) < 3 or product is None or not isinstance(product.delta, (LowRank, Tucker)):
        return None
    delta = SparseSum.of(product.delta, parts, asked.scale(), asked.module)
    return Made(delta, (*product.roles, *parts))


def _glora(asked: Asked) -> Made | None:
    from loramerge.adapter.kinds.relative import GLoRA

    parts = asked.only("a1", "a2", "b1", "b2", "bm")
    if not {"a1", "a2", "b1", "b2"} <= parts.keys():
        return None
    delta = GLoRA.of(parts, asked.scale(), asked.module)
    return Made(delta, (*parts, "alpha", "scale"))


def _ia3(asked: Asked) -> Made | None:
    from loramerge.adapter.kinds.relative import IA3

    parts = asked.only("ia3_weight", "on_input")
    if len(parts) < 2:
        return None
    if parts["on_input"].size != 1 or not parts["ia3_weight"].size:
        raise ShapeError(
            "on_input is no flag, or the vector beside it is empty",
            module=asked.module,
            found=", ".join(f"{role} {list(t.shape)}" for role, t in parts.items()),
        )
    axis: Axis = "in" if parts["on_input"].item() else "out"
    return Made(IA3.of(parts, axis, asked.like), tuple(parts))


def _peft_ia3(asked: Asked) -> Made | None:
    from loramerge.adapter.kinds.relative import IA3

    vector = asked.parts["ia3_l"]
    axis: Axis = "in" if _named(asked.config.get("feedforward_modules"), asked.path) else "out"
    if len(vector.shape) == 2 and 1 in vector.shape and vector.size > 1:
        axis = "out" if vector.shape[1] == 1 else "in"
    elif len(vector.shape) != 4 or vector.size != vector.shape[1]:
        raise ShapeError(
            "this is no vector of an (IA)³",
            module=asked.module,
            expected="(out, 1), (1, in), or (1, n, 1, 1)",
            found=list(vector.shape),
        )
    return Made(IA3.of({"ia3_l": vector}, axis, asked.like), ("ia3_l",))


def _named(names: Any, path: str) -> bool:
    """Say whether PEFT's list of modules, or its expression, means a module."""
    if isinstance(names, str):
        try:
            return re.fullmatch(names, path) is not None
        except re.error:
            return False
    listed = names if isinstance(names, list) else []
    return any(path == name or path.endswith(f".{name}") for name in listed)


def _oft(asked: Asked) -> Made | None:
    from loramerge.adapter.kinds.rotations import BOFT, OFT

    parts = asked.only("oft_blocks", "rescale", "alpha")
    if "oft_blocks" not in parts:
        return None
    make = BOFT.of if len(parts["oft_blocks"].shape) == 4 else OFT.of
    return Made(make(parts, asked.like, asked.module), tuple(parts))


def _peft_oft(asked: Asked) -> Made | None:
    from loramerge.adapter.kinds.rotations import InputRotation

    parts = asked.only("oft_r")
    delta = InputRotation.of_oft(parts, asked.config, asked.like, asked.module)
    return Made(delta, tuple(parts))


def _peft_boft(asked: Asked) -> Made | None:
    from loramerge.adapter.kinds.rotations import InputRotation

    parts = asked.only("boft_r", "boft_s")
    if len(parts) < 2:
        return None
    return Made(InputRotation.of_boft(parts, asked.like, asked.module), tuple(parts))


def _embedding(asked: Asked) -> Made | None:
    from loramerge.adapter.kinds.additions import Embedding

    parts = asked.only("embedding_down", "embedding_up")
    if len(parts) < 2:
        return None
    delta = Embedding.of(
        parts["embedding_down"], parts["embedding_up"], asked.scale(), asked.module
    )
    return Made(delta, (*parts, "alpha"))


_MAKERS: Mapping[str, Callable[[Asked], Made | None]] = {
    "lora": _lora,
    "tucker": _lora,
    "dora": _dora,
    "sparse-bias": _sparse,
    "loha": _loha,
    "lokr": _lokr,
    "oft": _oft,
    "ia3": _ia3,
    "glora": _glora,
    "peft-oft": _peft_oft,
    "peft-boft": _peft_boft,
    "peft-ia3": _peft_ia3,
    "lora-embedding": _embedding,
}
