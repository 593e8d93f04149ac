"""The images and their captions: parameters of `train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loramerge.parameters import Bounds
from loramerge.steps.parameters import Doc

__all__ = ["ImageParameters"]


@dataclass(frozen=True, kw_only=True)
class ImageParameters:
    """The images and their captions."""

    resolution: Annotated[
        int | None,
        Bounds(ge=8),
        Doc("Side of a square image; other ratios have as many pixels [default: the base's]."),
    ] = None
    bucket_step: Annotated[
        int | None,
        Bounds(ge=1),
        Doc("Sides of buckets are multiples of this [default: 64, or what a small base needs]."),
    ] = None
    no_buckets: Annotated[bool, Doc("Crop every image to a square.")] = False
    repeats: Annotated[
        int,
        Bounds(ge=1),
        Doc("Times that each image occurs in an epoch, unless its folder's name gives a number."),
    ] = 1
    regularisation: Annotated[
        str,
        Doc(
            "Regularisation images (prior preservation): examples of what the model should "
            "keep; they are half of the images in training. A folder, auto (the base generates "
            "them before training), or none.",
            metavar="auto|DIR|none",
            completes="folders",
            words=("auto", "none"),
        ),
    ] = "none"
    regularisation_prompt: Annotated[
        tuple[str, ...],
        Doc(
            "With auto: prompt of these images, such as 'a photo of a cat'; may be repeated [default: "
            "the captions without the trigger].",
            metavar="TEXT",
        ),
    ] = ()
    regularisation_count: Annotated[
        int | None,
        Bounds(ge=1),
        Doc(
            "With auto: number of images [default: the number of the subject's images, at most "
            "200]."
        ),
    ] = None
    regularisation_guidance: Annotated[
        float | None,
        Bounds(ge=1),
        Doc("With auto: their classifier-free guidance; 1 is none [default: that of the samples]."),
    ] = None
    regularisation_weight: Annotated[
        float, Bounds(gt=0), Doc("Weight of the loss on regularisation images.")
    ] = 1.0
    shuffle_tags: Annotated[
        bool, Doc("Shuffle the tags of a caption (its parts between commas) each time.")
    ] = False
    keep_tokens: Annotated[
        int | None,
        Bounds(ge=0),
        Doc(
            "Number of tags at the front that are never shuffled or dropped; the trigger's tags "
            "never are [default: none]."
        ),
    ] = None
    tag_dropout: Annotated[
        float, Bounds(ge=0, le=1), Doc("Probability with which a tag is dropped.")
    ] = 0.0
    caption_dropout: Annotated[
        float,
        Bounds(ge=0, le=1),
        Doc("Probability with which an image is shown without its caption."),
    ] = 0.05
    validation: Annotated[
        float,
        Bounds(ge=0, lt=1),
        Doc(
            "Share of the subject's images that is held back: the loss on them, always with the "
            "same noise, is in the log and in the report."
        ),
    ] = 0.0
    # text, because in older headers a number counts from 0; see `steps.provenance.recipe_in`
    clip_skip: Annotated[
        str | int | None,
        Doc(
            "Layer of the text encoder that is used, counted from the last as in kohya's "
            "scripts: 1 is the last, 2 the one before (SD1, SD2) [default: 1].",
            metavar="N",
            number=int,
        ),
    ] = None
