"""Measure how the time and memory of each verb grow with the number of keys: 10² to 10⁵.

Adapters of tiny modules (4 × 16 and 16 × 4, float32), so that what is measured is the work for each key.
`python benchmarks/growth.py --most 4` goes to 10⁴. Times are the processor's, which other programs
change little. The last column is the exponent against a tenth of the keys: 1 is linear, 2 is quadratic;
starting Python is taken off.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

VERBS = {
    "inspect": "inspect a.safetensors",
    "inspect --deep": "inspect --deep a.safetensors",
    "inspect, no key known": "inspect strange.safetensors",
    "diff": "diff a.safetensors b.safetensors",
    "mix": "mix a.safetensors:0.5 b.safetensors:0.5 -o out.safetensors --force",
    "resize --rank": "resize --rank 2 a.safetensors -o out.safetensors --force",
    "resize --max-size": "resize --max-size 60% a.safetensors -o out.safetensors --force",
    "convert": "convert a.safetensors --dtype float16 -o out.safetensors --force",
    "meta": "meta a.safetensors --set x=y -o out.safetensors --force",
    "bake": "bake --base base --lora peft -o baked --force",
    "merge": "merge base:0.5 tuned:0.5 -o merged --force",
    "extract": "extract --base base --tuned tuned --rank 2 -o extracted --force",
    "plan": "plan recipe.yaml",
    "run": "run recipe.yaml --fresh --force",
}
RECIPE = {
    "version": 1,
    "inputs": {"a": "a.safetensors", "b": "b.safetensors"},
    "steps": {
        "both": {"mix": {"adapters": ["a:0.5", "b"]}},
        "small": {"resize": {"adapter": "both", "rank": 2}, "save": "small.safetensors"},
    },
}


def write(path: Path, names: list[str], shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    """Write a file of tensors by hand: whatever it is compared with must not have written it."""
    random = np.random.default_rng(seed)
    entries, parts, place = {}, [], 0
    for name in names:
        shape = shapes[name.rpartition(".lora_")[2] if ".lora_" in name else "alpha"]
        data = (
            random.standard_normal(shape).astype("<f4").tobytes() if shape else struct.pack("<f", 4)
        )
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [place, place + len(data)]}
        parts.append(data)
        place += len(data)
    raw = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"".join(parts))


def make(folder: Path, keys: int) -> None:
    """Write adapters of a number of keys, two models for one, and as many keys that mean nothing."""
    stems = [f"lora_unet_blocks_{i}_attn" for i in range(keys // 3)]
    roles = ("lora_down.weight", "lora_up.weight", "alpha")
    names = [f"{stem}.{role}" for stem in stems for role in roles]
    shapes = {"down.weight": (4, 16), "up.weight": (16, 4), "alpha": ()}
    write(folder / "a.safetensors", names, shapes, 1)
    write(folder / "b.safetensors", names, shapes, 2)
    layers = [f"model.layers.{i}.mlp.up_proj" for i in range(keys // 3)]
    for seed, name in enumerate(("base", "tuned"), 3):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "config.json").write_text('{"model_type": "llama"}')
        path = folder / name / "model.safetensors"
        write(path, [f"{layer}.weight" for layer in layers], {"alpha": (16, 16)}, seed)
    (folder / "peft").mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["up_proj"]}
    (folder / "peft" / "adapter_config.json").write_text(json.dumps(config))
    halves = [f"base_model.model.{layer}.lora_{half}.weight" for layer in layers for half in "AB"]
    factors = {"A.weight": (4, 16), "B.weight": (16, 4)}
    write(folder / "peft" / "adapter_model.safetensors", halves, factors, 5)
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    write(folder / "strange.safetensors", [f"no.such.key_{i}" for i in range(keys)], shapes, 3)


def run(python: str, command: str, folder: Path) -> tuple[float, int]:
    """Return the processor's seconds and the peak bytes of a command."""
    process = subprocess.Popen(
        [python, "-m", "loramerge", *command.split()],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command}: {said.decode()}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=5, help="power of ten of the most keys")
    parser.add_argument("-n", type=int, default=1, help="runs; the fastest counts")
    parser.add_argument("--only", nargs="+", choices=VERBS, default=list(VERBS), metavar="VERB")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures: dict[str, dict[int, tuple[float, int]]] = {verb: {} for verb in VERBS}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        idle = min(run(options.python, "--version", folder)[0] for _ in range(3))
        print(f"starting takes {idle:.2f} s")
        for power in range(2, options.most + 1):
            make(folder, 10**power)
            for verb in options.only:
                command = VERBS[verb]
                seconds, memory = min(
                    run(options.python, command, folder) for _ in range(options.n)
                )
                before = figures[verb].get(10 ** (power - 1))
                grows = ""
                if before:
                    times = max(seconds - idle, 0.01) / max(before[0] - idle, 0.01)
                    grows = f"keys^{math.log10(times):.1f}"
                print(
                    f"{verb:24}{10**power:>8} keys {seconds:8.2f} s {memory / 1e6:7.0f} MB  {grows}",
                    flush=True,
                )
                figures[verb][10**power] = seconds, memory
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
