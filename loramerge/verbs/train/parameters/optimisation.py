"""The optimisation: parameters of `train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from loramerge.parameters import Bounds
from loramerge.steps.parameters import Doc

__all__ = ["OptimisationParameters"]


@dataclass(frozen=True, kw_only=True)
class OptimisationParameters:
    """The optimisation."""

    steps: Annotated[int, Bounds(ge=1), Doc("Number of steps.")] = 1000
    epochs: Annotated[
        float | None, Bounds(gt=0), Doc("Length of the run in epochs, instead of --steps.")
    ] = None
    lr: Annotated[
        float | None,
        Bounds(gt=0),
        Doc(
            "Peak learning rate [default: 1e-4; 3e-5 for lion, 1 for prodigy and sgd].",
        ),
    ] = None
    text_lr: Annotated[
        float | None,
        Bounds(gt=0),
        Doc(
            "Peak learning rate of the text encoders [default: half of --lr; --lr for prodigy].",
        ),
    ] = None
    schedule: Annotated[
        Literal["constant", "linear", "cosine"],
        Doc("Learning rate schedule after the warm-up."),
    ] = "cosine"
    warmup: Annotated[
        float,
        Bounds(ge=0, lt=1),
        Doc("Share of the steps used for the warm-up, in which the learning rate rises."),
    ] = 0.05
    batch: Annotated[int, Bounds(ge=1), Doc("Images in a batch.")] = 1
    accumulate: Annotated[
        int, Bounds(ge=1), Doc("Batches whose gradients are accumulated for one step.")
    ] = 1
    optimizer: Annotated[
        str | None,
        Doc(
            "adamw, adamw8bit, prodigy, adafactor, lion, sgd, or the import path of a class, such as "
            "torch.optim.RAdam [default: adamw]."
        ),
    ] = None
    optimizer_option: Annotated[
        tuple[str, ...],
        Doc("Argument of the optimizer; may be repeated.", metavar="NAME=VALUE"),
    ] = ()
    weight_decay: Annotated[float, Bounds(ge=0), Doc("Weight decay.")] = 0.01
    lora_plus: Annotated[
        float, Bounds(gt=0), Doc("LoRA+: learning rate of up as a multiple of that of down.")
    ] = 1.0
    max_grad_norm: Annotated[
        float,
        Bounds(ge=0),
        Doc(
            "Clip gradients to this norm, taken over all of them together; 0: no clipping.",
            former=("clip",),
        ),
    ] = 1.0
    min_snr: Annotated[
        float | None,
        Bounds(gt=0),
        Doc("γ of min-SNR weighting (UNets), such as 5 [default: none]."),
    ] = None
    noise_offset: Annotated[
        float,
        Bounds(ge=0),
        Doc("Standard deviation of a constant added to each channel of the noise (UNets)."),
    ] = 0.0
    prediction: Annotated[
        Literal["epsilon", "v", "sample"] | None,
        Doc(
            "What a UNet predicts: the noise, v or the image [default: read from the base; from "
            "the keys v_pred and ztsnr, the header or the configuration of a single file]."
        ),
    ] = None
    timesteps: Annotated[
        str | None,
        Doc(
            "Times to train on: uniform or sigmoid, a range such as 200..800, shift=3; several "
            "with commas [default: the usual ones for the base].",
            metavar="WHICH",
        ),
    ] = None
    ema: Annotated[
        float | None,
        Bounds(gt=0, lt=1),
        Doc(
            "Write a moving average of the trained weights with this decay (such as 0.99) "
            "instead of the last ones."
        ),
    ] = None
    precision: Annotated[
        Literal["no", "bf16", "fp16"] | None,
        Doc(
            "Mixed precision: type of the base and the forward pass. Trained parameters stay float32 "
            "[default: bf16 on a GPU that has it, else no]."
        ),
    ] = None
    checkpointing: Annotated[
        Literal["on", "off"] | None,
        Doc(
            "Gradient checkpointing: compute activations again in the backward pass, which saves memory "
            "and costs time [default: on for a GPU].",
            result=False,
        ),
    ] = None
    vram: Annotated[
        str | None,
        Doc(
            "Memory that the run may use, such as 8GB. Chooses checkpointing, precision, "
            "optimizer and resolution unless they are given; if it is not enough, the error "
            "says how much is needed [default: the free memory; then only checkpointing is "
            "chosen].",
            metavar="SIZE",
            result=False,
            number=int,
        ),
    ] = None
    seed: Annotated[int, Bounds(ge=0), Doc("Seed of all random numbers.")] = 0
