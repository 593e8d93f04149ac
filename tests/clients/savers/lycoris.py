"""LyCORIS saves: its algorithms in the networks of sd-scripts.

Its `full` takes the weights of layers away, its `boft` has no blocks for narrow ones, its preset for
(IA)³ finds no layer by its whole name: `tests/peers` compares what these merge.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "readers")]
from blocks import ENCODERS, ORIGINAL, UNET  # noqa: E402
from task import Layers, Made, Task, Variants, fill, serve  # noqa: E402

# this file has the name of the package
sys.path[:0] = [sys.argv[1]]
sys.modules.pop("lycoris", None)
torch: Any = import_module("torch")
KOHYA: Any = import_module("lycoris.kohya")

KINDS: dict[str, dict[str, Any]] = {
    "locon": {"algo": "locon"},
    "locon, tucker": {"algo": "locon", "use_tucker": "True"},
    "locon, rs": {"algo": "locon", "rs_lora": "True"},
    "locon, scalar": {"algo": "locon", "use_scalar": "True"},
    "loha": {"algo": "loha"},
    "loha, tucker": {"algo": "loha", "use_tucker": "True"},
    "lokr": {"algo": "lokr", "factor": 4},
    "lokr, both": {"algo": "lokr", "factor": 4, "decompose_both": True},
    "lokr, full": {"algo": "lokr", "full_matrix": "True"},
    "lokr, tucker": {"algo": "lokr", "factor": 4, "use_tucker": "True"},
    "dora": {"algo": "locon", "dora_wd": "True"},
    "dora, in": {"algo": "locon", "dora_wd": "True", "wd_on_output": "False"},
    "doha": {"algo": "loha", "dora_wd": "True"},
    "dokr": {"algo": "lokr", "factor": 4, "dora_wd": "True"},
    "diag-oft": {"algo": "diag-oft"},
    "diag-oft, constraint": {"algo": "diag-oft", "constraint": "0.01", "rescaled": "True"},
    "glora": {"algo": "glora"},
}
UNETS = ("sd15", "sdxl")


def of(task: Task, options: dict[str, Any]) -> Made:
    layers = Layers(task)
    diffusers = task.family == "sd15"
    model = layers.tree(
        task.plain["unet"] if diffusers else task.original,
        UNET if diffusers else ORIGINAL[task.family],
        "unet." if diffusers else "",
    )
    encoders: Any = [
        layers.tree(task.plain[name], ENCODERS, f"{name}.") for name in task.encoders()
    ]
    given = encoders[0] if diffusers else encoders
    net = KOHYA.create_network(1.0, 2, 1.0, None, given, model, **options)

    def change() -> None:
        net.apply_to(given, model, True, True)
        fill(net, 0.05 if "oft" in options["algo"] else 0.3)
        net.eval()

    return layers, change, lambda path: net.save_weights(str(path), torch.float32, {})


def saver(task: Task) -> Variants:
    kinds = KINDS if task.family in UNETS else {k: KINDS[k] for k in ("locon", "loha", "lokr")}
    return {name: partial(of, task, options) for name, options in kinds.items()}


if __name__ == "__main__":
    serve(saver)
