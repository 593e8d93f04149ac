"""The specification of a run, in one group for each part of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from loramerge.adapter import Adapter
from loramerge.errors import UsageError
from loramerge.train.spec.settings import Init, Settings

__all__ = ["Data", "Prior", "Samples", "Spec", "Targets"]


@dataclass(frozen=True)
class Targets:
    """The trained part of the model.

    Args:
        method: `lora`, `dora`, `full` (the whole denoiser), or `blocks:PATTERN` (those parts of it).
        targets: a preset of layers; see `lora.targets.PRESETS`.
        text_encoder: train a LoRA of the text encoders, too.
    """

    method: str = "lora"
    rank: int = 16
    alpha: float | None = None
    targets: str | None = "attn-ff"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    dropout: float = 0.0
    init: Init = "kaiming"
    text_encoder: bool = False

    @property
    def kind(self) -> Literal["lora", "dora", "weights"]:
        """The kind of result that the method gives.

        Raises:
            UsageError: if there is no such method.
        """
        word, _, rest = self.method.partition(":")
        if word in ("lora", "dora") and not rest:
            return "lora" if word == "lora" else "dora"
        if (word == "full" and not rest) or (word == "blocks" and rest):
            return "weights"
        raise UsageError(
            f"{self.method!r} is not a method", expected="lora, dora, full, or blocks:PATTERN"
        )

    @property
    def blocks(self) -> tuple[str, ...]:
        """Patterns of the blocks whose weights are trained; none for all."""
        _, _, rest = self.method.partition(":")
        return tuple(part.strip() for part in rest.split(",") if part.strip())


@dataclass(frozen=True)
class Data:
    """The images and captions to train on.

    Args:
        images: folder of the images.
        regularisation_weight: of the loss on regularisation images.
        resolution: pixels of a square's side; None: what the base was made for.
        bucket_step: sides of buckets are multiples of it; None: 64, or what a small base needs.
        no_buckets: cut every image to a square.
        batch: images in a batch.
        clip_skip: CLIP's layer that is read, counted from the last, which is 1; None: the usual one.
        without: folders in which no image is looked for, because the run writes them.
    """

    images: Path
    trigger: str | None = None
    regularisation: Path | None = None
    regularisation_weight: float = 1.0
    repeats: int = 1
    shuffle_tags: bool = False
    keep_tokens: int | None = None
    tag_dropout: float = 0.0
    caption_dropout: float = 0.05
    resolution: int | None = None
    bucket_step: int | None = None
    no_buckets: bool = False
    batch: int = 1
    clip_skip: int | None = None
    without: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Prior:
    """Regularisation images that the base generates before it is trained.

    Args:
        regularisation_prompt: prompts, used in turn; without any, the captions without the trigger.
        regularisation_count: None: as many as images of the subject, at most `prior.MOST`.
        regularisation_guidance: guidance of the sampler; None: the architecture's default.
    """

    regularisation_prompt: tuple[str, ...] = ()
    regularisation_count: int | None = None
    regularisation_guidance: float | None = None
    sampler_steps: int = 25


@dataclass(frozen=True)
class Samples:
    """The samples generated during training, from step 0 on; each prompt has its own seed.

    Args:
        prompt: none takes the trigger, or the first caption.
        sample_every: steps; 0 draws none.
        guidance_rescale: see `sampling.Drawing`.
        sparing: decode in tiles, while the denoiser is not on the device.
    """

    prompt: tuple[str, ...] = ()
    negative: str = ""
    sample_seed: int = 0
    sample_every: int = 250
    sample_steps: int = 25
    guidance: float | None = None
    guidance_rescale: float | None = None
    sparing: bool = False


@dataclass(frozen=True)
class Spec:
    """A run.

    Args:
        base: a diffusers folder, or a single file.
        folder: where the run keeps its log, state, samples and report.
        cache: where latents and texts are kept.
        config, family: of a single file.
        prediction: what the base predicts, where it is not what it says.
        threads: of torch on the CPU.
        checkpointing: compute activations again in the backward pass; None: on a GPU.
        epochs: length of the run, in the place of the settings' steps; `warmup`: share of the steps.
        validation: share of the images that is held back; `validate_every`: steps between losses on it.
        init: adapter that a LoRA starts from.
        save_every: steps between numbered adapters; 0 keeps none. `save_epochs`: the same in epochs.
        state_every: steps between states that a killed run goes on from.
        resume: go on from the state that is there.
        tensorboard: write events of TensorBoard, too.
        origin: says all that the result follows from, but for the number of steps.
        former_origin: the same with the number of steps, as older states have it.
        prior: how the base generates regularisation images, where none are given.
        chosen: what was chosen for the memory given, for the log.
    """

    base: Path
    folder: Path
    cache: Path
    targets: Targets
    data: Data
    settings: Settings
    samples: Samples = Samples()
    config: Path | None = None
    family: str | None = None
    prediction: str | None = None
    checkpointing: bool | None = None
    device: str | None = None
    threads: int = 1
    epochs: float | None = None
    warmup: float = 0.0
    validation: float = 0.0
    validate_every: int = 100
    init: Adapter | None = None
    save_every: int = 0
    save_epochs: float | None = None
    state_every: int = 100
    resume: bool = False
    force: bool = False
    tensorboard: bool = False
    origin: str = ""
    former_origin: str | None = None
    prior: Prior | None = None
    chosen: Mapping[str, Any] | None = None
