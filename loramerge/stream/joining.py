"""Join adapters to the low-rank branches of a quantised checkpoint: the residuals keep their bytes.

Factors are appended to those of the branch, rounded to their type. The rank grows to a multiple of what
the format's packing needs; where the programs that read it want one rank for a whole file, all layers
get the largest, filled up with zeros.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loramerge.adapter import Delta
from loramerge.checkpoint import CheckpointFile
from loramerge.checkpoint.branch import BranchedLayer, BranchRows, BranchTensor, Piece
from loramerge.checkpoint.composed import Composed, Window
from loramerge.checkpoint.fragments import TILE
from loramerge.errors import FormatError, NumericsError, Setting, UnsupportedKind, listed
from loramerge.files.dtypes import numpy_dtype
from loramerge.files.header import TensorInfo
from loramerge.files.json_values import read_values, values_in
from loramerge.files.positioned import PositionedFile
from loramerge.files.tensors import same_bytes
from loramerge.stream.edits import BakePlan, Edit
from loramerge.stream.survival import Survival
from loramerge.stream.walk import Buffers, Nowhere, TensorTask

__all__ = [
    "Join", "compute_join", "config_with_rank", "joins_of", "level_of", "require_joinable",
    "shapes_of", "with_rank",
]  # fmt: skip

_CONFIG = "quantization_config"


@dataclass
class _Sharing:
    """Changes that share their factor of the inputs.

    Args:
        delta: whose factor it is.
        rows: edits of rows of the layer, each with its delta and the row at which it begins there.
    """

    delta: Delta
    piece: Piece
    rows: list[tuple[Edit, Delta, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Join:
    """The branch that a layer gets.

    Args:
        rank: of the stored factors afterwards.
    """

    layer: BranchedLayer
    rank: int
    groups: tuple[_Sharing, ...] = ()


def require_joinable(edits: Iterable[Edit], wider: str | None) -> None:
    """Refuse changes that no branch can take, and other types for layers that are read as they are.

    Raises:
        UnsupportedKind, FormatError: naming the modules.
    """
    found = [edit for edit in edits if isinstance(edit.place.tensor, Composed)]
    branched = [edit for edit in found if isinstance(_held(edit), BranchTensor)]
    for held in map(_held, branched):
        if isinstance(held, BranchTensor):
            held.require_apart()
    whole = [
        f"{edit.site.name} ({delta.kind})"
        for edit in branched
        for delta in edit.deltas
        if delta.needs_base or delta.facts.replaces or delta.rank is None
    ]
    if whole:
        raise UnsupportedKind(
            f"{len(whole)} changes have no low rank, and only factors can join the branch of SVDQuant",
            module=listed(whole, 4),
            hint=(
                "approximate the adapter first: resize it with ",
                Setting("rank", 32),
                "; one that depends on the base needs the base it was trained on",
            ),
        )
    kept = [e.place.name for e in found if e.place.tensor.dtype == "I4" and e not in branched]
    if wider is not None and kept:
        raise FormatError(
            "programs read these layers in 4 bits only, so they cannot be kept in a wider type",
            module=listed(kept, 4),
            hint=("leave out ", Setting("keep_touched")),
        )


def joins_of(plan: BakePlan, file: CheckpointFile) -> Mapping[str, Join]:
    """Return the branches of a file that change, by the names of their outer factors."""
    edits = [
        (edit, held)
        for some in plan.edits.get(file, {}).values()
        for edit in some
        if isinstance(held := _held(edit), BranchTensor)
    ]
    if not edits:
        return {}
    groups: dict[str, list[_Sharing]] = {}
    for edit, held in edits:
        for piece in held.pieces:
            _add(groups.setdefault(piece.layer.stem, []), edit, piece)
    layers = {layer.stem: layer for layer in _layers(file)}
    ranks = {
        stem: _whole(layer.rank + sum(g.delta.rank or 0 for g in groups.get(stem, ())), layer)
        for stem, layer in layers.items()
    }
    if any(layer.level for layer in layers.values()):
        ranks = dict.fromkeys(ranks, max(ranks.values()))
    for stem, layer in layers.items():
        if layer.pair in ranks:
            ranks[stem] = max(ranks[stem], ranks[layer.pair])
    return {
        layer.up: Join(layer, ranks[stem], tuple(groups.get(stem, ())))
        for stem, layer in layers.items()
        if ranks[stem] != layer.rank or stem in groups
    }


def _held(edit: Edit) -> object:
    tensor = edit.place.tensor
    return tensor.held if isinstance(tensor, Composed) else None


def _layers(file: CheckpointFile) -> Iterator[BranchedLayer]:
    """Yield the layers of a file that have a branch, some more than once."""
    for tensor in file.weights().values():
        whole = tensor.whole if isinstance(tensor, Window) else tensor
        if isinstance(whole, Composed) and isinstance(whole.held, BranchTensor):
            yield from (piece.layer for piece in whole.held.pieces)


def _whole(rank: int, layer: BranchedLayer) -> int:
    return rank + -rank % layer.step


def _add(groups: list[_Sharing], edit: Edit, piece: Piece) -> None:
    """Add the deltas of an edit to those of the groups that share their inner factors."""
    first = edit.place.rows[0]
    for delta, offset in zip(edit.deltas, edit.offsets, strict=True):
        group = next((g for g in groups if _shared(g.delta, delta)), None)
        if group is None:
            group = _Sharing(delta, piece)
            groups.append(group)
        group.rows.append((edit, delta, first - offset))


def _shared(one: Delta, other: Delta) -> bool:
    """Return whether two deltas have one factor of the inputs."""
    if one is other:
        return True
    ours, theirs = one.pair, other.pair
    return ours is not None and theirs is not None and same_bytes(ours.down, theirs.down)


def shapes_of(joins: Mapping[str, Join]) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of the factors after the bake, by name."""
    found: dict[str, tuple[int, ...]] = {}
    for join in joins.values():
        rows, columns = (tensor.shape[0] for tensor in join.layer.factors)
        found |= {join.layer.up: (rows, join.rank), join.layer.down: (columns, join.rank)}
    return found


