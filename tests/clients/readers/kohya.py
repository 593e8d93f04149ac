"""sd-scripts reads files: its networks on modules of the names and shapes of the checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path[:0] = [sys.argv[1], str(Path(__file__).parent)]
from job import Job, Loaded, serve  # noqa: E402
from stubs import stub  # noqa: E402

stub("cv2", "imagesize", "library.utils", "library.train_util", "rich")
from trees import tree  # noqa: E402

# family → its network there, and the classes of blocks that it changes
NETWORKS: dict[str, tuple[str, dict[str, str]]] = {
    "sdxl": (
        "lora",
        {
            r"(?:input_blocks\.\d+|output_blocks\.\d+|middle_block)\.1": "Transformer2DModel",
            r"(?:input_blocks|output_blocks)\.\d+\.0|middle_block\.[02]": "ResnetBlock2D",
            r"output_blocks\.\d+\.2": "Upsample2D",
        },
    ),
    "sd15": (
        "lora",
        {
            r".*\.attentions\.\d+": "Transformer2DModel",
            r".*\.resnets\.\d+": "ResnetBlock2D",
            r".*\.upsamplers\.0": "Upsample2D",
            r".*\.downsamplers\.0": "Downsample2D",
        },
    ),
    "flux1": (
        "lora_flux",
        {r"double_blocks\.\d+": "DoubleStreamBlock", r"single_blocks\.\d+": "SingleStreamBlock"},
    ),
    "lumina2": (
        "lora_lumina",
        {r"(?:layers|noise_refiner|context_refiner)\.\d+": "JointTransformerBlock",
         r"final_layer": "FinalLayer"},
    ),
}  # fmt: skip
NETWORKS["sd21"] = NETWORKS["sd15"]
ENCODERS = {
    r".*\.self_attn": "CLIPAttention", r".*\.layers\.\d+\.mlp": "CLIPMLP",
    r".*\.SelfAttention": "T5Attention", r".*\.DenseReluDense": "T5DenseGatedActDense",
}  # fmt: skip
PREFIXES = ("lora_unet_", "lora_te1_", "lora_te2_", "lora_te3_")


def reader(job: Job) -> Callable[[Mapping[str, Any]], Loaded]:
    name, classes = NETWORKS[job.family]
    library: Any = import_module(f"networks.{name}")

    # it has diffusers' UNet but for SDXL
    diffusers = job.family in ("sd15", "sd21")
    plain = {name: part.tag for name, part in job.plain.items()} if diffusers else {}
    shapes = {ours: job.network[tag] for ours, tag in plain.items()} or job.network

    def read(tensors: Mapping[str, Any]) -> Loaded:
        model = tree(shapes, classes)
        encoders = [tree(held, ENCODERS) for held in job.encoders.values()]
        try:
            net, _ = library.create_network_from_weights(
                1.0, None, None, encoders or [tree({}, {})], model, dict(tensors), True
            )
            net.apply_to(encoders, model, bool(encoders), True)
            found = net.load_state_dict(dict(tensors), False)
        except (KeyError, RuntimeError) as error:
            return Loaded([], {}, repr(error))
        tags = _tags(job, model, encoders, plain)
        changes = {}
        for one in (*net.text_encoder_loras, *net.unet_loras):
            step = one.get_weight(1.0).detach().numpy()
            changes[tags[one.lora_name]] = step.reshape(one.org_module_ref[0].weight.shape)
        return Loaded(list(found.unexpected_keys), changes)

    return read


def _tags(job: Job, model: Any, encoders: list[Any], plain: Mapping[str, str]) -> dict[str, str]:
    """Return the name of each module in sd-scripts → the tensor of the checkpoint."""
    found = {
        f"lora_unet_{path}".replace(".", "_"): plain.get(f"{path}.weight", f"{path}.weight")
        for path, _ in model.named_modules()
    }
    # T5 is the third text encoder, also where there is no second
    numbers = (1, 3) if job.family == "flux1" else (1, 2, 3)
    for (component, _), encoder, number in zip(
        job.encoders.items(), encoders, numbers, strict=False
    ):
        head = "lora_te_" if plain else f"lora_te{number}_"
        for path, _ in encoder.named_modules():
            key = f"{head}{path}".replace(".", "_")
            found[key] = f"{component}.{path}.weight"
    return found


if __name__ == "__main__":
    serve(reader)
