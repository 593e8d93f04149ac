"""The declaration of a kind: the names of its tensors in files, and the making of deltas from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, Literal

from loramerge.adapter.delta import Delta
from loramerge.adapter.kinds.bases.scale import Scale
from loramerge.families import Parameter
from loramerge.files.tensors import Tensor
from loramerge.records import NamedTuple, record

__all__ = ["BiasMaker", "Container", "Kind", "MadeDelta", "Maker", "Stored"]

# whose suffixes: LyCORIS' (also kohya's and ComfyUI's), PEFT's for its LoRA, PEFT's for other types
Container = Literal["lycoris", "peft-lora", "peft"]


class Stored(NamedTuple):
    """The tensors of one module, with its shape and configuration.

    Args:
        tensors: by role.
        scale: gives the scale of the module's factors; called only by kinds that have one.
        module: its name, for errors.
        like: its shape in the family, None if that is not known.
        config: PEFT's configuration of it, if there is one; `path` is the name it goes by there.
    """

    tensors: Mapping[str, Tensor]
    scale: Callable[[], Scale]
    module: str
    like: tuple[int, ...] | None = None
    config: Mapping[str, Any] = {}
    path: str = ""

    def only(self, *roles: str) -> dict[str, Tensor]:
        """Return the tensors of some roles, those that are there."""
        return {role: self.tensors[role] for role in roles if role in self.tensors}


class MadeDelta(NamedTuple):
    """A delta, and the roles it takes.

    Args:
        hides_kernel: the tensors may be those of a linear layer or of any kernel, flattened.
        parameter: what it changes, where it stands beside the delta of a weight.
    """

    delta: Delta
    roles: tuple[str, ...]
    hides_kernel: bool = False
    parameter: Parameter = "bias"


Maker = Callable[[Stored], MadeDelta | None]
BiasMaker = Callable[[Stored, MadeDelta | None], MadeDelta | None]


@record(eq=False)
class Kind:
    """A kind of delta, as files store it.

    Args:
        name: unique; the `kind` of its deltas, with a prefix where programs mean different things.
        roles: our words for its tensors; a module that has any of them is of this kind, and others
            are not shown to it. A kind without roles sees all, and makes a bias alone.
        make: gives the delta of the weight, or None if tensors are missing.
        make_bias: gives a delta of another parameter, mostly the bias, that comes with the tensors of a
            module, given the delta of its weight.
        suffixes: container → role → ends of keys, separator included; the first is written.
        always: roles of which a module of this kind always has one, by which it is known again when
            it is written.
        wraps: it changes the meaning of roles of another kind, so it is tried first.
        integers: roles whose tensors may be of whole numbers, besides alpha and scale.
        whole: it needs no partner: made where no other kind is.
        example: role → shape of a module of 16 × 16, for the table of the documents.
        compared: the reference of its ΔW in tests, for the same table; empty for kinds that are not
            computed.
    """

    name: str
    roles: tuple[str, ...]
    make: Maker | None = None
    make_bias: BiasMaker | None = None
    suffixes: Mapping[Container, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    always: tuple[str, ...] = ()
    integers: tuple[str, ...] = ()
    wraps: bool = False
    whole: bool = False
    example: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    compared: str = "formula"
