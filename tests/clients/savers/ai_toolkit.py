"""ai-toolkit saves: its networks on diffusers' models, LoRA, DoRA and LoKr."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path[:0] = [sys.argv[1], str(Path(__file__).parent), str(Path(__file__).parents[1] / "readers")]
from blocks import ENCODERS  # noqa: E402
from stubs import stub  # noqa: E402
from task import Layers, Made, Task, Variants, fill, serve  # noqa: E402

stub(
    "optimum", "cv2", "albumentations", "torchaudio", "prodigyopt", "oyaml", "av", "soundfile",
    "mutagen", "librosa", "torchao",
)  # fmt: skip
torch: Any = import_module("torch")
SPECIAL: Any = import_module("toolkit.lora_special")
CONFIG: Any = import_module("toolkit.config_modules").NetworkConfig

# family → class of its network, and what the program is told of it
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd15": ("UNet2DConditionModel", {}),
    "sdxl": ("UNet2DConditionModel", {"is_sdxl": True}),
    "flux1": ("FluxTransformer2DModel", {"is_flux": True}),
    "sd3": ("SD3Transformer2DModel", {"is_v3": True}),
    "lumina2": ("Lumina2Transformer2DModel", {"is_lumina2": True}),
    "qwen-image": ("QwenImageTransformer2DModel", {"is_transformer": True}),
    "z-image": ("ZImageTransformer2DModel", {"is_transformer": True}),
}
KINDS = {"lora": {}, "dora": {}, "lokr": {"lokr_full_rank": True, "lokr_factor": 4},
         "lokr, factored": {"lokr_full_rank": False, "lokr_factor": 4}}  # fmt: skip


def of(task: Task, kind: str) -> Made:
    layers = Layers(task)
    name, told = MODELS[task.family]
    network = layers.tree(task.plain[task.network], {}, f"{task.network}.")
    network.__class__ = type(name, (torch.nn.Module,), {})
    unet = task.network == "unet"
    encoders = [
        layers.tree(task.plain[component], ENCODERS, f"{component}.")
        for component in task.encoders()
        if unet
    ]
    what = kind.partition(",")[0]
    config = CONFIG(type=what, linear=2, linear_alpha=1.0, conv=2, conv_alpha=1.0, **KINDS[kind])
    net = SPECIAL.LoRASpecialNetwork(
        encoders or [layers.tree({}, {})], network,
        lora_dim=config.linear, alpha=config.linear_alpha,
        conv_lora_dim=config.conv, conv_alpha=config.conv_alpha,
        train_text_encoder=unet, network_type=what, network_config=config,
        target_lin_modules=[name], target_conv_modules=[name], **told,
    )  # fmt: skip

    def change() -> None:
        net.apply_to(encoders, network, unet, True)
        fill(net)
        net.eval()
        net.is_active = True
        net._update_torch_multiplier()

    def write(path: Path) -> None:
        net.save_weights(str(path), torch.float32, {})

    return layers, change, write


def saver(task: Task) -> Variants:
    return {kind: partial(of, task, kind) for kind in KINDS}


if __name__ == "__main__":
    serve(saver)
