"""SVDQuant, as nunchaku stores it: 4-bit residuals with a low-rank branch, and AWQ for modulations.

A layer is `stem.qweight`, `stem.wscales`, the branch (`lora_down`, `lora_up`, or later `proj_down`,
`proj_up`) and the smoothing of its inputs (`smooth`, `smooth_factor`). Queries, keys and values are one
layer, and files of the first layout have names of their own for it all. Numbers lie in the order of
tensor cores: see `fragments`. An adapter joins the branch; see `stream.joining`.

Source: nunchaku 1.2, `models/linear.py`, `convert_flux_state_dict`, `lora/flux/nunchaku_converter.py`;
deepcompressor, `backend/nunchaku/convert.py`; diffusers, `quantizers/nunchaku`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from loramerge.checkpoint.branch import BranchedLayer, BranchTensor, Piece
from loramerge.checkpoint.composed import Composed, Window
from loramerge.checkpoint.fragments import FRAGMENT, TILE
from loramerge.checkpoint.storage import HeldTensor
from loramerge.checkpoint.storages.plain import STORAGE as PLAIN
from loramerge.checkpoint.svdquant_names import (
    modules_of,
    next_of,
    pair_of,
    shifted,
    split_columns,
    splits_of,
)
from loramerge.checkpoint.vectors import ReorderedTensor
from loramerge.checkpoint.zero_points import Interleaved, ZeroPointTensor
from loramerge.errors import FormatError
from loramerge.files.tensors import StoredTensor, Tensor

__all__ = ["STORAGE"]

_CODES, _SCALES, _ZEROS = ".qweight", ".wscales", ".wzeros"
_GROUP = 64  # inputs with one scale and zero point
# the branch, down and up, and the smoothing that the kernel applies and that of the calibration
_WORDS = (
    (".lora_down", ".lora_up", ".smooth", ".smooth_orig"),
    (".proj_down", ".proj_up", ".smooth_factor", ".smooth_factor_orig"),
)


class _SvdQuant:
    name = "svdquant"
    order = -3

    def recognise(self, tensors: Mapping[str, Tensor], name: str) -> HeldTensor | None:
        """Return None: the weights have other names than their tensors; see `weights`."""
        return None

    def fixes_types(self, tensors: Mapping[str, Tensor]) -> bool:
        return any(
            name.endswith(_CODES) and name.removesuffix(_CODES) + _SCALES in tensors
            for name in tensors
        )

    def partners(self, tensor: Tensor, name: str) -> tuple[str, ...]:
        return ()

    def weights(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the weights and biases of a file by the names of the model.

        Raises:
            FormatError: if a layer is not stored as nunchaku stores it.
        """
        stems = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
        layers = {stem: layer for stem in stems if (layer := _layer(tensors, stem)) is not None}
        nunchaku = any(len(modules_of(stem)) > 1 for stem in layers)
        file = _File(tensors, layers, nunchaku)
        found: dict[str, Tensor] = {}
        columns = split_columns(layers)
        for stem in stems.keys() - {stem for both in columns.values() for stem in both}:
            modules = modules_of(stem)
            for whole, word in file.parameters(stem):
                for part, module in enumerate(modules):
                    one = whole if len(modules) == 1 else Window(whole, part, len(modules))
                    found[f"{module}.{word}"] = one
        for module, both in columns.items():
            found[f"{module}.weight"] = file.weight(*both)
            if both[0] + ".bias" in tensors:
                found[f"{module}.bias"] = file.bias(*both)
        return found


