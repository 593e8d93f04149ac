"""The example workflows: graphs, in the form of ComfyUI's interface, and their pictures.

`LORAMERGE_UPDATE_DOCS=1 python -m pytest tests/comfyui` writes them anew. The pictures show the graphs
as ComfyUI draws them: boxes with sockets, lines, and the values of the widgets.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loramerge.comfyui.known import known_nodes
from loramerge.comfyui.node import ADAPTER, STACK, Node

WIDTH, TITLE, ROW = 320, 30, 22  # of a node, in the interface's units
TYPES = {
    "adapter": ADAPTER, "stack": STACK, "model": "MODEL", "clip": "CLIP", "image": "IMAGE",
    "text": "STRING", "lines": "STRING", "whole": "INT", "number": "FLOAT", "choice": "COMBO",
    "switch": "BOOLEAN",
}  # fmt: skip


@dataclass(frozen=True)
class Box:
    """A node in a graph.

    Args:
        place: column and height of its upper edge.
        links: input → (node, number of the output).
        values: of the widgets; those of our nodes that are missing have their defaults.
    """

    kind: str
    place: tuple[int, int]
    links: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Shape:
    """Inputs (name, type, whether a widget), widgets' defaults and outputs (name, type) of a node."""

    title: str
    inputs: tuple[tuple[str, str, bool], ...]
    outputs: tuple[tuple[str, str], ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)


# nodes of ComfyUI itself
_ENCODE = Shape(
    "CLIP Text Encode (Prompt)",
    (("clip", "CLIP", False), ("text", "STRING", True)),
    (("CONDITIONING", "CONDITIONING"),),
)
CORE = {
    "CheckpointLoaderSimple": Shape(
        "Load Checkpoint",
        (("ckpt_name", "COMBO", True),),
        (("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE")),
    ),
    "CLIPTextEncode": _ENCODE,
    "EmptyLatentImage": Shape(
        "Empty Latent Image",
        (("width", "INT", True), ("height", "INT", True), ("batch_size", "INT", True)),
        (("LATENT", "LATENT"),),
        {"width": 512, "height": 512, "batch_size": 1},
    ),
    "KSampler": Shape(
        "KSampler",
        (
            ("model", "MODEL", False), ("positive", "CONDITIONING", False),
            ("negative", "CONDITIONING", False), ("latent_image", "LATENT", False),
            ("seed", "INT", True), ("steps", "INT", True), ("cfg", "FLOAT", True),
            ("sampler_name", "COMBO", True), ("scheduler", "COMBO", True), ("denoise", "FLOAT", True),
        ),
        (("LATENT", "LATENT"),),
        {"seed": 1, "steps": 20, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal",
         "denoise": 1.0},
    ),
    "VAEDecode": Shape(
        "VAE Decode", (("samples", "LATENT", False), ("vae", "VAE", False)), (("IMAGE", "IMAGE"),)
    ),
    "SaveImage": Shape(
        "Save Image", (("images", "IMAGE", False), ("filename_prefix", "STRING", True)), (),
        {"filename_prefix": "loramerge"},
    ),
    "PreviewImage": Shape("Preview Image", (("images", "IMAGE", False),), ()),
    "PreviewAny": Shape("Preview Any", (("source", "*", False),), ()),
}  # fmt: skip

_PAIR = {
    "adapter_1": "character.safetensors", "weight_1": 0.8,
    "adapter_2": "style.safetensors", "weight_2": 0.5,
}  # fmt: skip
_BASE = "sd15.safetensors"
_TUNED = "sd15-tuned.safetensors"

