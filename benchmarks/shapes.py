"""Names and shapes of the models that the benchmarks imitate, as tables of their own.

Nothing here is shared with the package under test, so that its tables are checked by others than
themselves. Sources: the LDM module layout (`ldm/modules/diffusionmodules`) of the published
Stable Diffusion 2.1 and SDXL configurations; OpenCLIP ViT-H; names of adapters as written by kohya.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

Shape = tuple[int, ...]
Entry = tuple[str, Shape]

UNET_PREFIX = "model.diffusion_model."


@dataclass(frozen=True)
class Unet:
    """A UNet of the LDM kind: two residual blocks per level, linear `proj_in` and `proj_out`.

    Attributes:
        widths: Channels of each level.
        depths: Transformer blocks after each residual block of a level; 0 is no attention.
        middle: Transformer blocks in the middle.
        context: Width of the text states.
        label: Width of the added vector condition, 0 for none.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    middle: int
    context: int
    label: int = 0


SD21 = Unet((320, 640, 1280, 1280), (1, 1, 1, 0), 1, 1024)
SDXL = Unet((320, 640, 1280), (0, 2, 10), 10, 2048, label=2816)


def affine(name: str, *shape: int) -> Iterator[Entry]:
    """Yields a weight of `shape` and its bias of length `shape[0]`."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def resnet(name: str, inputs: int, outputs: int, time: int) -> Iterator[Entry]:
    """Yields the tensors of a UNet residual block."""
    yield from affine(f"{name}.in_layers.0", inputs)
    yield from affine(f"{name}.in_layers.2", outputs, inputs, 3, 3)
    yield from affine(f"{name}.emb_layers.1", outputs, time)
    yield from affine(f"{name}.out_layers.0", outputs)
    yield from affine(f"{name}.out_layers.3", outputs, outputs, 3, 3)
    if inputs != outputs:
        yield from affine(f"{name}.skip_connection", outputs, inputs, 1, 1)


def transformer(name: str, width: int, depth: int, context: int) -> Iterator[Entry]:
    """Yields the tensors of a spatial transformer with linear projections."""
    yield from affine(f"{name}.norm", width)
    yield from affine(f"{name}.proj_in", width, width)
    for i in range(depth):
        block = f"{name}.transformer_blocks.{i}"
        for attention, source in (("attn1", width), ("attn2", context)):
            yield f"{block}.{attention}.to_q.weight", (width, width)
            yield f"{block}.{attention}.to_k.weight", (width, source)
            yield f"{block}.{attention}.to_v.weight", (width, source)
            yield from affine(f"{block}.{attention}.to_out.0", width, width)
        yield from affine(f"{block}.ff.net.0.proj", 8 * width, width)
        yield from affine(f"{block}.ff.net.2", width, 4 * width)
        for norm in ("norm1", "norm2", "norm3"):
            yield from affine(f"{block}.{norm}", width)
    yield from affine(f"{name}.proj_out", width, width)


def unet_tensors(net: Unet) -> Iterator[Entry]:
    """Yields names (without the prefix of the checkpoint) and shapes of all tensors of a UNet."""
    width = net.widths[0]
    time = 4 * width
    embeddings = [("time_embed", width)] + [("label_emb.0", net.label)] * bool(net.label)
    for name, inputs in embeddings:
        yield from affine(f"{name}.0", time, inputs)
        yield from affine(f"{name}.2", time, time)
    yield from affine("input_blocks.0.0", width, 4, 3, 3)
    skips, block, last = [width], 1, len(net.widths) - 1
    for level, (outputs, depth) in enumerate(zip(net.widths, net.depths, strict=True)):
        for _ in range(2):
            yield from resnet(f"input_blocks.{block}.0", width, outputs, time)
            if depth:
                yield from transformer(f"input_blocks.{block}.1", outputs, depth, net.context)
            width, block = outputs, block + 1
            skips.append(width)
        if level < last:
            yield from affine(f"input_blocks.{block}.0.op", width, width, 3, 3)
            skips.append(width)
            block += 1
    yield from resnet("middle_block.0", width, width, time)
    yield from transformer("middle_block.1", width, net.middle, net.context)
    yield from resnet("middle_block.2", width, width, time)
    block = 0
    for level in range(last, -1, -1):
        outputs, depth = net.widths[level], net.depths[level]
        for i in range(3):
            yield from resnet(f"output_blocks.{block}.0", width + skips.pop(), outputs, time)
            if depth:
                yield from transformer(f"output_blocks.{block}.1", outputs, depth, net.context)
            if level and i == 2:
                place = 2 if depth else 1
                yield from affine(f"output_blocks.{block}.{place}.conv", outputs, outputs, 3, 3)
            width, block = outputs, block + 1
    yield from affine("out.0", width)
    yield from affine("out.2", 4, width, 3, 3)


def open_clip_tensors(width: int = 1024, layers: int = 24) -> Iterator[Entry]:
    """Yields names and shapes of the OpenCLIP ViT-H text tower, as stored in SD2 checkpoints."""
    root = "cond_stage_model.model"
    yield f"{root}.positional_embedding", (77, width)
    yield f"{root}.text_projection", (width, width)
    yield f"{root}.logit_scale", ()
    yield f"{root}.token_embedding.weight", (49408, width)
    yield from affine(f"{root}.ln_final", width)
    for i in range(layers):
        block = f"{root}.transformer.resblocks.{i}"
        yield f"{block}.attn.in_proj_weight", (3 * width, width)
        yield f"{block}.attn.in_proj_bias", (3 * width,)
        yield from affine(f"{block}.attn.out_proj", width, width)
        yield from affine(f"{block}.mlp.c_fc", 4 * width, width)
        yield from affine(f"{block}.mlp.c_proj", width, 4 * width)
        yield from affine(f"{block}.ln_1", width)
        yield from affine(f"{block}.ln_2", width)


def vae_tensors() -> Iterator[Entry]:
    """Yields names and shapes of the first stage (KL autoencoder, 128 to 512 channels)."""
    root, widths = "first_stage_model", (128, 256, 512, 512)

    def block(name: str, inputs: int, outputs: int) -> Iterator[Entry]:
        yield from affine(f"{name}.norm1", inputs)
        yield from affine(f"{name}.conv1", outputs, inputs, 3, 3)
        yield from affine(f"{name}.norm2", outputs)
        yield from affine(f"{name}.conv2", outputs, outputs, 3, 3)
        if inputs != outputs:
            yield from affine(f"{name}.nin_shortcut", outputs, inputs, 1, 1)

    levels = {
        "encoder": ("down", "downsample", 2, [0, 1, 2, 3], 128, 3),
        "decoder": ("up", "upsample", 3, [3, 2, 1, 0], 512, 4),
    }
    for half, (side, sampler, count, order, width, inputs) in levels.items():
        path = f"{root}.{half}"
        yield from affine(f"{path}.conv_in", width, inputs, 3, 3)
        for level in order:
            for i in range(count):
                yield from block(f"{path}.{side}.{level}.block.{i}", width, widths[level])
                width = widths[level]
            if level != order[-1]:
                yield from affine(f"{path}.{side}.{level}.{sampler}.conv", width, width, 3, 3)
        for name in ("block_1", "block_2"):
            yield from block(f"{path}.mid.{name}", 512, 512)
        yield from affine(f"{path}.mid.attn_1.norm", 512)
        for name in ("q", "k", "v", "proj_out"):
            yield from affine(f"{path}.mid.attn_1.{name}", 512, 512, 1, 1)
        yield from affine(f"{path}.norm_out", width)
        yield from affine(f"{path}.conv_out", 8 if half == "encoder" else 3, width, 3, 3)
    yield from affine(f"{root}.quant_conv", 8, 8, 1, 1)
    yield from affine(f"{root}.post_quant_conv", 4, 4, 1, 1)


def sd21_checkpoint() -> Iterator[Entry]:
    """Yields names and shapes of a whole SD2.1 single file (LDM layout)."""
    for name, shape in unet_tensors(SD21):
        yield UNET_PREFIX + name, shape
    yield from open_clip_tensors()
    yield from vae_tensors()


def diffusers_name(name: str) -> str:
    """Turns the LDM name of a tensor inside an attention block into the diffusers one."""
    if name.startswith("middle_block.1."):
        return "mid_block.attentions.0." + name.removeprefix("middle_block.1.")
    side, number, place, rest = name.split(".", 3)
    if place != "1" or side not in ("input_blocks", "output_blocks"):
        raise ValueError(f"not inside an attention block: {name}")
    down = side == "input_blocks"
    level, index = divmod(int(number) - down, 3)
    return f"{'down' if down else 'up'}_blocks.{level}.attentions.{index}.{rest}"


def adapted(net: Unet) -> list[tuple[str, tuple[int, int]]]:
    """Lists the matrices that kohya adapts by default: LDM names without `.weight`, (out, in)."""
    inside = re.compile(r"\.transformer_blocks\.|\.proj_(in|out)\.")
    return [
        (name.removesuffix(".weight"), (shape[0], shape[1]))
        for name, shape in unet_tensors(net)
        if len(shape) == 2 and inside.search(name)
    ]


def sdxl_text_encoders() -> list[tuple[str, tuple[int, int]]]:
    """Lists the matrices that kohya adapts in SDXL's text encoders: its names, (out, in)."""
    found = []
    for component, layers, width in (("te1", 12, 768), ("te2", 32, 1280)):
        for layer in range(layers):
            stem = f"lora_{component}_text_model_encoder_layers_{layer}"
            found += [
                (f"{stem}_self_attn_{part}_proj", (width, width)) for part in ("q", "k", "v", "out")
            ]
            found += [
                (f"{stem}_mlp_fc1", (4 * width, width)),
                (f"{stem}_mlp_fc2", (width, 4 * width)),
            ]
    return found


def kohya_name(name: str, sgm: bool) -> str:
    """Spells a module as kohya does: flat, in diffusers names (SD) or in SGM names (SDXL)."""
    return "lora_unet_" + (name if sgm else diffusers_name(name)).replace(".", "_")
