"""Sites: the place of a delta."""

from __future__ import annotations

from collections.abc import Sequence

from loramerge.errors import ShapeError
from loramerge.families import Parameter
from loramerge.records import NamedTuple

__all__ = ["Site"]


class Site(NamedTuple):
    """The place of a delta: one module, or several that a file stores fused; and the parameter.

    `spans` says how many equal parts of the rows each of several modules takes, in their order.
    """

    modules: tuple[str, ...]
    parameter: Parameter = "weight"
    spans: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The name for people: the module's, with `.bias` where it is the bias.

        What several modules have in common is said once: `block.0.attn.to_q+to_k+to_v`.
        """
        joined = self.modules[0] if len(self.modules) == 1 else _joined(self.modules)
        return joined if self.parameter == "weight" else f"{joined}.{self.parameter}"

    def bounds(self, rows: int) -> tuple[int, ...]:
        """Return the first row of each module, and the end, in a delta with a number of rows.

        Raises:
            ShapeError: if the rows cannot be divided so.
        """
        if len(self.modules) == 1:
            return (0, rows)
        unit, rest = divmod(rows, sum(self.spans))
        if rest:
            raise ShapeError(
                "the rows of a fused delta cannot be divided among its modules",
                module=self.name,
                expected=f"a multiple of {sum(self.spans)}",
                found=rows,
            )
        return tuple(unit * sum(self.spans[:i]) for i in range(len(self.spans) + 1))

    def part(self, modules: Sequence[str]) -> Site:
        """Return the site of some of the modules."""
        spans = tuple(
            span for m, span in zip(self.modules, self.spans, strict=False) if m in modules
        )
        kept = tuple(m for m in self.modules if m in modules)
        return Site(kept, self.parameter, spans if len(kept) > 1 else ())

    @property
    def component(self) -> str:
        """The component all its modules belong to."""
        return self.modules[0].partition(".")[0]


def _joined(modules: tuple[str, ...]) -> str:
    paths = [module.split(".") for module in modules]
    common = 0
    while len({tuple(path[: common + 1]) for path in paths}) == 1:
        common += 1
    head = "".join(f"{word}." for word in paths[0][:common])
    return head + "+".join(".".join(path[common:]) for path in paths)