EXAMPLES: Mapping[str, Mapping[str, Box]] = {
    "mix-two-loras": {
        "stack": Box("LoramergeLoadStack", (0, 0), values=_PAIR),
        "mix": Box("LoramergeMix", (1, 0), {"stack": ("stack", 0)}, {"rank": 32}),
        "save": Box("LoramergeSave", (2, 0), {"adapter": ("mix", 0)}),
        "recipe": Box("LoramergeSaveRecipe", (2, 220), {"adapter": ("mix", 0)}),
        "report": Box("PreviewAny", (3, 0), {"source": ("mix", 1)}),
    },
    "try-on-the-model": {
        "base": Box("CheckpointLoaderSimple", (0, 0), values={"ckpt_name": _BASE}),
        "stack": Box("LoramergeLoadStack", (0, 170), values=_PAIR),
        "mix": Box(
            "LoramergeMix", (1, 170), {"stack": ("stack", 0)},
            {"method": "ties", "options": "density: 0.5"},
        ),
        "weights": Box("LoramergeBlockWeights", (2, 180), {"adapter": ("mix", 0)}),
        "apply": Box(
            "LoramergeApply", (2, 0),
            {"stack": ("weights", 0), "model": ("base", 0), "clip": ("base", 1)},
        ),
        "positive": Box("CLIPTextEncode", (3, 0), {"clip": ("apply", 1)}, {"text": "a cat"}),
        "negative": Box("CLIPTextEncode", (3, 140), {"clip": ("apply", 1)}, {"text": "blurry"}),
        "latent": Box("EmptyLatentImage", (3, 280)),
        "sample": Box(
            "KSampler", (4, 0),
            {"model": ("apply", 0), "positive": ("positive", 0), "negative": ("negative", 0),
             "latent_image": ("latent", 0)},
        ),
        "decode": Box("VAEDecode", (4, 320), {"samples": ("sample", 0), "vae": ("base", 2)}),
        "image": Box("SaveImage", (5, 0), {"images": ("decode", 0)}),
    },
    "shrink-and-inspect": {
        "load": Box("LoramergeLoad", (0, 0), values={"adapter": "character.safetensors"}),
        "resize": Box("LoramergeResize", (1, 0), {"adapter": ("load", 0)}, {"rank": 8}),
        "inspect": Box("LoramergeInspect", (2, 0), {"adapter": ("resize", 0)}),
        "blocks": Box("PreviewImage", (3, 0), {"images": ("inspect", 1)}),
        "about": Box("PreviewAny", (3, 300), {"source": ("inspect", 0)}),
        "save": Box("LoramergeSave", (2, 120), {"adapter": ("resize", 0)}, {"name": "loras/small"}),
        "report": Box("PreviewAny", (2, 340), {"source": ("resize", 1)}),
    },
    "bake-into-a-checkpoint": {
        "stack": Box("LoramergeLoadStack", (0, 0), values=_PAIR),
        "bake": Box("LoramergeBake", (1, 0), {"stack": ("stack", 0)}, {"base": f"checkpoints/{_BASE}"}),
        "report": Box("PreviewAny", (2, 0), {"source": ("bake", 2)}),
        "recipe": Box("PreviewAny", (2, 220), {"source": ("bake", 1)}),
    },
    "extract-a-difference": {
        "extract": Box(
            "LoramergeExtract", (0, 0),
            values={"tuned": f"checkpoints/{_TUNED}", "base": f"checkpoints/{_BASE}", "rank": 32},
        ),
        "inspect": Box("LoramergeInspect", (1, 0), {"adapter": ("extract", 0)}),
        "report": Box("PreviewAny", (1, 130), {"source": ("extract", 1)}),
        "save": Box(
            "LoramergeSave", (1, 350), {"adapter": ("extract", 0)}, {"name": "loras/extracted"}
        ),
        "recipe": Box(
            "LoramergeSaveRecipe", (1, 570), {"adapter": ("extract", 0)}, {"name": "loras/extracted"}
        ),
        "blocks": Box("PreviewImage", (2, 0), {"images": ("inspect", 1)}),
    },
    "merge-two-checkpoints": {
        "stack": Box(
            "LoramergeLoadStack", (0, 0), values={"adapter_1": "style.safetensors", "weight_1": 0.6}
        ),
        "merge": Box(
            "LoramergeMerge", (1, 0), {"stack": ("stack", 0)},
            {"model_a": f"checkpoints/{_BASE}", "model_b": f"checkpoints/{_TUNED}", "weight_b": 0.4},
        ),
        "report": Box("PreviewAny", (2, 0), {"source": ("merge", 2)}),
        "recipe": Box("PreviewAny", (2, 220), {"source": ("merge", 1)}),
    },
}  # fmt: skip