@dataclass(frozen=True)
class _File:
    """The tensors of a file.

    Args:
        layers: stem → layer with a branch.
        nunchaku: whether it is nunchaku's own, of which modulations and some inputs are stored in
            another form than diffusers' files have.
    """

    tensors: Mapping[str, Tensor]
    layers: Mapping[str, BranchedLayer]
    nunchaku: bool

    def parameters(self, stem: str) -> Iterator[tuple[Composed, str]]:
        """Yield the weight and the bias of a stem, where they are not stored as the model has them."""
        bias = stem + ".bias" in self.tensors
        if stem in self.layers:
            yield self.weight(stem), "weight"
        elif stem + _ZEROS in self.tensors:
            held = self._modulation(stem)
            yield Composed("I4", held.order.shape, stem + _CODES, held, held.sources), "weight"
        else:
            yield from self._renamed(stem)
            return
        if bias:
            yield self.bias(stem), "bias"

    def weight(self, *stems: str) -> Composed:
        """Return a weight whose columns are those of layers side by side."""
        pieces: list[Piece] = []
        sources: list[Tensor] = []
        for layer in (self.layers[stem] for stem in stems):
            start = pieces[-1].stop if pieces else 0
            pieces.append(Piece(layer, start, start + layer.shape[1]))
            sources += layer.sources
        after = tuple(self.layers[n] for s in stems for n in next_of(s) if n in self.layers)
        first = pieces[0].layer
        shape = (first.shape[0], pieces[-1].stop)
        held = BranchTensor(tuple(pieces), after)
        dtype = "F4" if first.floating else "I4"
        return Composed(dtype, shape, first.up, held, sources, first.factors[0].dtype)

    def bias(self, stem: str, *others: str) -> Composed:
        """Return a bias in the order of the model; those of other layers are added to it."""
        name, splits = stem + ".bias", self._splits(stem)
        stored = self.tensors[name]
        added = tuple(self.tensors[o + ".bias"] for o in others if o + ".bias" in self.tensors)
        moved = tuple(
            layer
            for one in (stem, *others)
            if self.nunchaku and shifted(one) and (layer := self.layers.get(one)) is not None
            and not layer.floating
        )  # fmt: skip
        held = ReorderedTensor(name, stored, splits, added, moved, tiled=stem in self.layers)
        return Composed(stored.dtype, stored.shape, name, held, (stored, *added))

    def _modulation(self, stem: str) -> ZeroPointTensor:
        """Return the weight of a layer with zero points.

        Raises:
            FormatError: if its tensors do not fit each other.
        """
        names = (stem + _CODES, stem + _SCALES, stem + _ZEROS)
        codes, scales, zeros = (self.tensors.get(name) for name in names)
        splits = self._splits(stem)
        if codes is not None and scales is not None and zeros is not None:
            rows, columns = codes.shape[0] * 4, codes.shape[-1] * 2
            fits = codes.dtype == "I32" and len(codes.shape) == 2 and columns % _GROUP == 0
            fits = fits and scales.shape == zeros.shape == (columns // _GROUP, rows)
            fits = fits and scales.dtype == zeros.dtype and scales.dtype in ("BF16", "F16")
            if fits and rows % splits == 0:
                order = Interleaved((rows, columns), splits)
                return ZeroPointTensor(names, (codes, scales, zeros), order, _GROUP)
        raise FormatError(
            "the tensors of this 4-bit layer with zero points do not fit each other",
            module=stem,
            expected=f"codes of int32, and scales and zero points for each {_GROUP} inputs",
            found=", ".join(
                f"{one.dtype} {list(one.shape)}" if one is not None else "none"
                for one in (codes, scales, zeros)
            ),
        )

    def _splits(self, stem: str) -> int:
        return splits_of(stem) if self.nunchaku else 1

    def _renamed(self, stem: str) -> Iterator[tuple[Composed, str]]:
        """Yield parameters that are stored as they are, under other names."""
        if modules_of(stem) == (stem,):
            return
        for word in ("weight", "bias"):
            name = f"{stem}.{word}"
            stored = self.tensors.get(name)
            held = None if stored is None else PLAIN.recognise(self.tensors, name)
            if stored is not None and held is not None:
                yield Composed(stored.dtype, stored.shape, name, held, (stored,)), word


def _layer(tensors: Mapping[str, Tensor], stem: str) -> BranchedLayer | None:
    """Return a layer with a branch, None if the stem is none.

    Raises:
        FormatError: if its tensors do not fit each other.
    """
    codes, scales = tensors.get(stem + _CODES), tensors.get(stem + _SCALES)
    if codes is None or scales is None or codes.dtype not in ("I8", "U8"):
        return None
    words = next((w for w in _WORDS if stem + w[0] in tensors and stem + w[1] in tensors), None)
    if words is None or len(codes.shape) != 2 or len(scales.shape) != 2:
        raise FormatError(
            "this layer of SVDQuant has no low-rank branch",
            module=stem,
            expected="lora_down and lora_up, or proj_down and proj_up, beside qweight",
        )
    down, up = tensors[stem + words[0]], tensors[stem + words[1]]
    rows, columns = codes.shape[0], 2 * codes.shape[1]
    rank = up.shape[1] if len(up.shape) == 2 else -1
    group = 16 if scales.dtype == "F8_E4M3" else 64
    fits = (
        rows % TILE == 0
        and columns % TILE == 0
        and scales.shape == (columns // group, rows)
        and down.shape == (columns, rank)
        and up.shape == (rows, rank)
        and rank % FRAGMENT == 0
        and up.dtype == down.dtype
        and up.dtype in ("BF16", "F16")
        and isinstance(codes, StoredTensor)
        and isinstance(scales, StoredTensor)
    )
    if not fits:
        raise FormatError(
            "the tensors of this layer of SVDQuant do not fit each other",
            module=stem,
            expected=f"{TILE} rows and columns or multiples, scales for {group} columns, and a branch "
            f"of a rank that is a multiple of {FRAGMENT}",
            found=f"codes {list(codes.shape)}, scales {list(scales.shape)}, branch {list(down.shape)} "
            f"and {list(up.shape)}",
        )
    assert isinstance(codes, StoredTensor) and isinstance(scales, StoredTensor)
    smooth = tensors.get(stem + words[2])
    outputs = tensors.get(stem + ".wcscales")
    return BranchedLayer(
        stem, codes, scales, stem + words[1], stem + words[0], (up, down), smooth,
        tensors.get(stem + ".wtscale"), outputs if outputs is not None and outputs.size else None,
        words is _WORDS[1], pair_of(stem), tensors.get(stem + words[3]),
    )  # fmt: skip


STORAGE = _SvdQuant()
