"""diffusion-pipe saves: its pipelines' adapters, through the saver of its training loop.

Every file is given twice: in its folder, beside PEFT's configuration, and alone, as people pass it on.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path[:0] = [sys.argv[1], str(Path(__file__).parent), str(Path(__file__).parents[1] / "readers")]
from blocks import ORIGINAL  # noqa: E402
from stubs import stub  # noqa: E402
from task import Layers, Made, Task, Variants, give, serve  # noqa: E402

torch: Any = import_module("torch")
diffusers: Any = import_module("diffusers")
MIXIN: Any = import_module("diffusers.loaders.peft").PeftAdapterMixin

_FLUX, _JOINT = ORIGINAL["flux1"], ORIGINAL["lumina2"]
_MMDIT = {r"transformer_blocks\.\d+": "JointTransformerBlock"}
_COSMOS = {r"blocks\.\d+": "Block", r"llm_adapter\.blocks\.\d+": "TransformerBlock"}
# family → its module there, the pipeline of diffusers that saves what has diffusers' names (else names
# are the original's), and the classes of blocks
MODELS: Mapping[str, tuple[str, str | None, Mapping[str, str]]] = {
    "flux1": ("flux", "FluxPipeline", {
        r"transformer_blocks\.\d+": "FluxTransformerBlock",
        r"single_transformer_blocks\.\d+": "FluxSingleTransformerBlock",
    }),
    "wan": ("wan.wan", None, ORIGINAL["wan"]),
    "qwen-image": ("qwen_image", None, ORIGINAL["qwen-image"]),
    "z-image": ("z_image", None, _JOINT),
    "sdxl": ("sdxl", "StableDiffusionXLPipeline", {}),
    "sd3": ("sd3", "StableDiffusion3Pipeline", _MMDIT),
    "sd35-medium": ("sd3", "StableDiffusion3Pipeline", _MMDIT),
    "sd35-large": ("sd3", "StableDiffusion3Pipeline", _MMDIT),
    "auraflow": ("auraflow", "AuraFlowPipeline", {
        r"joint_transformer_blocks\.\d+": "AuraFlowJointTransformerBlock",
        r"single_transformer_blocks\.\d+": "AuraFlowSingleTransformerBlock",
    }),
    "lumina2": ("lumina_2", None, _JOINT),
    "hunyuan-video": ("hunyuan_video", None, ORIGINAL["hunyuan-video"]),
    "hunyuan-video-15": ("hunyuan_video_15", None, _FLUX),
    "hunyuan-image": ("hunyuan_image", None, ORIGINAL["hunyuan-video"]),
    "ltx-video": ("ltx_video", None, {r"transformer_blocks\.\d+": "BasicTransformerBlock"}),
    "ltx-2": ("ltx2", None, {r"transformer_blocks\.\d+": "BasicAVTransformerBlock"}),
    "chroma": ("chroma", None, _FLUX),
    "cosmos2": ("cosmos_predict2", None, _COSMOS),
    "cosmos2-14b": ("cosmos_predict2", None, _COSMOS),
    "anima": ("cosmos_predict2", None, _COSMOS),
    "flux2-dev": ("flux2", None, _FLUX),
    "flux2-klein-4b": ("flux2", None, _FLUX),
    "flux2-klein-9b": ("flux2", None, _FLUX),
    "hidream-i1": ("hidream", None, {
        r"double_stream_blocks\.\d+": "HiDreamImageTransformerBlock",
        r"single_stream_blocks\.\d+": "HiDreamImageSingleTransformerBlock",
    }),
    "ernie-image": ("ernie_image", None, {r"layers\.\d+": "ErnieImageSharedAdaLNBlock"}),
    "ideogram4": ("ideogram4", None, {r"layers\.\d+": "Ideogram4TransformerBlock"}),
    "krea2": ("krea2", None, {
        r"blocks\.\d+": "SingleStreamBlock", r"txtfusion": "TextFusionTransformer",
    }),
}  # fmt: skip
# submodules of other networks' code, and what encodes texts and images
ABSENT = (
    "deepspeed", "torchvision", "torchaudio", "imageio", "ftfy", "loguru", "comfy", "comfy_api",
    "models.wan.configs", "models.wan.t5", "models.wan.clip", "src", "src.models", "hyvideo", "hyimage",
    "ltx_video", "Lumina_2", "hi_diffusers",
)  # fmt: skip
ADAPTER = {"rank": 2, "alpha": 2, "dropout": 0.0, "rank_dropout": 0.0, "decompose_factor": 4}
KINDS = ("lora", "lokr")


def pipeline_of(module: str) -> Any:
    """The pipeline class of a module there."""
    name = f"models.{module}"
    held = [c for c in vars(import_module(name)).values() if getattr(c, "__module__", "") == name]
    return next(c for c in held if c.__name__.endswith("Pipeline"))


def networks_of(task: Task, layers: Layers) -> dict[str, Any]:
    """Return the modules that a pipeline trains, by the start of their names in the answer."""
    _, saving, classes = MODELS[task.family]
    if saving is None:
        return {"": layers.tree(task.original, classes)}
    components = task.plain if task.family == "sdxl" else [task.network]
    trees = {f"{c}.": layers.tree(task.plain[c], classes, f"{c}.") for c in components}
    for tree in trees.values():
        tree.__class__ = type("Model", (torch.nn.Module, MIXIN), {})
    return trees


def of(task: Task, kind: str, alone: bool) -> Made:
    module, saving, _ = MODELS[task.family]
    config = {"adapter": {**ADAPTER, "type": kind, "dtype": torch.float32}}
    layers = Layers(task)
    pipeline = object.__new__(pipeline_of(module))
    pipeline.config = config
    pipeline.diffusers_pipeline = getattr(diffusers, saving) if saving else None
    trained = torch.nn.Module()
    trees = networks_of(task, layers)
    for head, tree in trees.items():
        names = [head[:-1]] if head else ["transformer", "diffusion_model"]
        trained.add_module(names[0], tree)
        for name in names:
            setattr(pipeline, name, tree)
    pipeline.configure_adapter(config["adapter"])
    for head, tree in trees.items():  # PEFT puts layers of its own before them
        for tag in [tag for tag in layers.found if tag.startswith(head)]:
            layers.found[tag] = tree.get_submodule(tag[len(head) :].removesuffix(".weight"))

    def change() -> None:
        give((n, p) for n, p in trained.named_parameters() if p.requires_grad)

    def write(path: Path) -> None:
        folder = path.with_suffix("")
        save(pipeline, trained, folder)
        if alone:
            (file,) = folder.glob("*.safetensors")
            shutil.move(file, path)
            shutil.rmtree(folder)

    return layers, change, write


def save(pipeline: Any, trained: Any, folder: Path) -> None:
    """Save as the training loop does, which copies the file of its configuration beside the adapter."""
    config = folder.parent / "config.toml"
    config.touch()
    grid = SimpleNamespace(get_data_parallel_rank=lambda: 0, get_pipe_parallel_rank=lambda: 0)
    saver = import_module("utils.saver").Saver(
        SimpleNamespace(config=config), {}, True, folder.parent, pipeline, None,
        SimpleNamespace(grid=grid), trained,
    )  # fmt: skip
    saver.save_adapter(folder.name)


def saver(task: Task) -> Variants:
    stub(*ABSENT)
    import_module("imageio").config.video_extensions = ()
    import_module("hyvideo.constants").PRECISION_TO_TYPE = {}
    import_module("hyimage.models.text_encoder").PROMPT_TEMPLATE = {
        "dit-llm-encode-v2": {"template": "", "crop_start": 0}
    }
    return {
        f"{kind}{', alone' if alone else ''}": partial(of, task, kind, alone)
        for kind in KINDS
        for alone in (False, True)
    }


if __name__ == "__main__":
    serve(saver)
