"""The UNet of Stable Diffusion as templates: blocks, their layers, and their LDM names.

Every UNet of the SD1, SD2 and SDXL line is `Unet(...)` with other numbers. `modules` expands the
templates below with diffusers names; `ldm_name` gives the name of the same layer in the original
(LDM/SGM) single files.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from loramerge.families.spec import Layer, Module, Parameter, Slot
from loramerge.records import record, row_maker

__all__ = ["Unet", "ldm_name", "ldm_slot", "unet_modules"]


@record
class Unet:
    """The numbers that tell one Stable Diffusion UNet from another.

    Args:
        widths: channels of each resolution, outermost first.
        depths: transformer blocks per attention of each down block (0: no attention); up blocks
            mirror them.
        mid_depth: transformer blocks of the middle attention.
        context: width of the text embeddings that cross-attention reads.
        linear_projection: proj_in and proj_out are linear (SD2, SDXL) rather than 1×1 convolutions.
        added: input width of `add_embedding` (SDXL), or None.
        layers: resnets per down block; up blocks have one more.
        channels: latent channels in and out.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    mid_depth: int
    context: int
    linear_projection: bool
    added: int | None = None
    layers: int = 2
    channels: int = 4

    @cached_property
    def ldm_attentions(self) -> dict[str, str]:
        """Path of an attention → its LDM name, of those that `ldm_name` was asked for."""
        return {}


_module = row_maker(Module)

# name below the block · layer · (out, in) in units named by the caller · has a bias
_RESNET: tuple[tuple[str, Layer, tuple[str, ...], bool], ...] = (
    ("norm1", "norm", ("in",), True),
    ("conv1", "conv", ("out", "in", "3", "3"), True),
    ("time_emb_proj", "linear", ("out", "time"), True),
    ("norm2", "norm", ("out",), True),
    ("conv2", "conv", ("out", "out", "3", "3"), True),
)
_SHORTCUT: tuple[str, Layer, tuple[str, ...], bool] = (
    "conv_shortcut", "conv", ("out", "in", "1", "1"), True,
)  # fmt: skip
_TRANSFORMER: tuple[tuple[str, Layer, tuple[str, ...], bool], ...] = (
    ("norm1", "norm", ("w",), True),
    ("attn1.to_q", "linear", ("w", "w"), False),
    ("attn1.to_k", "linear", ("w", "w"), False),
    ("attn1.to_v", "linear", ("w", "w"), False),
    ("attn1.to_out.0", "linear", ("w", "w"), True),
    ("norm2", "norm", ("w",), True),
    ("attn2.to_q", "linear", ("w", "w"), False),
    ("attn2.to_k", "linear", ("w", "context"), False),
    ("attn2.to_v", "linear", ("w", "context"), False),
    ("attn2.to_out.0", "linear", ("w", "w"), True),
    ("norm3", "norm", ("w",), True),
    ("ff.net.0.proj", "linear", ("8w", "w"), True),
    ("ff.net.2", "linear", ("w", "4w"), True),
)


def _sized(
    rows: tuple[tuple[str, Layer, tuple[str, ...], bool], ...], sizes: dict[str, int]
) -> list[tuple[str, Layer, tuple[int, ...], bool]]:
    """Give template rows their shapes; a size is a name in `sizes` or a number."""
    return [
        (name, layer, tuple([sizes[dim] if dim in sizes else int(dim) for dim in dims]), bias)
        for name, layer, dims, bias in rows
    ]


def _resnet(prefix: str, width_in: int, width_out: int, time: int) -> Iterator[Module]:
    rows = _RESNET if width_in == width_out else (*_RESNET, _SHORTCUT)
    sizes = {"in": width_in, "out": width_out, "time": time}
    for name, layer, dims, bias in _sized(rows, sizes):
        yield _module((f"{prefix}.{name}", layer, dims, bias))


def _attention(prefix: str, width: int, depth: int, unet: Unet) -> Iterator[Module]:
    projection: Layer = "linear" if unet.linear_projection else "conv"
    shape = (width, width) if unet.linear_projection else (width, width, 1, 1)
    sizes = {"w": width, "4w": 4 * width, "8w": 8 * width, "context": unet.context}
    yield Module(f"{prefix}.norm", "norm", (width,), True)
    yield Module(f"{prefix}.proj_in", projection, shape, True)
    rows = _sized(_TRANSFORMER, sizes)
    for block in range(depth):
        for name, layer, dims, bias in rows:
            path = f"{prefix}.transformer_blocks.{block}.{name}"
            yield _module((path, layer, dims, bias))
    yield Module(f"{prefix}.proj_out", projection, shape, True)


