"""The parameters of `preview`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from loramerge.errors import Setting, UsageError
from loramerge.parameters import Bounds
from loramerge.steps.parameters import Doc
from loramerge.steps.references import Reference
from loramerge.steps.writing import Force

__all__ = ["Preview", "check_name"]


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Generate images with adapters, side by side.

    Columns are the base alone and each adapter at each weight; rows are prompts and seeds. All images of
    a row start from the same noise, so columns can be compared. Nothing is baked.
    """

    adapters: Annotated[
        tuple[Reference, ...],
        Doc("Adapters with weights: NAME:0.8.", ("ADAPTER",), None, "adapters"),
    ] = ()
    base: Annotated[
        tuple[str, ...],
        Doc(
            "Model to generate with: a diffusers folder, a single file, or a registered name; may be "
            "repeated.",
            ("--base", "-b"),
            "BASE",
            "bases",
        ),
    ]
    baked: Annotated[
        tuple[str, ...],
        Doc(
            "Further model, shown beside these without adapters, such as the result of bake; may be "
            "repeated.",
            metavar="BASE",
            completes="bases",
        ),
    ] = ()
    prompt: Annotated[
        tuple[str, ...],
        Doc("Prompt; may be repeated [default: no prompt].", ("--prompt", "-p"), "TEXT"),
    ] = ()
    seed: Annotated[
        tuple[int, ...], Bounds(ge=0), Doc("Seed of the noise; may be repeated [default: 0].")
    ] = ()
    weight: Annotated[
        tuple[str, ...],
        Doc(
            "Show every adapter at this weight, times its own; several with commas, such as 0.5,1,1.5; "
            "may be repeated [default: 1].",
            ("--weight", "-w"),
            "W",
            number=float,
        ),
    ] = ()
    together: Annotated[bool, Doc("Apply all adapters at once, in one column.")] = False
    no_base: Annotated[bool, Doc("Leave out the column of the base alone.")] = False
    negative: Annotated[str, Doc("Negative prompt.")] = ""
    size: Annotated[
        int | None,
        Bounds(ge=8),
        Doc("Side of an image in pixels [default: the base's resolution]."),
    ] = None
    steps: Annotated[int, Bounds(ge=1, le=1000), Doc("Steps of the sampler.")] = 25
    sampler: Annotated[
        Literal["ddim", "euler", "euler-a", "heun", "dpm++", "dpm++-karras", "unipc"] | None,
        Doc("Sampler, for SD1, SD2 and SDXL [default: ddim]."),
    ] = None
    guidance: Annotated[
        float | None,
        Bounds(ge=1),
        Doc(
            "Classifier-free guidance; for Flux.1 dev the guidance that is an input of the "
            "model; 1 is none [default: 7; 3.5 for Flux.1 dev, none for schnell]."
        ),
    ] = None
    guidance_rescale: Annotated[
        float | None,
        Bounds(ge=0, le=1),
        Doc(
            "Guidance rescale, from 0 to 1; weakens oversaturated colours on a base with zero "
            "terminal SNR [default: 0.7 there, else 0]."
        ),
    ] = None
    clip_skip: Annotated[
        int | None,
        Bounds(ge=1),
        Doc(
            "Layer of the text encoder that is used, counted from the last as in kohya's "
            "scripts: 1 is the last, 2 the one before (SD1, SD2) [default: 1]."
        ),
    ] = None
    prediction: Annotated[
        Literal["epsilon", "v", "sample"] | None,
        Doc("What a UNet predicts: the noise, v or the image [default: read from the base]."),
    ] = None
    config: Annotated[
        str | None,
        Doc(
            "For single files: any diffusers folder of their family, for configurations and "
            "tokenizers.",
            metavar="DIR",
            completes="bases",
        ),
    ] = None
    html: Annotated[bool, Doc("Also write an HTML page beside the image.")] = False
    output: Annotated[
        str | None,
        Doc("PNG file to write [default: preview of the adapters].", ("--output", "-o"), "FILE",
            recipe=False, path=True),
    ] = None  # fmt: skip
    force: Force = False

    def check(self) -> None:
        """Refuse contradictory parameters before any file is opened.

        Raises:
            UsageError: naming the problem.
        """
        if not self.base:
            raise UsageError("preview needs a base", hint=("give ", Setting("base")))
        if self.no_base and not self.adapters:
            raise UsageError("without adapters and without the base there is nothing to show")
        if self.output is not None:
            check_name(Path(self.output))
        self.weights()

    def weights(self) -> tuple[float, ...]:
        """Return the weights to show every adapter at.

        Raises:
            UsageError: if one is not a finite number.
        """
        found = []
        for part in (one.strip() for text in self.weight for one in str(text).split(",")):
            try:
                found.append(float(part))
            except ValueError:
                found.append(math.nan)
            if not math.isfinite(found[-1]):
                raise UsageError(f"{part!r} is not a weight", expected="numbers such as 0.5,1,1.5")
        return tuple(found) or (1.0,)


def check_name(path: Path) -> None:
    """Refuse the name of a file that is not a PNG file.

    Raises:
        UsageError: naming a PNG file.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(
            "a preview is a PNG file",
            file=path,
            hint=("give ", Setting("output", str(path.with_suffix(".png")))),
        )