def with_rank(metadata: Mapping[str, str], joins: Mapping[str, Join]) -> dict[str, str]:
    """Return the entries of a header with the rank that all layers of its file have now."""
    found, rank = dict(metadata), level_of(joins)
    if not rank or _CONFIG not in found:
        return found
    try:
        content = values_in(found[_CONFIG])
    except ValueError:
        return found
    if isinstance(content, dict) and "rank" in content:
        found[_CONFIG] = json.dumps({**content, "rank": rank})
    return found


def level_of(joins: Mapping[str, Join]) -> int:
    """Return the one rank of all layers of a file; 0 where each has its own or none changes."""
    return max((join.rank for join in joins.values() if join.layer.level), default=0)


def config_with_rank(source: Path, rank: int) -> bytes:
    """Return the configuration of a model with another rank of its layers."""
    config = read_values(source)
    content = config.get(_CONFIG) if isinstance(config, dict) else None
    if isinstance(content, dict):
        for one in (content, content.get("svdq_w4a4")):
            if isinstance(one, dict) and "rank" in one:
                one["rank"] = rank
    return json.dumps(config, indent=2).encode()


def compute_join(
    join: Join, infos: Mapping[str, TensorInfo], out: PositionedFile | Nowhere
) -> TensorTask[Survival]:
    """Return the task that writes both factors of a layer."""
    layer = join.layer

    def run(_: Buffers) -> list[Survival]:
        import numpy as np

        kind = numpy_dtype(layer.factors[0].dtype)
        old_up, old_down = layer.both(kind)
        up = np.zeros((len(old_up), join.rank), kind)
        down = np.zeros((join.rank, old_down.shape[1]), kind)
        up[:, : layer.rank], down[: layer.rank] = old_up, old_down
        position, found = layer.rank, []
        for group in join.groups:
            rank = group.delta.rank or 0
            found += _fill(
                group, up[:, position : position + rank], down[position : position + rank]
            )
            position += rank
        for name, stored in zip((layer.up, layer.down), layer.stored(up, down), strict=True):
            out.write(infos[name].start, np.ascontiguousarray(stored).reshape(-1).view(np.uint8))
        return found

    size = sum(infos[name].stop - infos[name].start for name in (layer.up, layer.down))
    return TensorTask(size, run)


def _fill(group: _Sharing, up: Any, down: Any) -> list[Survival]:
    """Write the factors of a group into columns and rows of a layer's; return what rounding keeps.

    Both are scaled by powers of two so that they are about equally large, which costs nothing.
    """
    import numpy as np

    piece, found = group.piece, []
    columns = slice(piece.start, piece.stop)
    outer, inner = group.delta.factors("float64")
    inner = inner[:, columns]
    power = _power(outer, inner)
    with np.errstate(over="ignore", invalid="ignore"):
        down[:] = inner * 2.0**power
    kept = down.astype("float64")
    for edit, delta, first in group.rows:
        factor = outer if delta is group.delta else delta.factors("float64")[0]
        start, stop = edit.place.rows
        part = factor[start - first : stop - first]
        rows = up[start:stop]
        with np.errstate(over="ignore", invalid="ignore"):
            rows[:] = part * 2.0**-power
        written = rows.astype("float64")
        if not (np.isfinite(written).all() and np.isfinite(kept).all()):
            raise NumericsError(
                "the factors hold NaN or infinity, or do not fit the type of the branch",
                module=edit.site.name,
                hint=(
                    "inspect the adapters with ",
                    Setting("deep", True),
                    ", or lower their weights",
                ),
            )
        asked = _product((part, inner), (part, inner))
        along = _product((written, kept), (part, inner))
        whole = _product((written, kept), (written, kept))
        error = max(0.0, whole - 2 * along + asked)
        base = _norm(piece, start, stop)
        found.append(Survival(edit.site.name, piece.layer.up, asked, along, error, base))
    return found


def _norm(piece: Piece, start: int, stop: int) -> float:
    """Return the squared norm of rows of a layer's weight."""
    import numpy as np

    rows, total = BranchRows((piece,)), 0.0
    for first in range(start - start % TILE, stop, TILE):
        part = rows.weights(max(start, first), min(stop, first + TILE)).reshape(-1)
        total += float(np.dot(part, part))
    return total


def _power(outer: Any, inner: Any) -> int:
    """Return the power of two that makes factors about equally large."""
    import numpy as np

    sizes = [float(np.abs(one).max(initial=0)) for one in (outer, inner)]
    if not all(0 < size < float("inf") for size in sizes):
        return 0
    return round(math.log2(sizes[0] / sizes[1]) / 2)


def _product(one: tuple[Any, Any], other: tuple[Any, Any]) -> float:
    """Return the inner product of two products of factors."""
    return float(((one[0].T @ other[0]) * (one[1] @ other[1].T)).sum())
