"""The attention of every transformer of diffusers: names and shapes, as recorded from its classes.

`python -m tests.builders.transformer_classes` records them again, on the meta device.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

RECORD = Path(__file__).resolve().parents[1] / "data" / "transformer_classes.json"
# for classes that cannot be made without arguments
_ARGUMENTS: Mapping[str, dict[str, Any]] = {
    "DreamLiteTransformer2DModel": {"in_channels": 320},
    "EasyAnimateTransformer3DModel": {"in_channels": 16, "out_channels": 16, "patch_size": 2},
    "HiDreamImageTransformer2DModel": {
        "patch_size": 2, "in_channels": 16, "caption_channels": [4096, 4096], "text_emb_dim": 2048,
        "axes_dims_rope": (64, 32, 32), "llama_layers": [0] * 48,
    },
    "LatteTransformer3DModel": {
        "in_channels": 4, "patch_size": 2, "sample_size": 64, "caption_channels": 4096,
    },
    "OmniGenTransformer2DModel": {
        "rope_scaling": {"long_factor": [1.0] * 48, "short_factor": [1.0] * 48}
    },
    "Transformer2DModel": {
        "in_channels": 4, "sample_size": 32, "patch_size": 2, "norm_type": "ada_norm_zero",
        "num_embeds_ada_norm": 1000,
    },
    "TransformerTemporalModel": {"in_channels": 320},
}  # fmt: skip
_LEAVES = frozenset(
    {
        *(f"{head}{x}{tail}" for head, tail, x in product(("to_", ""), ("", "_proj"), "qkvo")),
        *("to_out", "to_add_out", "add_q_proj", "add_k_proj", "add_v_proj", "out_proj"),
        *("to_query", "to_key", "to_value", "qkv", "to_qkv", "qkv_proj", "out_layer"),
    }
)
_NUMBER = re.compile(r"\.(\d+)\.")

Shapes = dict[str, tuple[int, int]]


def recorded() -> dict[str, Shapes]:
    """Class → path → (out, in) of the linear layers of its attention."""
    return {
        name: {
            path.replace("#", str(number)): (rows, columns)
            for path, numbers, rows, columns in found
            for number in _numbers(numbers)
        }
        for name, found in json.loads(RECORD.read_text()).items()
    }


def of_classes() -> Iterator[tuple[str, Shapes]]:
    """The same, from the classes of the installed diffusers."""
    import torch

    for name, model in _models():
        yield (
            name,
            {
                path: (layer.out_features, layer.in_features)
                for path, layer in model.named_modules()
                if isinstance(layer, torch.nn.Linear)
                if re.sub(r"\.\d+$", "", path).rpartition(".")[2] in _LEAVES
            },
        )


def whole_classes() -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """Class → name → shape of all its parameters, from the installed diffusers."""
    for name, model in _models():
        yield name, {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _models() -> Iterator[tuple[str, Any]]:
    import diffusers
    import torch

    for name in sorted(n for n in dir(diffusers) if "Transformer" in n and n.endswith("Model")):
        with torch.device("meta"):
            yield name, getattr(diffusers, name)(**_ARGUMENTS.get(name, {}))


def _numbers(ranges: str) -> Iterator[int | str]:
    """The numbers of `0-3,7`; one empty word for none."""
    for one in ranges.split(","):
        first, _, last = one.partition("-")
        yield from range(int(first), int(last or first) + 1) if first else [""]


def _ranges(numbers: list[int]) -> str:
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][-1] == number - 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if run[1:] else f"{run[0]}" for run in found)


def _compact(shapes: Shapes) -> list[list[Any]]:
    blocks: dict[tuple[str, int, int], list[int]] = {}
    for path, shape in shapes.items():
        matched = _NUMBER.search(path)
        numbers = blocks.setdefault((_NUMBER.sub(".#.", path, count=1), *shape), [])
        numbers += [int(matched[1])] if matched else []
    return [[path, _ranges(numbers), *shape] for (path, *shape), numbers in blocks.items()]


if __name__ == "__main__":
    lines = (f"{json.dumps(name)}: {json.dumps(_compact(shapes))}" for name, shapes in of_classes())
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")
