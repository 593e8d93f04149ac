"""Measures the index of the library: scanning folders, and finding what resembles a file.

    python benchmarks/library.py [--files 5000] [--kept 1000] [--sketches 100000] [--originals 100]

`--files` rank-16 adapters for SD1.5 (160 modules, 12 MB each) are written in portions and indexed by
`loramerge library scan`. The first `--kept` stay on the disk; of the others the contents are freed once
they are indexed (the files keep size, time and inode, so they are unchanged to the next scan, which
reads none). Among the kept ones are an adapter's copies: in other factors, resized by one rank, times
0.7, in another dialect and float32. Then comes an index of `--sketches` random sketches, in which the
copies of `--originals` adapters are looked for.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from measure import Check, Sample, environment, options, report, run
from shapes import Unet, adapted, kohya_name

SD15 = Unet((320, 640, 1280, 1280), (1, 1, 1, 0), 1, 768)
RANK, ALPHA = 16, 8.0
PORTION = 250  # files that are written and indexed at once
COPIES = {
    "anew": "is the same adapter as",
    "small": "resized to rank",
    "quiet": "times 0.7",
    "converted": "converted (kohya float16, diffusers float32)",
}
Parts = dict[str, np.ndarray]


def modules() -> dict[str, tuple[int, ...]]:
    """Returns kohya's names and the shapes of the layers inside the transformers."""
    found = ((name, shape) for name, shape in adapted(SD15) if "transformer_blocks" in name)
    return {kohya_name(name, False): shape for name, shape in found}


SHAPES = modules()
POOL = (np.random.default_rng(0).standard_normal(1 << 24) * 0.05).astype(np.float16)


