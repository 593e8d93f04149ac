"""Compares rules that lower ranks at equal size: the error of each at the bytes of one rank for all.

    python benchmarks/budgets.py [FILE…] [--rank K] [--data DIR] [--json FILE]

Without files it takes generated adapters: SD2.1's modules at rank 64 with spectra that fall at different
speeds (the data of `resize.py`), and small ones with flat, steep and mixed spectra. Each rule is written
here by its formula, from the singular values alone; loramerge's `--max-size` is run as it is, within the
bytes of the file that `--rank` writes. A rule with a threshold gets the one that fills the same bytes of
factors best without exceeding them:

- `sv_fro` of sd-scripts: the smallest rank with √(Σσ² kept / Σσ²) ≥ f, one f for all modules
- `sv_ratio`: σ ≥ σ₀ / t; `sv_cumulative`: the share of Σσ
- resize_lora: log σ − log of a reference, highest first: the adapter's own σ₀ (`spn_lora`) or ‖ΔW‖
  (`fro_lora`), or ‖W‖ of the base (`fro_ckpt`, its default). Where no base is given, ‖W‖ is that of a
  freshly initialised layer, √(outputs / 3). Its last direction may exceed the size; that is left out.

The error is ‖ΔW − result‖ / ‖ΔW‖ over all modules.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent


class Spectrum(NamedTuple):
    """The singular values of a module, descending, and its rows and columns."""

    sizes: np.ndarray
    rows: int
    columns: int

    @property
    def numbers(self) -> int:
        """Numbers of one direction."""
        return self.rows + self.columns


Spectra = Sequence[Spectrum]
Ranks = list[int]


def numbers(spectra: Spectra, ranks: Ranks) -> int:
    """Returns how many numbers the factors hold."""
    return sum(k * one.numbers for k, one in zip(ranks, spectra, strict=True))


def error(spectra: Spectra, ranks: Ranks) -> float:
    """Returns the relative error over all modules."""
    lost = math.fsum(
        float((one.sizes[k:] ** 2).sum()) for k, one in zip(ranks, spectra, strict=True)
    )
    return math.sqrt(lost / math.fsum(float((one.sizes**2).sum()) for one in spectra))


def uniform(spectra: Spectra, rank: int) -> Ranks:
    """Returns one rank for all."""
    return [min(rank, len(one.sizes)) for one in spectra]


def _share(values: np.ndarray, share: float) -> int:
    """Returns the smallest count whose sum reaches a share of the whole."""
    sums = np.cumsum(values)
    return min(len(values), int(np.searchsorted(sums, share * sums[-1])) + 1)


def sv_fro(spectra: Spectra, share: float) -> Ranks:
    """Returns the smallest ranks with a share of each module's Frobenius norm."""
    return [_share(one.sizes**2, share**2) for one in spectra]


def sv_cumulative(spectra: Spectra, share: float) -> Ranks:
    """Returns the smallest ranks with a share of each module's sum of singular values."""
    return [_share(one.sizes, share) for one in spectra]


def sv_ratio(spectra: Spectra, share: float) -> Ranks:
    """Returns the ranks of σ ≥ (1 − share) σ₀, so that a larger share keeps more."""
    return [max(1, int((one.sizes >= (1 - share) * one.sizes[0]).sum())) for one in spectra]


