"""Forge reads files: `backend.patcher.lora` on the names and shapes of the original checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path[:0] = [sys.argv[1], str(Path(__file__).parent)]
from job import Job, Loaded, base_of, narrow, narrow_size, serve  # noqa: E402
from stubs import stub  # noqa: E402

stub(
    "backend.memory_management",
    "backend.utils",
    "backend.args",
    "backend.stream",
    "backend.operations",
)
torch: Any = import_module("torch")

LORA: Any = import_module("backend.patcher.lora")
LORA.memory_management.cast_to_device = lambda tensor, device, dtype, copy=False: tensor.to(dtype)

MERGE: Any = LORA.merge_lora_to_weight

# what `sd_forge_lora` takes for a file of another model
MOST_UNMATCHED = 12
# what text encoders are called there
ENCODERS = {
    "sd15": {"clip_l": "text_encoder"},
    "sd21": {"clip_h": "text_encoder"},
    "sdxl": {"clip_l": "text_encoder", "clip_g": "text_encoder_2"},
    "sdxl-refiner": {"clip_g": "text_encoder_2"},
    "sd3": {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"},
    "flux1": {"clip_l": "text_encoder", "t5xxl": "text_encoder_2"},
}
ENCODERS["sd35-medium"] = ENCODERS["sd35-large"] = ENCODERS["sd3"]


# what Forge guesses of a UNet or a transformer
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4],
             "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_middle": 1,
             "transformer_depth_output": [1] * 9 + [0] * 3},
    "sdxl": {"num_res_blocks": [2] * 3, "channel_mult": [1, 2, 4],
             "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
             "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10]},
    "sdxl-refiner": {"num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4],
                     "transformer_depth": [0, 0, 4, 4, 4, 4, 0, 0], "transformer_depth_middle": 4,
                     "transformer_depth_output": [0] * 3 + [4] * 6 + [0] * 3},
    "flux1": {"depth": 19, "depth_single_blocks": 38, "hidden_size": 3072},
}  # fmt: skip
UNETS["sd21"] = UNETS["sd15"]


class _Named:
    """A model as the matching sees it: names of its tensors, and what Forge guessed of it."""

    def __init__(self, names: Mapping[str, str], family: str) -> None:
        self.names = names
        self.diffusion_model = SimpleNamespace(config=UNETS.get(family, {}))
        self.config = SimpleNamespace(huggingface_repo=family)

    def state_dict(self) -> Mapping[str, str]:
        return self.names


def reader(job: Job) -> Callable[[Mapping[str, Any]], Loaded]:
    tags = {f"diffusion_model.{name}": name for name in job.network}
    names = ENCODERS.get(job.family, {})
    encoder = {
        f"{head}.transformer.{name}": f"{component}.{name}"
        for head, component in names.items()
        for name in job.encoders.get(component, ())
    }
    keys_of_network = LORA.model_lora_keys_unet(_Named(tags, job.family), {})
    keys_of_encoders = LORA.model_lora_keys_clip(_Named(encoder, job.family), {}) if encoder else {}
    tags |= encoder
    shapes: dict[str, tuple[int, ...]] = dict(job.network)
    shapes |= {f"{c}.{n}": s for c, held in job.encoders.items() for n, s in held.items()}

    def read(tensors: Mapping[str, Any]) -> Loaded:
        patches, rest = LORA.load_lora(dict(tensors), keys_of_network)
        more, rest = LORA.load_lora(rest, keys_of_encoders)
        refused = f"{len(rest)} unmatched keys" if len(rest) > MOST_UNMATCHED else ""
        weights: dict[str, Any] = {}
        for target, patch in (patches | more).items():
            given = (target,) if isinstance(target, str) else target
            key, offset, function = (*given, None, None)[:3]
            if key not in tags:
                continue
            tag = tags[key]
            weight = weights.get(tag)
            if weight is None:
                weight = torch.from_numpy(base_of(tag, narrow(shapes[tag])))
            if offset is not None:
                offset = (offset[0], narrow_size(offset[1]), narrow_size(offset[2]))
            given = [(1.0, patch, 1.0, offset, function)]
            try:
                weights[tag] = MERGE(given, weight, key, torch.float32)
            except RuntimeError as error:  # it ends the drawing of the picture
                return Loaded([], {}, f"{key}: {error}")
        changes = {t: w.numpy() - base_of(t, narrow(shapes[t])) for t, w in weights.items()}
        return Loaded(list(rest), changes, refused)

    return read


if __name__ == "__main__":
    serve(reader)
