"""OneTrainer saves: its networks on diffusers' models, in each of its formats.

Needs the package `parse`, which OneTrainer imports.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path[:0] = [sys.argv[1], str(Path(__file__).parent), str(Path(__file__).parents[1] / "readers")]
from stubs import stub  # noqa: E402
from task import Layers, Made, Task, Variants, fill, serve  # noqa: E402

stub(
    "mgds", "bitsandbytes", "cv2", "scalene", "deepdiff", "open_clip", "tensorboard", "psutil",
    "requests", "gguf",
)  # fmt: skip
torch: Any = import_module("torch")
CONFIG: Any = import_module("modules.util.config.TrainConfig").TrainConfig
FORMATS: Any = import_module("modules.util.enum.ModelFormat").ModelFormat
TYPES: Any = import_module("modules.util.enum.ModelType")
WRAPPER: Any = import_module("modules.module.LoRAModule").LoRAModuleWrapper

# family → class of the model there, its type, and folder of its saver
MODELS = {
    "sd15": ("StableDiffusion", "STABLE_DIFFUSION_15", "stableDiffusion"),
    "sdxl": ("StableDiffusionXL", "STABLE_DIFFUSION_XL_10_BASE", "stableDiffusionXL"),
    "sd3": ("StableDiffusion3", "STABLE_DIFFUSION_3", "stableDiffusion3"),
    "sd35-medium": ("StableDiffusion3", "STABLE_DIFFUSION_35", "stableDiffusion3"),
    "flux1": ("Flux", "FLUX_DEV_1", "flux"),
    "flux2-klein-4b": ("Flux2", "FLUX_2", "flux2"),
    "qwen-image": ("Qwen", "QWEN", "qwen"),
    "z-image": ("ZImage", "Z_IMAGE", "zImage"),
    "hunyuan-video": ("HunyuanVideo", "HUNYUAN_VIDEO", "hunyuanVideo"),
    "anima": ("Anima", "ANIMA", "anima"),
}
NARROWED = 256  # channels, from which on layers are narrow
ALL = ("DIFFUSERS", "KOHYA", "ORIGINAL", "COMFY", "LEGACY")
# name of a kind → its settings there, the formats of its files
KINDS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "lora": ({"peft_type": "LORA"}, ALL),
    "dora": ({"peft_type": "LORA", "lora_decompose": True}, ("DIFFUSERS", "COMFY")),
    "loha": ({"peft_type": "LOHA"}, ("KOHYA", "COMFY")),
    "lokr": ({"peft_type": "LOKR", "lokr_dim": 2}, ("KOHYA", "COMFY")),
    "oft, scaled": ({"peft_type": "OFT_2", "oft_scaled": True}, ("KOHYA",)),
    "oft": ({"peft_type": "OFT_2"}, ("KOHYA",)),
}


def config_of(options: dict[str, Any]) -> Any:
    config = CONFIG.default_values()
    config.lora_rank, config.lora_alpha = 2, 1.0
    config.train_device = "cpu"
    for name, value in options.items():
        setattr(config, name, TYPES.PeftType[value] if name == "peft_type" else value)
    return config


def of(task: Task, options: dict[str, Any], form: str) -> Made:
    title, kind, folder = MODELS[task.family]
    model = getattr(import_module(f"modules.model.{title}Model"), f"{title}Model")(
        TYPES.ModelType[kind]
    )
    layers = Layers(task)
    config = config_of(options)
    target = FORMATS[f"{form}_LORA"]
    model.train_config = config
    wrappers = []
    for component in task.plain:
        if component.startswith("text_encoder") and (form == "ORIGINAL" or "dora" in options):
            continue
        name = _attribute(model, component)
        if not hasattr(model, f"{name}_lora"):
            continue
        shapes = task.plain[component]
        if options["peft_type"] == "OFT_2":  # its triangles do not tell kernels of narrow layers
            shapes = {n: s for n, s in shapes.items() if len(s) == 2 or max(s[1:]) < NARROWED}
        tree = layers.tree(shapes, {}, f"{component}.")
        _count_blocks(tree)
        setattr(model, name, tree)
        groups = model.fusion_groups() if component == task.network else None
        wrapper = WRAPPER(
            tree,
            component,
            config,
            [],
            fusion_spec=groups,
            fuse=target.needs_qkv_fusion() if groups else None,
        )
        setattr(model, f"{name}_lora", wrapper)
        wrappers.append(wrapper)
    saver = getattr(
        import_module(f"modules.modelSaver.{folder}.{title}LoRASaver"), f"{title}LoRASaver"
    )()
    saver._create_safetensors_header = lambda *_: {}

    def change() -> None:
        for wrapper in wrappers:
            wrapper.hook_to_module()
            for held in wrapper.lora_modules.values():
                module = getattr(held, "module", held)
                module.eval()
                fill(module, 0.02 if options["peft_type"] == "OFT_2" else 0.3)

    return layers, change, lambda path: saver._save(model, target, str(path), torch.float32)


def _count_blocks(tree: Any) -> None:
    """Let lists of blocks be as long as in the whole network."""
    for held in tree.children():
        if held._modules and all(name.isdigit() for name in held._modules):
            length = 1 + max(map(int, held._modules))
            held.__class__ = type("Blocks", (torch.nn.Module,), {"__len__": lambda _, n=length: n})


def _attribute(model: Any, component: str) -> str:
    """Return a model's name of a component: the first of several text encoders has a number."""
    if component == "text_encoder" and hasattr(model, "text_encoder_1"):
        return "text_encoder_1"
    return component


def saver(task: Task) -> Variants:
    return {
        f"{kind}, {form.lower()}": partial(of, task, options, form)
        for kind, (options, forms) in KINDS.items()
        for form in forms
    }


if __name__ == "__main__":
    serve(saver)