def by_threshold(rule: Callable[[Spectra, float], Ranks], spectra: Spectra, most: int) -> Ranks:
    """Returns the ranks of a rule at the largest share whose factors hold at most so many numbers."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if numbers(spectra, rule(spectra, middle)) <= most:
            low = middle
        else:
            high = middle
    return rule(spectra, low)


def by_score(reference: Callable[[Spectrum], float], spectra: Spectra, most: int) -> Ranks:
    """Returns the ranks of the highest σ / reference that fit."""
    scored = sorted(
        (-float(size) / reference(one), place)
        for place, one in enumerate(spectra)
        for size in one.sizes
    )
    ranks, used = [0] * len(spectra), 0
    for _, place in scored:
        used += spectra[place].numbers
        if used > most:
            break
        ranks[place] += 1
    return ranks


def fro_ckpt(one: Spectrum) -> float:
    """Returns ‖W‖_F of a freshly initialised layer, uniform in ±1/√inputs."""
    return math.sqrt(one.rows / 3)


RULES: dict[str, Callable[[Spectra, int], Ranks]] = {
    "sv_fro": lambda spectra, most: by_threshold(sv_fro, spectra, most),
    "sv_ratio": lambda spectra, most: by_threshold(sv_ratio, spectra, most),
    "sv_cumulative": lambda spectra, most: by_threshold(sv_cumulative, spectra, most),
    "resize_lora fro_ckpt": lambda spectra, most: by_score(fro_ckpt, spectra, most),
    "resize_lora fro_lora": lambda spectra, most: by_score(
        lambda one: float(np.linalg.norm(one.sizes)), spectra, most
    ),
    "resize_lora spn_lora": lambda spectra, most: by_score(
        lambda one: float(one.sizes[0]), spectra, most
    ),
}


def generated(kind: str, seed: int = 0, modules: int = 40, rank: int = 32) -> list[Spectrum]:
    """Returns seeded spectra: `flat`, `steep`, or `mixed` in slope and in size."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(modules):
        rows, columns = random.choice([320, 640, 1280, 5120], 2)
        power = {"flat": 0.2, "steep": 1.5}.get(kind) or random.uniform(0.1, 2.0)
        loud = 1.0 if kind != "mixed" else 10 ** random.uniform(-1, 0.5)
        sizes = loud * np.arange(1, rank + 1) ** -power * random.uniform(0.9, 1.1, rank)
        found.append(Spectrum(np.sort(sizes)[::-1], int(rows), int(columns)))
    return found


def compared(path: Path, rank: int, folder: Path) -> dict[str, float]:
    """Returns rule → error for a file, loramerge's own by its written files."""
    import loramerge as lm

    adapter = lm.load(path)
    if max(adapter.ranks(), default=0) <= rank:
        raise SystemExit(f"{path}: no module has a rank above {rank}; give a lower --rank")
    even = folder / "even.safetensors"
    size = lm.save(lm.resize(adapter, rank=rank), even, dialect="kohya", force=True)
    small = lm.resize(adapter, max_size=size, to="kohya")
    assert lm.save(small, folder / "best.safetensors", dialect="kohya", force=True) <= size
    found, best = [], []
    for site, delta in adapter.deltas.items():
        if delta.rank is None or len(delta.shape) < 2:
            continue
        up, down = delta.factors("float64")
        left, right = (np.linalg.qr(side, mode="r") for side in (up, down.T))
        sizes = np.linalg.svd(left @ right.T, compute_uv=False)
        found.append(Spectrum(sizes, up.shape[0], down.shape[1]))
        best.append(small.deltas[site].rank or 0 if site in small.deltas else 0)
    return table(found, rank, best)


def table(spectra: Spectra, rank: int, best: Ranks) -> dict[str, float]:
    """Returns rule → error at the numbers of one rank."""
    even = uniform(spectra, rank)
    most = numbers(spectra, even)
    found = {"loramerge --max-size": error(spectra, best), "one rank": error(spectra, even)}
    return found | {name: error(spectra, rule(spectra, most)) for name, rule in RULES.items()}


def budget(spectra: Spectra, rank: int) -> Ranks:
    """Returns loramerge's ranks for the numbers of one rank, header bytes left out."""
    from loramerge.algebra.allocation import Candidate, ranks_for_size

    candidates = [Candidate([float(s) ** 2 for s in one.sizes], one.numbers, 0) for one in spectra]
    return ranks_for_size(
        candidates,
        numbers(spectra, uniform(spectra, rank)),
        lambda ranks: numbers(spectra, [*ranks]),
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    generated_file = given.data / "sd21_r64.safetensors"
    files = given.files or [generated_file] * generated_file.exists()
    with tempfile.TemporaryDirectory() as folder:
        for path in files:
            found[path.name] = compared(path, given.rank, Path(folder))
    for kind in () if given.files else ("flat", "steep", "mixed"):
        spectra = generated(kind)
        found[f"generated, {kind}"] = table(spectra, given.rank, budget(spectra, given.rank))
    for line in lines(found, given.rank):
        print(line)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


def lines(found: dict[str, dict[str, float]], rank: int) -> Iterator[str]:
    """Yields a table in Markdown, with the smallest error of each line in bold."""
    names = list(next(iter(found.values())))
    yield f"| relative error at the size of rank {rank} | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for name, errors in found.items():
        least = min(errors.values())
        cells = (f"**{e:.4f}**" if e == least else f"{e:.4f}" for e in errors.values())
        yield f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
