"""The base, the images and the trained part: parameters of `train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from loramerge.parameters import Bounds
from loramerge.steps.parameters import Doc

__all__ = ["ModelParameters"]


@dataclass(frozen=True, kw_only=True)
class ModelParameters:
    """The base, the images and the trained part."""

    base: Annotated[
        str,
        Doc(
            "Model to train on: a diffusers folder, a single file, or a registered name.",
            ("--base", "-b"),
            "BASE",
            "bases",
        ),
    ]
    images: Annotated[
        str,
        Doc(
            "Folder of images. Captions are read from .txt or .caption files of the same names, or from "
            "metadata.jsonl. A folder named as in kohya's scripts (10_words) gives repeats and caption.",
            ("--images",),
            "DIR",
            "folders",
        ),
    ]
    trigger: Annotated[
        str | None,
        Doc(
            "Words for the subject. They replace [trigger] in a caption; a caption without "
            "[trigger] and without these words gets them in front; an image without a caption "
            "gets only them.",
            metavar="WORDS",
        ),
    ] = None
    config: Annotated[
        str | None,
        Doc(
            "For a single file: any diffusers folder of its family, for configurations and "
            "tokenizers.",
            metavar="DIR",
            completes="bases",
        ),
    ] = None
    method: Annotated[
        str,
        Doc(
            "lora, dora, full (all weights of the UNet or transformer), or blocks:PATTERN (the weights "
            "of some blocks, such as blocks:up_blocks). For the last two the difference to the base is "
            "written.",
        ),
    ] = "lora"
    rank: Annotated[int, Bounds(ge=1), Doc("Rank of the LoRA.", ("--rank", "-r"))] = 16
    alpha: Annotated[
        float | None, Bounds(gt=0), Doc("The scale is alpha / rank [default: the rank].")
    ] = None
    targets: Annotated[
        str,
        Doc(
            "Layers that get a LoRA: attn, attn-only, attn-ff, attn-resnet, resnet, full-linear or "
            "full. The names of LyCORIS are accepted too.",
            metavar="PRESET",
        ),
    ] = "attn-ff"
    include: Annotated[
        tuple[str, ...],
        Doc(
            "Take only those of these layers whose names match; may be repeated.", metavar="PATTERN"
        ),
    ] = ()
    exclude: Annotated[
        tuple[str, ...],
        Doc("Leave out layers whose names match; may be repeated.", metavar="PATTERN"),
    ] = ()
    rank_pattern: Annotated[
        tuple[str, ...],
        Doc("Another rank for layers whose names match; may be repeated.", metavar="PATTERN=RANK"),
    ] = ()
    alpha_pattern: Annotated[
        tuple[str, ...],
        Doc(
            "Another alpha for layers whose names match; may be repeated.", metavar="PATTERN=ALPHA"
        ),
    ] = ()
    rslora: Annotated[bool, Doc("Scale by alpha / √rank.")] = False
    dropout: Annotated[
        float, Bounds(ge=0, lt=1), Doc("Dropout on the input of the LoRA in training.")
    ] = 0.0
    init_from: Annotated[
        str | None,
        Doc(
            "Adapter that the LoRA starts from, such as an earlier result; its ranks may be lower.",
            metavar="ADAPTER",
            completes="adapters",
        ),
    ] = None
    init: Annotated[Literal["kaiming", "gaussian"], Doc("Initial values of down; up is zero.")] = (
        "kaiming"
    )
    text_encoder: Annotated[
        bool, Doc("Train a LoRA of the CLIP text encoders too; T5 stays frozen.")
    ] = False
    save_rank: Annotated[
        int | None,
        Bounds(ge=1),
        Doc(
            "Reduce the result to this rank by SVD before it is written [default: the rank of training; "
            "the whole difference for full and blocks]."
        ),
    ] = None