def unet_modules(unet: Unet) -> Iterator[Module]:
    """Yield every layer of the UNet with its diffusers path and full-width shape."""
    widths, last = unet.widths, len(unet.widths) - 1
    time = 4 * widths[0]
    yield Module("conv_in", "conv", (widths[0], unet.channels, 3, 3), True)
    yield Module("time_embedding.linear_1", "linear", (time, widths[0]), True)
    yield Module("time_embedding.linear_2", "linear", (time, time), True)
    if unet.added is not None:
        yield Module("add_embedding.linear_1", "linear", (time, unet.added), True)
        yield Module("add_embedding.linear_2", "linear", (time, time), True)
    skips = [widths[0]]
    for b, width in enumerate(widths):
        for i in range(unet.layers):
            yield from _resnet(f"down_blocks.{b}.resnets.{i}", _down_in(widths, b, i), width, time)
            skips.append(width)
        if unet.depths[b]:
            for i in range(unet.layers):
                yield from _attention(
                    f"down_blocks.{b}.attentions.{i}", width, unet.depths[b], unet
                )
        if b < last:
            path = f"down_blocks.{b}.downsamplers.0.conv"
            yield Module(path, "conv", (width, width, 3, 3), True)
            skips.append(width)
    middle = widths[-1]
    yield from _resnet("mid_block.resnets.0", middle, middle, time)
    yield from _attention("mid_block.attentions.0", middle, unet.mid_depth, unet)
    yield from _resnet("mid_block.resnets.1", middle, middle, time)
    incoming = middle
    for b, width in enumerate(reversed(widths)):
        depth = unet.depths[last - b]
        for i in range(unet.layers + 1):
            path = f"up_blocks.{b}.resnets.{i}"
            yield from _resnet(path, incoming + skips.pop(), width, time)
            incoming = width
        if depth:
            for i in range(unet.layers + 1):
                yield from _attention(f"up_blocks.{b}.attentions.{i}", width, depth, unet)
        if b < last:
            path = f"up_blocks.{b}.upsamplers.0.conv"
            yield Module(path, "conv", (width, width, 3, 3), True)
    yield Module("conv_norm_out", "norm", (widths[0],), True)
    yield Module("conv_out", "conv", (unet.channels, widths[0], 3, 3), True)


def _down_in(widths: tuple[int, ...], block: int, resnet: int) -> int:
    return widths[block] if resnet else widths[max(block - 1, 0)]


_TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET_LEAVES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def ldm_name(path: str, unet: Unet) -> str:
    """Return the LDM/SGM name of a layer.

    Input blocks count the stem, then `layers` resnets (each with its attention) and the downsampler
    of every resolution; output blocks count `layers + 1` resnets of every resolution, and the
    upsampler is the last child of the resolution's last block.

    Raises:
        KeyError: if the UNet has no such layer.

    Source: the module order of CompVis' and Stability's `openaimodel.py`, as read from checkpoints.
    """
    attention, level, rest = path.partition(".transformer_blocks.")
    if level:  # nine in ten layers, and most of what a look-up takes is the name of the attention
        known = unet.ldm_attentions.get(attention)
        if known is None:
            known = unet.ldm_attentions[attention] = ldm_name(f"{attention}.", unet)[:-1]
        return f"{known}{level}{rest}"
    if path in _TOP:
        return _TOP[path]
    if path.startswith("mid_block."):
        _, sort, index, leaf = path.split(".", 3)
        if sort == "attentions":
            return f"middle_block.1.{leaf}"
        return f"middle_block.{2 * int(index)}.{_RESNET_LEAVES[leaf]}"
    side, block, sort, index, leaf = path.split(".", 4)
    b, i, per_block = int(block), int(index), unet.layers + 1
    if sort == "downsamplers":
        return f"input_blocks.{per_block * b + per_block}.0.op"
    if sort == "upsamplers":
        attended = unet.depths[len(unet.widths) - 1 - b] > 0
        return f"output_blocks.{per_block * b + per_block - 1}.{2 if attended else 1}.conv"
    number = per_block * b + i
    first = f"input_blocks.{number + 1}" if side == "down_blocks" else f"output_blocks.{number}"
    if sort == "attentions":
        return f"{first}.1.{leaf}"
    return f"{first}.0.{_RESNET_LEAVES[leaf]}"


def ldm_slot(unet: Unet, module: Module, parameter: Parameter) -> Slot:
    """Return the slot of a UNet parameter in an LDM file."""
    return Slot(f"{ldm_name(module.path, unet)}.{parameter}")