def generated(seed: int) -> Parts:
    """Returns the tensors of an adapter: pieces of one pool of normal numbers, from random places."""
    random = np.random.default_rng(seed)
    found: Parts = {}
    for stem, (out, into) in sorted(SHAPES.items()):
        found[f"{stem}.alpha"] = np.array(ALPHA, np.float16)
        for role, shape in (("lora_down", (RANK, into)), ("lora_up", (out, RANK))):
            first = int(random.integers(0, POOL.size - out * into // RANK))
            found[f"{stem}.{role}.weight"] = POOL[first : first + np.prod(shape)].reshape(shape)
    return found


def write(path: Path, parts: Parts, words: str) -> None:
    """Writes a safetensors file."""
    tags = {f"10_{words}": {"portrait": 10, words.split()[-1]: 3}}
    header: dict[str, object] = {
        "__metadata__": {"ss_output_name": words, "ss_tag_frequency": json.dumps(tags)}
    }
    types = {"float16": "F16", "float32": "F32"}
    end = 0
    for name, part in parts.items():
        start, end = end, end + part.nbytes
        header[name] = {
            "dtype": types[str(part.dtype)],
            "shape": part.shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in parts.values():
            file.write(np.ascontiguousarray(part).tobytes())


def refactored(parts: Parts) -> Parts:
    """Returns the same changes by other factors, in float32: up G⁻¹ and G down."""
    random = np.random.default_rng(1)
    found = dict(parts)
    for stem in SHAPES:
        gauge = np.linalg.qr(random.standard_normal((RANK, RANK)))[0] * np.logspace(0, 1, RANK)
        up, down = (parts[f"{stem}.lora_{role}.weight"].astype(float) for role in ("up", "down"))
        found[f"{stem}.lora_up.weight"] = (up @ np.linalg.inv(gauge)).astype(np.float32)
        found[f"{stem}.lora_down.weight"] = (gauge @ down).astype(np.float32)
    return found


def free(path: Path) -> None:
    """Frees the contents of a file, which looks unchanged from outside."""
    status = path.stat()
    os.truncate(path, 0)
    os.truncate(path, status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def command(python: str, *words: str) -> list[str]:
    return [python, "-m", "loramerge", "library", *words]


def index(folder: Path, count: int, kept: int, python: str, env: dict[str, str]) -> Sample:
    """Writes and indexes the adapters; returns what all scans took."""
    first = folder / "style0.safetensors"
    taken: list[Sample] = []
    for start in range(0, count, PORTION):
        numbers = range(start, min(start + PORTION, count))
        for n in numbers:
            write(folder / f"style{n}.safetensors", generated(n), f"style {n}")
        if start == 0:
            write(folder / "anew.safetensors", refactored(generated(0)), "anew 0")
            tool = [python, "-m", "loramerge"]
            for name, words in (
                ("small", ["resize", "--rank", str(RANK - 1), str(first)]),
                ("quiet", ["mix", f"{first}:0.7"]),
                ("converted", ["convert", str(first), "--to", "diffusers", "--dtype", "float32"]),
            ):
                run([*tool, *words, "-o", str(folder / f"{name}.safetensors"), "-q"], env)
        taken.append(run(command(python, "scan", str(folder), "-q"), env))
        for n in numbers:
            if n >= kept:
                free(folder / f"style{n}.safetensors")
        print(
            f"{numbers.stop} files: {taken[-1].wall / len(numbers) * 1e3:.0f} ms each", flush=True
        )
    cpu = [sample.cpu or 0.0 for sample in taken]
    peaks = [sample.peak or 0.0 for sample in taken]
    return Sample(sum(sample.wall for sample in taken), sum(cpu), max(peaks))


def words_of(python: str, env: dict[str, str], *words: str) -> object:
    import subprocess

    done = subprocess.run(
        command(python, *words, "--json"), env=env, capture_output=True, check=True
    )
    return json.loads(done.stdout)


def copies_found(folder: Path, python: str, env: dict[str, str]) -> tuple[int, int]:
    """Returns how many copies of the first adapter are found with the right words, and how many of
    the others are taken for copies."""
    found = words_of(python, env, "similar", str(folder / "style0.safetensors"))
    told = {Path(one["path"]).stem: one["words"] for one in found if one["copy"]}
    right = sum(words in told.get(name, "") for name, words in COPIES.items())
    return right, len(set(told) - set(COPIES))


def false_pairs(python: str, env: dict[str, str]) -> int:
    """Returns how many pairs of the index are called copies and are not; freed files are left out."""
    pairs = words_of(python, env, "duplicates")["pairs"]
    known = {*COPIES, "style0"}
    return sum(not {Path(pair["a"]).stem, Path(pair["b"]).stem} <= known for pair in pairs)


def recall(folder: Path, count: int, originals: int) -> tuple[dict[str, float], float]:
    """Returns the share of copies whose original is the nearest of `count` sketches, and the seconds
    that the search took in this process."""
    from loramerge.adapter.load import load
    from loramerge.algebra.ranks import RankRule
    from loramerge.algebra.resize import resize
    from loramerge.library.contents import unit_sketch
    from loramerge.library.index import Location, open_index
    from loramerge.library.resembling import nearest
    from loramerge.library.sketches import WIDTH, Sketches

    random = np.random.default_rng(2)
    wanted: dict[str, list[tuple[int, np.ndarray]]] = {}
    rows: dict[int, np.ndarray] = {}
    scratch = folder / "scratch.safetensors"
    for n in range(originals):
        parts = generated(10_000 + n)
        write(scratch, parts, "original")
        adapter = load(scratch)
        rows[count - originals + n + 1] = unit_sketch(adapter)[0]
        copies = {"rescaled": 0.7 * adapter, "refactored": None}
        for rank in (15, 8, 2):
            copies[f"resized to {rank}"] = resize(adapter, RankRule(rank=rank), threads=1)[0]
        write(other := folder / "other.safetensors", refactored(parts), "refactored")
        copies["refactored"] = load(other)
        for name, copy in copies.items():
            wanted.setdefault(name, []).append((count - originals + n + 1, unit_sketch(copy)[0]))
    with open_index() as opened:
        sketches = Sketches(opened.folder)
        with opened.writing():
            for start in range(0, count, 5000):
                block = random.standard_normal((5000, WIDTH), dtype=np.float32)
                block /= np.linalg.norm(block, axis=1)[:, None]
                numbers = range(start + 1, min(start + 5000, count) + 1)
                sketches.write({i: rows.get(i, block[i - start - 1]) for i in numbers})
                for i in numbers:
                    number = opened.put_content(f"{i:064}", f"{i:064}", {}, sketched=True)
                    place = f"/none/{i}.safetensors"
                    opened.put_place(Location(place, "/none", "", number))
        start_time = time.perf_counter()
        nearest(opened, rows[count], 20)
        seconds = time.perf_counter() - start_time
        assert nearest(opened, rows[count], 1)[0][0] == count
        shares = {
            name: float(np.mean(first_of(sketches.rows(), those) == [i for i, _ in those]))
            for name, those in wanted.items()
        }
    return shares, seconds


def first_of(rows: np.ndarray, those: list[tuple[int, np.ndarray]]) -> np.ndarray:
    """Returns the number of the nearest row for each of several sketches, as `nearest` finds it."""
    queries = np.stack([row for _, row in those]).T
    best, found = np.zeros(len(those)), np.zeros(len(those), int)
    for start in range(0, len(rows), 4096):
        products = np.abs(rows[start : start + 4096] @ queries)
        places = products.argmax(0)
        values = products[places, np.arange(len(those))]
        found = np.where(values > best, start + places, found)
        best = np.maximum(values, best)
    return found


def checks_of_recall(shares: dict[str, float]) -> Iterator[Check]:
    for name, share in shares.items():
        yield Check(f"recall of copies: {name}", share, 0.99, at_least=True)


def main() -> None:
    parser = options("The index of the library.", 5)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--kept", type=int, default=1000)
    parser.add_argument("--sketches", type=int, default=100_000)
    parser.add_argument("--originals", type=int, default=100)
    given = parser.parse_args()
    root = given.data.resolve() / "library"
    shutil.rmtree(root, ignore_errors=True)
    folder, home = root / "loras", root / "home"
    folder.mkdir(parents=True)
    env = environment(home)
    samples: dict[str, list[Sample]] = {}
    try:
        samples[f"scan of {given.files} new files"] = [
            index(folder, given.files, given.kept, given.python, env)
        ]
        rescan = command(given.python, "scan", str(folder), "-q")
        similar = command(given.python, "similar", str(folder / "style0.safetensors"), "-q")
        search = command(given.python, "search", "style", "77")
        cases = {"scan, nothing changed": rescan, "similar": similar, "search": search}
        for name, words in cases.items():
            samples[name] = [run(words, env) for _ in range(given.rounds)]
        right, wrong = copies_found(folder, given.python, env)
        pairs = false_pairs(given.python, env)
        shutil.rmtree(home)
        os.environ["LORAMERGE_HOME"] = str(home)
        shares, seconds = recall(folder, given.sketches, given.originals)
        samples[f"similar, of {given.sketches}"] = [run(similar, env) for _ in range(given.rounds)]
        median = {
            name: sorted(s.wall for s in those)[len(those) // 2] for name, those in samples.items()
        }
        checks = [
            Check("scan, nothing changed, s", median["scan, nothing changed"], 2.0),
            Check("similar, s", median["similar"], 5.0),
            Check("copies found with the right words", right, len(COPIES), at_least=True),
            Check("other files called copies", wrong, 0),
            Check("false pairs of all", pairs, 0),
            Check(f"nearest of {given.sketches} in memory, s", seconds, 1.0),
            *checks_of_recall(shares),
        ]
        report("The index of the library", samples, checks, given.json)
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
