"""GLoRA as PEFT has it: a share of each element of the weight, and a part of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import AlphaPlace, Facts, ReadRows
from loramerge.adapter.floats import times, values
from loramerge.adapter.kinds.bases.computed import OfBase, require
from loramerge.adapter.kinds.bases.dependent import ChangeRows
from loramerge.adapter.kinds.bases.shapes import shape_like
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.errors import UnsupportedKind
from loramerge.files.tensors import Tensor
from loramerge.records import record

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "PeftGLoRA"]

_PATHS = {"A": "weight", "B": "weight", "C": "bias", "D": "bias", "E": "bias"}
_ENDS = ("Xd", "Xu", "X", "zeros")
_WORDS = {f"glora_{path}_{end.lower()}": f"glora_{path}.{end}" for path in _PATHS for end in _ENDS}


@final
@record(eq=False)
class PeftGLoRA(OfBase):
    """`ΔW = W ⊙ A + B`, and `Δb = b ⊙ D + E` (Chavan et al. 2023, as PEFT has it).

    Args:
        parts: of each of A to E two factors `Xd (out, r)` and `Xu (r, in)`, a vector or a number `X`, or
            `zeros`. C, whose product with W is added to the bias, must be zeros.
        companion: the change of the bias; it is written with the weight, not for itself.
    """

    parts: Mapping[str, Tensor]
    shape: tuple[int, ...]
    weight: float = 1.0
    companion: bool = False

    kind: ClassVar[str] = "glora"

    @property
    def facts(self) -> Facts:  # type: ignore[override]
        return Facts(weighs=False, optional=self.companion, peft_type="GLORA")

    @property
    def form(self) -> str:
        return f"{self.kind} of elements"

    def fits(self, shape: tuple[int, ...]) -> bool:
        ours = self.shape if len(self.shape) == len(shape) else ()
        return len(ours) == len(shape) and all(
            a in (0, b) for a, b in zip(ours, shape, strict=True)
        )

    def stored(self) -> Mapping[str, Tensor]:
        return {} if self.companion else self.parts

    def encoded(self, dtype: str | None, *, alpha: AlphaPlace) -> dict[str, Tensor]:
        return {} if self.companion else super().encoded(dtype, alpha=alpha)

    def _path(self, name: str, dtype: str) -> tuple[Array, Array]:
        """Return two factors `(out or 1, r)` and `(r, in or 1)` of a path."""
        import numpy as np

        found = {end: self.parts.get(f"glora_{name}_{end.lower()}") for end in _ENDS}
        if found["Xd"] is not None and found["Xu"] is not None:
            return values(found["Xd"], dtype), values(found["Xu"], dtype)
        one = np.ones((1, 1), dtype)
        if found["X"] is None:
            return one * 0, one
        return values(found["X"], dtype).reshape(-1, 1), one

    def changer(self, dtype: str, read: ReadRows) -> ChangeRows:
        first, second = (self._path(name, dtype) for name in ("DE" if self.companion else "AB"))

        def rows(path: tuple[Array, Array], start: int, stop: int) -> Array:
            up, down = path
            return (up if len(up) == 1 else up[start:stop]) @ down

        def change(start: int, stop: int, base: Any) -> Any:
            return times(base * rows(first, start, stop) + rows(second, start, stop), self.weight)

        return change


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only(*_WORDS)
    heights, widths = set[int](), set[int]()
    for name, parameter in _PATHS.items():
        found = {
            role: parts[role].shape
            for role in _WORDS
            if role.startswith(f"glora_{name}_") and role in parts
        }
        ends = {role.rpartition("_")[2] for role in found}
        sound = ends in ({"xd", "xu"}, {"x"}, {"zeros"})
        require(stored, sound, "GLoRA", "each of A to E as Xd and Xu, as X, or as zeros")
        up, down = found.get(f"glora_{name}_xd"), found.get(f"glora_{name}_xu")
        if up is not None and down is not None:
            require(
                stored,
                len(up) == len(down) == 2 and up[1] == down[0],
                "GLoRA",
                "Xd (n, r), Xu (r, m)",
            )
        if name == "C" and ends != {"zeros"}:
            raise UnsupportedKind(
                "this GLoRA adds the weight times C to the bias, which is not computed",
                module=stored.module,
                hint="merge it in PEFT with merge_and_unload()",
            )
        sizes = up or found.get(f"glora_{name}_zeros") or found.get(f"glora_{name}_x") or (1,)
        if name != "C" and sizes[0] > 1:
            heights.add(sizes[0])
        wide = down or found.get(f"glora_{name}_zeros")
        if parameter == "weight" and wide is not None and len(wide) == 2:
            widths.add(wide[1])
    require(
        stored,
        len(heights) <= 1 and len(widths) <= 1,
        "GLoRA",
        "one number of outputs and of inputs",
    )
    shape = shape_like((max(heights, default=0), max(widths, default=0)), stored.like)
    return MadeDelta(PeftGLoRA(parts, shape), tuple(parts))


def _make_bias(stored: Stored, weight: MadeDelta | None) -> MadeDelta | None:
    delta = None if weight is None else weight.delta
    if not isinstance(delta, PeftGLoRA):
        return None
    if all(role.endswith("_zeros") for role in delta.parts if role[6] in "DE"):
        return None
    return MadeDelta(replace(delta, shape=delta.shape[:1], companion=True), ())


KINDS = (
    Kind(
        "peft-glora",
        roles=tuple(_WORDS),
        make=_make,
        make_bias=_make_bias,
        suffixes={
            "peft": {
                role: (f".{word}", f".{word.replace('.', '.default.')}")
                for role, word in _WORDS.items()
            }
        },
        always=tuple(role for role in _WORDS if role[6] == "A"),
        compared="formula, PEFT",
    ),
)
