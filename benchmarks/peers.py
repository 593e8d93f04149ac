"""Programs that loramerge is compared with, each a process with one thread of torch.

    python benchmarks/peers.py elias DIR IN OUT RANK     elias-gaeros/resize_lora
    python benchmarks/peers.py kohya DIR IN OUT RANK     kohya-ss/sd-scripts
    python benchmarks/peers.py svd IN OUT.json           full-matrix SVD of each shape
    python benchmarks/peers.py read-all BASE LORA OUT    load everything, add, save everything

DIR is a checkout of the peer; its code is run from there and none of it is here.
"""

from __future__ import annotations

import json
import runpy
import sys
import time
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path


def elias(root: str, source: str, target: str, rank: str) -> None:
    """Resizes with loralib's reader, decomposition and writer.

    Its command line has no fixed rank and wants a checkpoint; this keeps the `rank` largest
    singular values of each layer. The hashes that its command writes are left out, which is in
    its favour.
    """
    sys.path.insert(0, root)
    import safetensors.torch
    import torch
    from loralib import DecomposedLoRA, LoRADict

    torch.set_num_threads(1)
    lora = LoRADict(source, device="cpu", dtype=torch.float32)
    result = {}
    for key in sorted(lora.keys):
        if key.endswith(".alpha"):
            layer = DecomposedLoRA(lora, key.removesuffix(".alpha"))
            mask = torch.arange(layer.dim) < int(rank)
            result.update(layer.statedict(mask=mask, dtype=torch.float16))
    safetensors.torch.save_file(result, target, metadata=lora.metadata())


def kohya(root: str, source: str, target: str, rank: str) -> None:
    """Runs networks/resize_lora.py as it is.

    Its `library` package, which imports the whole trainer for three small functions, is replaced
    by those functions; without import time and hashes, which is in its favour.
    """
    import torch

    torch.set_num_threads(1)
    stand_ins: dict[str, dict[str, object]] = {
        "train_util": {"precalculate_safetensors_hashes": lambda tensors, metadata: ("", "")},
        "model_util": {"is_safetensors": lambda name: name.endswith(".safetensors")},
        "utils": {"setup_logging": lambda *args, **kwargs: None},
    }
    library = sys.modules["library"] = types.ModuleType("library")
    for name, functions in stand_ins.items():
        module = sys.modules[f"library.{name}"] = types.ModuleType(f"library.{name}")
        module.__dict__.update(functions)
        setattr(library, name, module)
    script = str(Path(root) / "networks" / "resize_lora.py")
    sys.argv = [script, "--model", source, "--save_to", target, "--new_rank", rank]
    sys.argv += ["--save_precision", "fp16", "--device", "cpu"]
    runpy.run_path(script, run_name="__main__")


def svd(source: str, target: str) -> None:
    """Times one full-matrix SVD, float32, for each distinct shape and adds up by their counts.

    Shapes whose SVD is short are timed several times and the fastest counts.
    """
    import torch
    from tensors import Tensors

    torch.set_num_threads(1)
    with Tensors(Path(source)) as file:
        first: dict[tuple[int, int], str] = {}
        counts: Counter[tuple[int, int]] = Counter()
        for stem in file.stems():
            out = file.entries[f"{stem}.lora_up.weight"][1][0]
            shape = (out, file.entries[f"{stem}.lora_down.weight"][1][1])
            first.setdefault(shape, stem)
            counts[shape] += 1
        seconds = {}
        for shape, stem in sorted(first.items()):
            up, down = (torch.from_numpy(factor).float() for factor in file.factors(stem))
            delta, best, spent = up @ down, float("inf"), 0.0
            while spent < 0.5:
                start = time.perf_counter()
                torch.linalg.svd(delta, full_matrices=True)
                best = min(best, time.perf_counter() - start)
                spent += time.perf_counter() - start
            seconds[shape] = best
    total = sum(seconds[shape] * count for shape, count in counts.items())
    listed = [
        {"shape": shape, "count": count, "seconds": seconds[shape]}
        for shape, count in counts.items()
    ]
    Path(target).write_text(json.dumps({"seconds": total, "shapes": listed}), encoding="utf-8")


def read_all(base: str, lora: str, target: str) -> None:
    """Bakes as most scripts do: the whole checkpoint in memory, float32 sums, one save."""
    import torch
    from safetensors.torch import load_file, save_file
    from shapes import SD21, UNET_PREFIX, adapted, kohya_name

    torch.set_num_threads(1)
    weights, factors = load_file(base), load_file(lora)
    for name, _ in adapted(SD21):
        stem, key = kohya_name(name, sgm=False), f"{UNET_PREFIX}{name}.weight"
        down = factors[f"{stem}.lora_down.weight"].float()
        scale = float(factors[f"{stem}.alpha"]) / len(down)
        delta = scale * (factors[f"{stem}.lora_up.weight"].float() @ down)
        weights[key] = (weights[key].float() + delta).to(weights[key].dtype)
    save_file(weights, target)


PEERS: dict[str, Callable[..., None]] = {
    "elias": elias,
    "kohya": kohya,
    "svd": svd,
    "read-all": read_all,
}

if __name__ == "__main__":
    PEERS[sys.argv[1]](*sys.argv[2:])