def shape_of(kind: str) -> Shape:
    """Return the shape of a node, ours or ComfyUI's."""
    ours: dict[str, Node] = {node.name: node for node in known_nodes()}
    if kind not in ours:
        return CORE[kind]
    node = ours[kind]
    return Shape(
        node.title,
        tuple((slot.name, TYPES[slot.kind], slot.is_widget) for slot in node.inputs),
        tuple((one.name, TYPES[one.kind]) for one in node.outputs),
        {slot.name: slot.default for slot in node.inputs if slot.is_widget},
    )


def values_of(box: Box) -> dict[str, Any]:
    """Return the values of all widgets of a node."""
    shape = shape_of(box.kind)
    return {
        name: box.values.get(name, shape.defaults.get(name))
        for name, _, widget in shape.inputs
        if widget
    }


def as_prompt(graph: Mapping[str, Box]) -> dict[str, Any]:
    """Return a graph in the form of ComfyUI's API, in which it runs."""
    return {
        name: {
            "class_type": box.kind,
            "inputs": values_of(box) | {slot: list(source) for slot, source in box.links.items()},
        }
        for name, box in graph.items()
    }


_LEAST = {"PreviewAny": 170, "PreviewImage": 250, "SaveImage": 300, "CLIPTextEncode": 90}


def height_of(box: Box) -> int:
    """Return the height of a node in the interface."""
    shape = shape_of(box.kind)
    sockets = max(sum(not widget for _, _, widget in shape.inputs), len(shape.outputs))
    lines = 2 * sum(name in ("options", "weights") for name in values_of(box))  # several lines high
    return max(ROW * (sockets + len(values_of(box)) + lines) + 20, _LEAST.get(box.kind, 0))


def position_of(box: Box) -> tuple[int, int]:
    """Return the upper left corner of a node."""
    column, top = box.place
    return 40 + column * (WIDTH + 60), 60 + top


def as_workflow(graph: Mapping[str, Box]) -> dict[str, Any]:
    """Return a graph as the interface saves it."""
    numbers = {name: n for n, name in enumerate(graph, 1)}
    links: list[list[Any]] = []
    for name, box in graph.items():
        sockets = [slot for slot, _, widget in shape_of(box.kind).inputs if not widget]
        for slot, (source, output) in box.links.items():
            kind = shape_of(graph[source].kind).outputs[output][1]
            links.append(
                [len(links) + 1, numbers[source], output, numbers[name], sockets.index(slot), kind]
            )
    return {
        "last_node_id": len(graph),
        "last_link_id": len(links),
        "nodes": [_node(numbers[name], box, links) for name, box in graph.items()],
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _node(number: int, box: Box, links: list[list[Any]]) -> dict[str, Any]:
    shape = shape_of(box.kind)
    sockets = [(name, kind) for name, kind, widget in shape.inputs if not widget]
    into = {link[4]: link[0] for link in links if link[3] == number}
    values = list(values_of(box).values())
    if box.kind == "KSampler":
        values.insert(1, "fixed")  # what the interface does with the seed
    return {
        "id": number,
        "type": box.kind,
        "pos": list(position_of(box)),
        "size": [WIDTH, height_of(box)],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": [
            {"name": name, "type": kind, "link": into.get(n)}
            for n, (name, kind) in enumerate(sockets)
        ],
        "outputs": [
            {
                "name": name,
                "type": kind,
                "links": [link[0] for link in links if link[1] == number and link[2] == n],
            }
            for n, (name, kind) in enumerate(shape.outputs)
        ],
        "properties": {"Node name for S&R": box.kind},
        "widgets_values": values,
    }


def text_of(graph: Mapping[str, Box]) -> bytes:
    """Return the file of a workflow."""
    return (json.dumps(as_workflow(graph), ensure_ascii=False, indent=1) + "\n").encode()


# --- pictures -------------------------------------------------------------------------------------

