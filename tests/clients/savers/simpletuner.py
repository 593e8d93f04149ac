"""SimpleTuner saves: the adapters that its models make, through the hook of its training loop.

LyCORIS, whose wrapper of a network it saves, is the package that is installed.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path[:0] = [sys.argv[1], str(Path(__file__).parents[1] / "readers")]
sys.path.append(str(Path(__file__).parent))  # last: a file there has the name of LyCORIS' package
from stubs import stub  # noqa: E402
from task import Layers, Made, Task, Variants, fill, give, serve  # noqa: E402

torch: Any = import_module("torch")
MIXIN: Any = import_module("diffusers.loaders.peft").PeftAdapterMixin

# family → folder of its model there
MODELS = {
    "flux1": "flux", "qwen-image": "qwen_image", "z-image": "z_image", "sdxl": "sdxl",
    "sd3": "sd3",
}  # fmt: skip
CLASSES: Mapping[str, str] = {
    r".*attn\d?": "Attention", r".*\.(?:ff|ffn|ff_context|feed_forward|img_mlp|txt_mlp)": "FeedForward",
}  # fmt: skip
_BLOCKS = ["Attention", "FeedForward"]
PEFT: dict[str, dict[str, Any]] = {
    "lora": {"lora_format": "diffusers"},
    "lora, comfyui": {"lora_format": "comfyui"},
    "dora": {"lora_format": "diffusers", "use_dora": True},
    "dora, comfyui": {"lora_format": "comfyui", "use_dora": True},
}
LYCORIS: dict[str, dict[str, Any]] = {
    "lycoris lora": {"algo": "lora", "linear_dim": 2},
    "lycoris loha": {"algo": "loha", "linear_dim": 2},
    "lycoris lokr": {"algo": "lokr", "linear_dim": 10000, "factor": 4},
    "lycoris lokr, factored": {"algo": "lokr", "linear_dim": 2, "factor": 4},
    "lycoris dora": {"algo": "lora", "linear_dim": 2, "dora_wd": True},
    "lycoris diag-oft": {"algo": "diag-oft", "linear_dim": 2},
    "lycoris glora": {"algo": "glora", "linear_dim": 2},
}


class Config:
    """Settings of a training; what is not given is None."""

    def __init__(self, **given: Any) -> None:
        self.__dict__ |= given

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def model_of(folder: str) -> Any:
    """The class of a model there."""
    module = import_module(f"simpletuner.helpers.models.{folder}.model")
    held = [c for c in vars(module).values() if "PIPELINE_CLASSES" in getattr(c, "__dict__", ())]
    return next(c for c in held if c.__module__ == module.__name__)


def hook_of(layers: Layers, task: Task, given: Mapping[str, Any]) -> Any:
    """The hook that saves, its model, and the network that this trains."""
    head = f"{task.network}."
    tree = layers.tree(task.plain[task.network], CLASSES, head)
    tree.__class__ = type("Network", (torch.nn.Module, MIXIN), {})
    hooks: Any = import_module("simpletuner.helpers.training.save_hooks").SaveHookManager
    hook, model = object.__new__(hooks), object.__new__(model_of(MODELS[task.family]))
    hook.args = model.config = Config(
        lora_type="standard", lora_rank=2, lora_alpha=1.0, lora_dropout=0.0,
        lora_initialisation_style=True, flux_lora_target="all", controlnet=False, use_ema=False, **given,
    )  # fmt: skip
    hook.model, model.model, model.text_encoders = model, tree, []
    hook.accelerator = model.accelerator = SimpleNamespace(unwrap_model=lambda held, **_: held)
    return hook, model, tree


def moved(folder: Path, path: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    shutil.move(file, path)


def of_peft(task: Task, given: Mapping[str, Any]) -> Made:
    layers = Layers(task)
    hook, model, tree = hook_of(layers, task, given)
    model.add_lora_adapter()
    for tag in layers.found:  # PEFT puts layers of its own before them
        path = tag.removeprefix(f"{task.network}.").removesuffix(".weight")
        layers.found[tag] = tree.get_submodule(path)

    def change() -> None:
        give((n, p) for n, p in tree.named_parameters() if p.requires_grad)

    def write(path: Path) -> None:
        folder = path.with_suffix(".saved")
        folder.mkdir()
        hook._save_lora([tree], [], str(folder))
        moved(folder, path)

    return layers, change, write


def of_lycoris(task: Task, given: Mapping[str, Any]) -> Made:
    library: Any = import_module("lycoris")
    layers = Layers(task)
    hook, _, tree = hook_of(layers, task, {})
    preset = {"target_module": _BLOCKS}
    library.LycorisNetwork.apply_preset(preset)
    net = library.create_lycoris(tree, 1, linear_alpha=1, **given)
    hook.accelerator._lycoris_wrapped_network = net

    def change() -> None:
        net.apply_to()
        fill(net, 0.05 if "oft" in given["algo"] else 0.3)
        net.eval()

    def write(path: Path) -> None:
        folder = path.with_suffix(".saved")
        folder.mkdir()
        hook.args.lycoris_config = str(folder / "given.json")
        Path(hook.args.lycoris_config).write_text(json.dumps({**given, "apply_preset": preset}))
        hook._save_lycoris([tree], [], str(folder))
        moved(folder, path)

    return layers, change, write


def saver(task: Task) -> Variants:
    stub("torchvision", "ftfy", "simpletuner.helpers.prompts")
    # of a UNet it renames the factors for ComfyUI, but leaves magnitudes under `unet.`
    halved = ("dora, comfyui",) if task.network == "unet" else ()
    return {
        **{
            name: partial(of_peft, task, given)
            for name, given in PEFT.items()
            if name not in halved
        },
        **{name: partial(of_lycoris, task, given) for name, given in LYCORIS.items()},
    }


if __name__ == "__main__":
    serve(saver)
