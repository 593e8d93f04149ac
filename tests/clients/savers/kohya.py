"""sd-scripts saves: its networks, trained on every sort of layer of a family.

Its OFT of Flux.1 cuts layers at rows of the whole network, so no narrow one has it.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path[:0] = [sys.argv[1], str(Path(__file__).parent), str(Path(__file__).parents[1] / "readers")]
from blocks import ENCODERS, ORIGINAL, UNET  # noqa: E402
from stubs import stub  # noqa: E402
from task import Layers, Made, Task, Variants, fill, serve  # noqa: E402

stub("cv2", "imagesize", "library.utils", "library.train_util", "rich")
import_module("library.train_util").precalculate_safetensors_hashes = lambda *_: ("", "")
torch: Any = import_module("torch")

QWEN3 = {r".*\.self_attn": "Qwen3Attention", r".*\.mlp": "Qwen3MLP"}


def trees(task: Task, *, encoders: bool) -> tuple[Layers, Any, list[Any]]:
    """The network and the text encoders as sd-scripts holds them."""
    layers = Layers(task)
    diffusers = task.family in ("sd15", "sd21")
    model = layers.tree(
        task.plain["unet"] if diffusers else task.original,
        UNET if diffusers else ORIGINAL[task.family],
        "unet." if diffusers else "",
    )
    if not encoders:
        return layers, model, [layers.tree({}, {})]
    classes = QWEN3 if task.family == "anima" else ENCODERS
    made = [layers.tree(task.plain[name], classes, f"{name}.") for name in task.encoders()]
    return layers, model, made or [layers.tree({}, {})]


def of(task: Task, module: str, **options: Any) -> Made:
    library: Any = import_module(module)
    bound = module.startswith("networks.oft")
    layers, model, encoders = trees(task, encoders=not bound)
    given: Any = encoders[0] if task.family in ("sd15", "sd21") else encoders
    net = library.create_network(1.0, 2, 0.01 if bound else 1.0, None, given, model, **options)

    def change() -> None:
        net.apply_to(given, model, True, True)
        fill(net, 0.05 if bound else 0.3)
        net.eval()

    return layers, change, lambda path: net.save_weights(str(path), torch.float32, {})


NETWORKS: dict[str, dict[str, dict[str, Any]]] = {
    "flux1": {"lora_flux": {"train_t5xxl": "True", "in_dims": "[2,2,2,2,2]"}},
    "sd3": {"lora_sd3": {"train_t5xxl": "True", "emb_dims": "[2,2,2,2,2,2]"}},
    "lumina2": {"lora_lumina": {}},
    "anima": {"lora_anima": {"train_llm_adapter": "true"}},
}  # fmt: skip
NETWORKS["sd35-medium"] = NETWORKS["sd35-large"] = NETWORKS["sd3"]
NETWORKS["sd15"] = NETWORKS["sd21"] = NETWORKS["sdxl"] = {
    "lora": {"conv_dim": 2, "conv_alpha": 1.0}, "lora_fa": {}, "oft": {"enable_all_linear": True},
}  # fmt: skip


def saver(task: Task) -> Variants:
    return {
        name: partial(of, task, f"networks.{name.partition(',')[0]}", **options)
        for name, options in NETWORKS[task.family].items()
    }


if __name__ == "__main__":
    serve(saver)
