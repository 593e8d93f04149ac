"""OFT: the weight rotated by one block-diagonal matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import Facts, ReadRows
from loramerge.adapter.floats import values
from loramerge.adapter.kinds.bases.dependent import ChangeRows
from loramerge.adapter.kinds.bases.rotation import (
    InputRotation,
    OutputRotation,
    cayley,
    check_blocks,
    input_shape,
)
from loramerge.adapter.kinds.bases.shapes import shape_like
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.errors import ShapeError
from loramerge.files.tensors import Tensor
from loramerge.files.views import rows_of

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "OFT", "PeftOFT"]

_EPS = 6e-5  # PEFT's for constrained OFT


@final
@dataclass(frozen=True, eq=False)
class OFT(OutputRotation):
    """`W' = s ⊙ Rᵀ W`, R block-diagonal (Qiu et al. 2023; kohya's oft and LyCORIS' diag-oft).

    `R = (I + Q)(I − Q)⁻¹` with `Q = B − Bᵀ` for each block B; `V[k,m] = Σ_n R[k,n,m] W[k,n]`.

    Args:
        parts: `oft_blocks (n, b, b)` with n·b outputs; `alpha`, the constraint: ‖Q‖ of all blocks
            together is at most alpha · outputs, where alpha is > 0 (kohya reads 0 as "no change",
            LyCORIS as "no constraint"; the latter is taken); `rescale`, a factor per output.
    """

    parts: Mapping[str, Tensor]
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "oft"

    @classmethod
    def of(
        cls, parts: Mapping[str, Tensor], like: tuple[int, ...] | None = None, what: str = ""
    ) -> OFT:
        """Make the delta of stored blocks; the number of inputs is the family's.

        Raises:
            ShapeError: if they do not fit together.
        """
        outputs = check_blocks(parts, 3, what)
        return cls(dict(parts), shape_like((outputs, 0), like))

    def scaled(self, weight: float) -> OFT:
        return replace(self, weight=self.weight * weight)

    @property
    def block(self) -> int:
        """Rows of a block."""
        return self.parts["oft_blocks"].shape[1]

    def splits_exactly(self, bounds: Sequence[int]) -> bool:
        """At borders of blocks, if no constraint binds all blocks together."""
        return not self.alpha and not any(bound % self.block for bound in bounds)

    def rows(self, ranges: Sequence[tuple[int, int]]) -> OFT:
        height = sum(stop - start for start, stop in ranges)
        # a constraint is about the norm of all blocks, which places do not change
        bound = bool(self.alpha) and height < self.outputs
        if bound or any(edge % self.block for pair in ranges for edge in pair):
            super().rows(ranges)  # refuses
        of_blocks = [(start // self.block, stop // self.block) for start, stop in ranges]
        parts = {**self.parts, "oft_blocks": rows_of(self.parts["oft_blocks"], of_blocks)}
        if "rescale" in parts:
            parts["rescale"] = rows_of(parts["rescale"], ranges)
        return replace(self, parts=parts, shape=(height, *self.shape[1:]))

    def changer(self, dtype: str, read: ReadRows) -> ChangeRows:
        import numpy as np

        count, size = self.parts["oft_blocks"].shape[:2]
        turned = self.rotations().swapaxes(1, 2).copy()  # (n, b, b): W' = turned @ W
        rescale = self.rescale()
        if rescale is not None:
            turned *= rescale.reshape(count, size, 1)
        turned -= np.eye(size)
        turned = (self.weight * turned).astype(dtype)

        def change(start: int, stop: int, base: Any) -> Any:
            first, last = start // size, -(-stop // size)
            low, high = first * size, last * size
            rows = base if (low, high) == (start, stop) else read(low, high)
            blocks = turned[first:last] @ rows.reshape(last - first, size, -1)
            return blocks.reshape(high - low, -1)[start - low : stop - low]

        return change


@final
@dataclass(frozen=True, eq=False)
class PeftOFT(InputRotation):
    """`W' = W Mᵀ`, M block-diagonal over the inputs: OFT as PEFT and OneTrainer have it.

    Args:
        parts: `oft_r (n, b(b−1)/2)`, the upper triangles of skew blocks (one block where all share
            it), of PEFT's folders; or `oft_r_free`, the same in files without a configuration, which
            means PEFT's defaults, with `oft_scaled` beside it where OneTrainer divides the triangles by
            `2·√(b−1)`.
        block: b. Blocks run over the flattened `in·kh·kw`.
        terms: of the Neumann series PEFT takes for the inverse, None for the inverse itself.
        constraint: the largest norm of a skew block, to which larger ones are shrunk (`coft`); PEFT
            divides its `eps` by the square root of the number of blocks. None is none.
    """

    parts: Mapping[str, Tensor]
    block: int
    shape: tuple[int, ...]
    terms: int | None = None
    constraint: float | None = None
    weight: float = 1.0

    kind: ClassVar[str] = "oft"
    facts: ClassVar[Facts] = Facts(weighs=False, peft_type="OFT")

    @classmethod
    def of(
        cls,
        parts: Mapping[str, Tensor],
        config: Mapping[str, Any],
        like: tuple[int, ...] | None = None,
        what: str = "",
    ) -> PeftOFT:
        """Make the delta of stored triangles.

        Raises:
            ShapeError: if the triangles are of no block, or the configuration makes no sense.
        """
        stored = _triangles(parts).shape
        block = round((1 + math.sqrt(1 + 8 * stored[-1])) / 2) if stored else 0
        if len(stored) != 2 or not stored[0] or block * (block - 1) != 2 * stored[1]:
            raise ShapeError(
                "this is not the upper triangle of a block",
                module=what,
                expected="oft_R (n, b·(b−1)/2)",
                found=list(stored),
            )
        shared = bool(config.get("block_share"))
        terms = config.get("num_cayley_neumann_terms", 5)
        if not isinstance(terms, int):
            raise ShapeError(
                "num_cayley_neumann_terms is not a number", module=what, found=repr(terms)
            )
        neumann = terms if config.get("use_cayley_neumann", True) else None
        constraint = None
        if config.get("coft"):
            eps = config.get("eps", _EPS)
            if not isinstance(eps, (int, float)) or not eps > 0:
                raise ShapeError(
                    "eps of coft is not a positive number", module=what, found=repr(eps)
                )
            constraint = eps / math.sqrt(stored[0])
        columns = 0 if shared else stored[0] * block
        shape = input_shape(columns, 0, like)
        return cls(dict(parts), block, shape, neumann, constraint)

    @property
    def form(self) -> str:
        return f"{self.kind} of inputs"

    @property
    def numbers(self) -> tuple[float, ...]:
        terms = -1.0 if self.terms is None else self.terms
        return (self.block, terms, self.constraint or 0.0)

    def fits(self, shape: tuple[int, ...]) -> bool:
        return self.columns_fit(math.prod(shape[1:]), _triangles(self.parts).shape[0])

    def scaled(self, weight: float) -> PeftOFT:
        return replace(self, weight=self.weight * weight)

    def rows(self, ranges: Sequence[tuple[int, int]]) -> PeftOFT:
        height = sum(stop - start for start, stop in ranges)
        return replace(self, shape=(height, *self.shape[1:]))

    def rotations(self) -> Array:
        import numpy as np

        upper = values(_triangles(self.parts), "float64")
        if "oft_scaled" in self.parts:
            upper = upper / (2.0 * math.sqrt(self.block - 1))
        q = np.zeros((len(upper), self.block, self.block))
        q[:, *np.triu_indices(self.block, 1)] = upper
        q -= q.swapaxes(1, 2)
        if self.constraint is not None:
            norms = np.linalg.norm(q, axis=(1, 2), keepdims=True)
            q *= np.minimum(1.0, self.constraint / np.maximum(norms, self.constraint))
        turns = cayley(-q) if self.terms is None else _neumann(q, self.terms)
        # OneTrainer rotates inputs of linear layers, but weights of convolutions: the other way round
        other = "oft_r_free" in self.parts and len(self.shape) > 2
        return (turns.swapaxes(1, 2) if other else turns)[None]


def _triangles(parts: Mapping[str, Tensor]) -> Tensor:
    return parts["oft_r"] if "oft_r" in parts else parts["oft_r_free"]


def _neumann(q: Array, terms: int) -> Array:
    """Return PEFT's `I + 2Q + 2Q² + … + Q^(terms−1)`; the last power counts once."""
    import numpy as np

    rotation = np.broadcast_to(np.eye(q.shape[-1]), q.shape).copy()
    if terms <= 1:
        return rotation
    rotation += 2.0 * q
    if terms > 2:
        power = q @ q
        rotation += 2.0 * power
        for _ in range(3, terms - 1):
            power = power @ q
            rotation += 2.0 * power
        rotation += power @ q
    return rotation


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only("oft_blocks", "rescale", "alpha")
    if "oft_blocks" not in parts or len(parts["oft_blocks"].shape) == 4:
        return None
    return MadeDelta(OFT.of(parts, stored.like, stored.module), tuple(parts))


def _make_peft(stored: Stored) -> MadeDelta | None:
    parts = stored.only("oft_r")
    if not parts:
        parts = stored.only("oft_r_free", "oft_scaled")
        if "oft_r_free" not in parts:
            return None
    delta = PeftOFT.of(parts, stored.config, stored.like, stored.module)
    return MadeDelta(delta, tuple(parts))


KINDS = (
    Kind(
        "oft",
        roles=("oft_blocks", "rescale"),
        make=_make,
        suffixes={"lycoris": {"oft_blocks": (".oft_blocks",), "rescale": (".rescale",)}},
        always=("oft_blocks",),
        compared="formula, LyCORIS",
    ),
    Kind(
        "peft-oft",
        roles=("oft_r", "oft_r_free", "oft_scaled"),
        integers=("oft_scaled",),
        make=_make_peft,
        suffixes={
            "peft": {"oft_r": (".oft_R.weight", ".oft_R.default.weight")},
            "lycoris": {"oft_r_free": (".oft_R.weight",), "oft_scaled": (".oft_R.scaled_oft",)},
        },
        always=("oft_r", "oft_r_free"),
        compared="formula, PEFT, OneTrainer",
    ),
)
