"""Every pair of dialects that can express an adapter: there and back it means the same.

For each family the modules are a few of every sort that both dialects can name, in the groups in which
either stores them fused. What a file means is told by products with random vectors in float64, module
by module, from its factors as numpy reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapter import Adapter, LowRank, Scale, Site
from loramerge.adapter.info import Info
from loramerge.dialects import DIALECTS, Dialect, stem_table
from loramerge.dialects.detection import Detection
from loramerge.families import FAMILIES, Family
from loramerge.files.reader import TensorFile
from loramerge.files.tensors import ArrayTensor, RawTensor
from loramerge.steps.references import Reference
from loramerge.verbs.convert import Convert, convert
from tests.tail import tail

Array = np.ndarray[Any, Any]
Group = tuple[str, ...]  # modules that some of the two dialects stores as one

RANK, ALPHA = 2, 1.5  # a scale of 0.75, which a folded factor rounds
DENOISERS = ("unet.", "transformer.")
EACH = 1  # group of every sort
# of the same names as another family, in other widths
USUAL = {"sd15", "sdxl", "flux1", "qwen-image", "wan", "z-image", "tiny"}
WIDER = {"sd21", "sd3", "sd35-large", "flux2-dev", "flux2-klein-9b", "ltx-video-13b", "cosmos2-14b"}
ROUNDING = {"float32": 2.0**-22, "float16": 2.0**-9}
# diffusers' header has a place for alpha that other programs do not read: the scale lies in up
STORES_ALPHA = {name for name, dialect in DIALECTS.items() if dialect.alpha in ("tensor", "config")}


def speakers(family: Family) -> list[Dialect]:
    """Return the dialects that can name modules of a family."""
    return [d for d in DIALECTS.values() if any(True for _ in stem_table(d, family))]


def groups(family: Family, one: Dialect, other: Dialect) -> list[Group]:
    """Return a few of every sort of what both dialects can name, whole, in the order of the family."""
    layouts = one.layout(family), other.layout(family)
    found: dict[Group, None] = {}
    for name, module in family.modules():
        if module.layer not in ("linear", "conv"):
            continue
        group: Group = (name,)
        for layout in layouts:
            if name in layout and len(layout[name].modules) > len(group):
                group = layout[name].modules
        found[group] = None
    chosen, counts = list[Group](), dict[tuple[Any, ...], int]()
    for group in found:
        sort = tuple(part for name in group for part in name.split(".") if not part.isdigit())
        if counts.get(sort, 0) < EACH and all(_sites(d, family, group) for d in (one, other)):
            counts[sort] = counts.get(sort, 0) + 1
            chosen.append(group)
    return chosen


def _sites(dialect: Dialect, family: Family, group: Group) -> list[Site]:
    """Return the sites in which a dialect stores a group, nothing if it cannot name all of it."""
    layout, sites = dialect.layout(family), dict[Site, None]()
    for name in group:
        fused = layout.get(name)
        site = Site((name,)) if fused is None else Site(fused.modules, "weight", fused.spans)
        if not set(site.modules) <= set(group) or dialect.key(family, site.modules, "up") is None:
            return []
        sites[site] = None
    return list(sites)


def made(family: Family, dialect: Dialect, chosen: list[Group], dtype: str) -> Adapter:
    """Return an adapter of random factors on a few groups, fused as the dialect stores them."""
    random, deltas = np.random.default_rng(3), {}
    for site in (site for group in chosen for site in _sites(dialect, family, group)):
        modules = [module for name in site.modules if (module := family.find(name)) is not None]
        shape = (sum(m.shape[0] for m in modules), *modules[0].shape[1:])
        up = random.standard_normal((shape[0], RANK, *(1 for _ in shape[2:]))).astype(dtype)
        down = random.standard_normal((RANK, *shape[1:])).astype(dtype)
        alpha = RawTensor(np.float32(ALPHA).tobytes(), "F32", ())
        deltas[site] = LowRank(
            ArrayTensor(up / 8), ArrayTensor(down / 8), shape, Scale(ALPHA, alpha)
        )
    return Adapter(deltas, {}, Info(detection=Detection((family,), "made so")))


def meaning(adapter: Adapter) -> dict[str, Array]:
    """Return ΔW · x by module, of one random matrix x for each width; what is zero is not there.

    Lists by position and fused modules fill the places of modules that an adapter leaves alone.
    """
    found = {}
    for site, delta in adapter.deltas.items():
        up, down = delta.factors("float64")
        result = up @ (down @ _vectors(down.shape[1]))
        for name, (start, stop) in zip(
            site.modules, pairwise(site.bounds(len(result))), strict=True
        ):
            if result[start:stop].any():
                found[name] = result[start:stop]
    return found


def _vectors(width: int) -> Array:
    return np.random.default_rng(width).standard_normal((width, 3))


def worst(found: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """Return the largest relative difference; infinity where modules are missing or more."""
    if found.keys() != expected.keys():
        return float("inf")
    squares = (((found[n] - e) ** 2, e**2) for n, e in expected.items())
    return max(float(np.sqrt(off.sum() / size.sum())) for off, size in squares)


def stored(path: Path) -> dict[str, tuple[str, bytes]]:
    """Return every tensor of a file or folder as it is stored."""
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
    return {
        f"{file.relative_to(path)}:{name}": (tensor.dtype, bytes(tensor.raw()))
        for file in files
        for name, tensor in TensorFile(file).tensors.items()
    }


def pairs(family: Family, every: bool) -> Iterator[tuple[Dialect, Dialect, list[Group]]]:
    """Yield two dialects and what both can name of a denoiser: every pair, or one of each dialect."""
    spoken = speakers(family)
    for place, one in enumerate(spoken):
        for other in (*spoken[place + 1 :], *spoken[:place]):
            chosen = groups(family, one, other)
            if not any(name.startswith(DENOISERS) for group in chosen for name in group):
                continue  # they have none in common, or such of text encoders that tell no family
            yield one, other, chosen
            if not every:
                break


def _place(folder: Path, name: str, dialect: Dialect) -> Path:
    return folder / (name if dialect.folder else f"{name}.safetensors")


@pytest.mark.long_tail(keep=3)
@pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["each dialect", "every pair"]
)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow) if n in WIDER else n if n in USUAL else tail(n)
        for n in FAMILIES
    ],
)
def test_there_and_back_means_the_same(name: str, every: bool, tmp_path: Path) -> None:
    """Same ΔW to one rounding; the same bytes through a dialect that stores alpha."""
    family, tried = FAMILIES[name], 0
    for number, (one, other, chosen) in enumerate(pairs(family, every)):
        dtype = tuple(ROUNDING)[number % 2]
        tried += 1
        places = [_place(tmp_path, f"{number}-{i}", d) for i, d in enumerate((one, other, one))]
        lm.save(made(family, one, chosen, dtype), places[0], dialect=one.name)
        first = lm.load(places[0])
        assert first.info.detection.naming is not None and not first.info.account.unknown
        expected = meaning(first)
        for i in (1, 2):
            to = (one, other, one)[i].name
            how = Convert(adapter=Reference(str(places[i - 1])), to=to, output=str(places[i]))
            convert(how)  # with its own proof
            found = lm.load(places[i])
            assert not found.info.account.unknown
            assert worst(meaning(found), expected) <= i * ROUNDING[dtype], (one.name, to)
        if {one.name, other.name} <= STORES_ALPHA:
            assert stored(places[2]) == stored(places[0]), (one.name, other.name)
    assert tried >= 2


def _exchanged(found: dict[str, Array]) -> dict[str, Array]:
    """Two modules of one shape exchanged, as a wrong order of rows does it."""
    one, other = next((a, b) for a, b in permutations(found, 2) if found[a].shape == found[b].shape)
    return found | {one: found[other], other: found[one]}


def _without_scale(found: dict[str, Array]) -> dict[str, Array]:
    return {name: value * RANK / ALPHA for name, value in found.items()}


def _without_a_module(found: dict[str, Array]) -> dict[str, Array]:
    return dict(list(found.items())[1:])


@pytest.mark.parametrize("wrong", [_exchanged, _without_scale, _without_a_module])
def test_wrong_conversions_would_be_seen(wrong: Any, tmp_path: Path) -> None:
    family, kohya = FAMILIES["flux1"], DIALECTS["kohya"]
    chosen = groups(family, kohya, DIALECTS["diffusers"])
    path = tmp_path / "a.safetensors"
    lm.save(made(family, kohya, chosen, "float32"), path, dialect="kohya")
    found = meaning(lm.load(path))
    assert worst(found, found) == 0
    assert worst(wrong(found), found) > 0.1


def test_every_dialect_is_in_some_pair() -> None:
    spoken = {dialect.name for family in FAMILIES.values() for dialect in speakers(family)}
    assert spoken == set(DIALECTS)