_DARK, _BODY, _HEAD, _FIELD = (32, 32, 32), (53, 53, 53), (69, 69, 69), (34, 34, 34)
_LIGHT, _FAINT = (222, 222, 222), (150, 150, 150)
_COLOURS = {
    ADAPTER: (232, 140, 60), STACK: (240, 200, 80), "MODEL": (178, 157, 219), "CLIP": (255, 213, 0),
    "VAE": (255, 110, 110), "IMAGE": (100, 181, 246), "LATENT": (255, 156, 249),
    "CONDITIONING": (255, 169, 49),
}  # fmt: skip


def picture_of(graph: Mapping[str, Box]) -> bytes:
    """Return a picture of a graph, as JPEG."""
    from PIL import Image, ImageDraw

    from loramerge.report.fonts import font_for

    font = font_for(["A"], 13)
    corners = {name: position_of(box) for name, box in graph.items()}
    right = max(left for left, _ in corners.values()) + WIDTH + 40
    bottom = max(top + height_of(graph[n]) for n, (_, top) in corners.items()) + 40
    whole = Image.new("RGB", (right, bottom), _DARK)
    pen = ImageDraw.Draw(whole)
    for name, box in graph.items():
        for slot, (source, output) in box.links.items():
            start = _socket(graph[source], output, output=True)
            sockets = [s for s, _, widget in shape_of(box.kind).inputs if not widget]
            end = _socket(graph[name], sockets.index(slot), output=False)
            colour = _COLOURS.get(shape_of(graph[source].kind).outputs[output][1], _FAINT)
            pen.line(_curve(start, end), colour, 2)
    for box in graph.values():
        _draw(pen, box, font)
    stream = io.BytesIO()
    whole.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _socket(box: Box, number: int, *, output: bool) -> tuple[int, int]:
    left, top = position_of(box)
    return left + (WIDTH if output else 0), top + ROW * number + ROW // 2 + 4


def _curve(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[float, float]]:
    """Return points of a Bézier curve with level ends."""
    reach = max(40.0, abs(end[0] - start[0]) / 2)
    found = []
    for step in range(25):
        t = step / 24
        xs = (start[0], start[0] + reach, end[0] - reach, end[0])
        ys = (start[1], start[1], end[1], end[1])
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
        found.append(
            (
                sum(w * x for w, x in zip(weights, xs, strict=True)),
                sum(w * y for w, y in zip(weights, ys, strict=True)),
            )
        )
    return found


def _draw(pen: Any, box: Box, font: Any) -> None:
    shape = shape_of(box.kind)
    left, top = position_of(box)
    height = height_of(box)
    pen.rounded_rectangle((left, top - TITLE, left + WIDTH, top + height), 8, _BODY)
    pen.rounded_rectangle((left, top - TITLE, left + WIDTH, top), 8, _HEAD)
    pen.text((left + 12, top - TITLE + 7), shape.title, _LIGHT, font)
    sockets = [(name, kind) for name, kind, widget in shape.inputs if not widget]
    for n, (name, kind) in enumerate(sockets):
        x, y = _socket(box, n, output=False)
        pen.ellipse((x - 5, y - 5, x + 5, y + 5), _COLOURS.get(kind, _FAINT))
        pen.text((x + 12, y - 8), name, _LIGHT, font)
    for n, (name, kind) in enumerate(shape.outputs):
        x, y = _socket(box, n, output=True)
        pen.ellipse((x - 5, y - 5, x + 5, y + 5), _COLOURS.get(kind, _FAINT))
        pen.text((x - 12 - pen.textlength(name, font), y - 8), name, _LIGHT, font)
    y = top + ROW * max(len(sockets), len(shape.outputs)) + 8
    for name, value in values_of(box).items():
        pen.rounded_rectangle((left + 10, y, left + WIDTH - 10, y + ROW - 4), 8, _FIELD)
        pen.text((left + 20, y + 1), name.replace("_", " "), _FAINT, font)
        shown = str(value)
        pen.text((left + WIDTH - 20 - pen.textlength(shown, font), y + 1), shown, _LIGHT, font)
        y += ROW
