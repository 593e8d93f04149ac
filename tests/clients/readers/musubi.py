"""musubi-tuner reads files: its networks on modules of the names and shapes of the checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path[:0] = [f"{sys.argv[1]}/src", str(Path(__file__).parent)]
from job import Job, Loaded, base_of, narrow, serve  # noqa: E402
from trees import tree  # noqa: E402

# family → its network there, and the classes of blocks that it changes
BLOCKS: dict[str, tuple[str, dict[str, str]]] = {
    "wan": ("lora_wan", {r"blocks\.\d+": "WanAttentionBlock"}),
    "hunyuan-video": (
        "lora",
        {
            r"double_blocks\.\d+": "MMDoubleStreamBlock",
            r"single_blocks\.\d+": "MMSingleStreamBlock",
        },
    ),
    "qwen-image": ("lora_qwen_image", {r"transformer_blocks\.\d+": "QwenImageTransformerBlock"}),
    "flux1": (
        "lora_flux",
        {r"double_blocks\.\d+": "DoubleStreamBlock", r"single_blocks\.\d+": "SingleStreamBlock"},
    ),
}
BLOCKS["hidream-o1"] = (
    "lora_hidream_o1",
    {
        r"model\.language_model\.layers\.\d+": "Qwen3VLTextDecoderLayer",
        r"model\.visual\.blocks\.\d+": "Qwen3VLVisionBlock",
        r"model\.visual\.(?:merger|deepstack_merger_list\.\d+)": "Qwen3VLVisionPatchMerger",
        r"model\.visual\.patch_embed": "Qwen3VLVisionPatchEmbed",
        r"model\.x_embedder": "BottleneckPatchEmbed",
        r"model\.final_layer2": "FinalLayer",
        r"model\.t_embedder1": "TimestepEmbedder",
    },
)
FLUX2 = ("flux2-dev", "flux2-klein-4b", "flux2-klein-9b")
BLOCKS |= dict.fromkeys(FLUX2, ("lora_flux_2", BLOCKS["flux1"][1]))


def reader(job: Job) -> Callable[[Mapping[str, Any]], Loaded]:
    name, classes = BLOCKS[job.family]
    library: Any = import_module(f"musubi_tuner.networks.{name}")
    make = library.create_arch_network_from_weights

    def read(tensors: Mapping[str, Any]) -> Loaded:
        model = tree(job.network, classes)
        try:
            net = make(1.0, dict(tensors), None, model, for_inference=True)
            net.apply_to([], model, apply_text_encoder=False, apply_unet=True)
        except (KeyError, RuntimeError) as error:
            return Loaded(list(tensors), {}, repr(error))
        found = net.load_state_dict(dict(tensors), False)
        names = {path.replace(".", "_"): path for path, module in model.named_modules() if path}
        changes = {}
        for one in net.unet_loras:
            tag = f"{names[one.lora_name.removeprefix('lora_unet_')]}.weight"
            step = one.get_weight(1.0).detach().numpy()
            changes[tag] = step.reshape(base_of(tag, narrow(job.network[tag])).shape)
        return Loaded(list(found.unexpected_keys), changes)

    return read


if __name__ == "__main__":
    serve(reader)
