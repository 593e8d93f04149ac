"""musubi-tuner saves: its networks, and what its `convert_lora` makes of their files."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path[:0] = [
    f"{sys.argv[1]}/src",
    str(Path(__file__).parent),
    str(Path(__file__).parents[1] / "readers"),
]
from blocks import ORIGINAL  # noqa: E402
from task import Layers, Made, Task, Variants, fill, serve  # noqa: E402

torch: Any = import_module("torch")
NETWORKS = {
    "wan": "lora_wan", "hunyuan-video": "lora", "qwen-image": "lora_qwen_image",
    "flux1": "lora_flux", "flux2-dev": "lora_flux_2", "flux2-klein-4b": "lora_flux_2",
    "flux2-klein-9b": "lora_flux_2", "z-image": "lora_zimage",
    "hidream-o1": "lora_hidream_o1",
}  # fmt: skip


def of(task: Task, name: str, converted: bool) -> Made:
    library: Any = import_module(f"musubi_tuner.networks.{name}")
    layers = Layers(task)
    model = layers.tree(task.original, ORIGINAL[task.family])
    model.hidream_o1_task = "i2i"  # which HiDream's network asks for
    net = library.create_arch_network(1.0, 2, 1.0, None, [], model)

    def change() -> None:
        net.apply_to([], model, False, True)
        fill(net)
        net.eval()

    def write(path: Path) -> None:
        net.save_weights(str(path), torch.float32, {})
        if converted:
            convert: Any = import_module("musubi_tuner.convert_lora")
            convert.convert(str(path), str(path), "other", None)

    return layers, change, write


def saver(task: Task) -> Variants:
    networks = {"lora": NETWORKS[task.family], "loha": "loha", "lokr": "lokr"}
    # the others do not know it; `convert_lora` writes dots for the underscores in its names, which
    # nothing reads (`tests/families/test_repositories.py`)
    if task.family == "hidream-o1":
        return {"lora": partial(of, task, networks["lora"], False)}
    return {
        f"{kind}{', converted' if converted else ''}": partial(of, task, name, converted)
        for kind, name in networks.items()
        for converted in (False, True)
    }


if __name__ == "__main__":
    serve(saver)
