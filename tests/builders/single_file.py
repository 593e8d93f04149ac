"""A diffusers folder of the Stable Diffusion line as one LDM file, as CompVis' code stores it."""

from __future__ import annotations

from os import PathLike

from loramerge.checkpoint import Checkpoint, open_checkpoint
from loramerge.errors import FamilyError
from loramerge.files.tensors import ArrayTensor, Tensor
from loramerge.files.writer import write_tensors

__all__ = ["ldm_vae_name", "write_single_file"]

_VAE = "first_stage_model."
_RESOLUTIONS = "decoder.up_blocks."


def write_single_file(
    folder: str | PathLike[str], path: str | PathLike[str], *, force: bool = False
) -> int:
    """Write a checkpoint as one file, names alone being changed; return the bytes written.

    Args:
        folder: a diffusers folder of a family whose single files store nothing fused (`sd15`,
            `tiny`).

    Raises:
        FamilyError: if it is of another family, or a parameter is missing.
        OutputExists: if the file exists and `force` is not set.
    """
    checkpoint = open_checkpoint(folder)
    tensors = _networks(checkpoint) | _vae(checkpoint)
    return write_tensors(path, sorted(tensors.items()), {"format": "pt"}, force=force)


def _networks(checkpoint: Checkpoint) -> dict[str, Tensor]:
    (family, *others) = checkpoint.candidates or (None,)
    if family is None or others:
        raise FamilyError("the family is not known", file=checkpoint.path)
    tensors: dict[str, Tensor] = {}
    for component in family.components:
        spelling = family.spellings[component.name][0]
        for module, parameter, slot in spelling.slots(component):
            name = f"{component.name}.{module.path}"
            places = checkpoint.slots.get((name, parameter))
            if spelling.layout != "ldm" or slot.parts > 1 or slot.transposed or not places:
                raise FamilyError(
                    "the checkpoint cannot be written as one file by changing names",
                    file=checkpoint.path,
                    module=f"{name}.{parameter}",
                )
            tensors[slot.tensor] = places[0].tensor
    return tensors


def _vae(checkpoint: Checkpoint) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    for file in checkpoint.files.weights:
        if file.component == "vae":
            stored |= file.open()[0]
    levels = {
        name.removeprefix(_RESOLUTIONS).partition(".")[0]
        for name in stored
        if name.startswith(_RESOLUTIONS)
    }
    found: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        path, _, parameter = name.rpartition(".")
        if ".attentions." in path and len(tensor.shape) == 2:
            tensor = ArrayTensor(tensor.numpy()[:, :, None, None])
        found[f"{_VAE}{ldm_vae_name(path, len(levels))}.{parameter}"] = tensor
    return found


# --- the names of the VAE, which no adapter touches ----------------------------------------------

_TOP = {"conv_norm_out": "norm_out"}
_SAMPLERS = {"downsamplers": "downsample", "upsamplers": "upsample"}
_RESNET = {"conv_shortcut": "nin_shortcut"}
_ATTENTION = {
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
}  # fmt: skip


def ldm_vae_name(path: str, resolutions: int) -> str:
    """Return the LDM name of a layer of diffusers' `AutoencoderKL`.

    Resolutions of the decoder are counted from the inside in diffusers and from the outside in LDM.
    The layers of the attention are matrices in diffusers and 1×1 convolutions in LDM.

    Args:
        resolutions: number of blocks each way, 4 in Stable Diffusion.

    Raises:
        KeyError: if the attention has no such layer.

    Source: the module order of CompVis' `diffusionmodules/model.py`, as read from checkpoints.
    """
    side, _, rest = path.partition(".")
    block, _, below = rest.partition(".")
    if block not in ("down_blocks", "up_blocks", "mid_block"):
        return f"{side}.{_TOP.get(block, block)}" if rest else side
    if block == "mid_block":
        sort, index, leaf = below.split(".", 2)
        if sort == "attentions":
            return f"{side}.mid.attn_1.{_ATTENTION[leaf]}"
        return f"{side}.mid.block_{int(index) + 1}.{_RESNET.get(leaf, leaf)}"
    number, sort, index, leaf = below.split(".", 3)
    if block == "up_blocks":
        number = str(resolutions - 1 - int(number))
    level = f"{side}.{block.partition('_')[0]}.{number}"
    if sort == "resnets":
        return f"{level}.block.{index}.{_RESNET.get(leaf, leaf)}"
    return f"{level}.{_SAMPLERS[sort]}.conv"
