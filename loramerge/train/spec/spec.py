"""Everything that a run is told, in the groups that its parts take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from loramerge.errors import UsageError
from loramerge.train.spec.settings import Init, Settings

__all__ = ["Pictures", "Prior", "Samples", "Spec", "Targets"]


@dataclass(frozen=True)
class Targets:
    """What is trained.

    Args:
        method: `lora`, `dora`, `full` (the whole denoiser), or `blocks:PATTERN` (those parts of it).
        text: whether the text encoders get a LoRA, too.
    """

    method: str = "lora"
    rank: int = 16
    alpha: float | None = None
    preset: str | None = "attn-ff"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    dropout: float = 0.0
    init: Init = "kaiming"
    text: bool = False

    @property
    def kind(self) -> Literal["lora", "dora", "weights"]:
        """What the method makes.

        Raises:
            UsageError: if there is no such method.
        """
        word, _, rest = self.method.partition(":")
        if word in ("lora", "dora") and not rest:
            return "lora" if word == "lora" else "dora"
        if (word == "full" and not rest) or (word == "blocks" and rest):
            return "weights"
        raise UsageError(
            f"{self.method!r} is no method", expected="lora, dora, full, or blocks:PATTERN"
        )

    @property
    def blocks(self) -> tuple[str, ...]:
        """Patterns of the blocks whose weights are trained; none for all."""
        _, _, rest = self.method.partition(":")
        return tuple(part.strip() for part in rest.split(",") if part.strip())


@dataclass(frozen=True)
class Pictures:
    """What is trained on.

    Args:
        weight: of the loss on regularisation pictures.
        resolution: pixels of a square's side; None: what the base was made for.
        unit: sides of buckets are multiples; None: 64, or what a small base needs.
        buckets: False cuts squares.
        batch: pictures in a batch.
    """

    folder: Path
    trigger: str | None = None
    regularisation: Path | None = None
    weight: float = 1.0
    repeats: int = 1
    shuffle: bool = False
    keep: int | None = None
    tag_dropout: float = 0.0
    dropout: float = 0.05
    resolution: int | None = None
    unit: int | None = None
    buckets: bool = True
    batch: int = 1
    skip: int | None = None


@dataclass(frozen=True)
class Prior:
    """Regularisation pictures that the base itself draws before anything is trained.

    Args:
        prompts: taken in turn; none takes the subject's captions without the trigger.
        count: None: as many as there are of the subject, `prior.MOST` at most.
        steps, guidance: of the sampler.
    """

    prompts: tuple[str, ...] = ()
    count: int | None = None
    steps: int = 25
    guidance: float | None = None


@dataclass(frozen=True)
class Samples:
    """What is drawn while it runs: each prompt from a seed of its own, from step 0 on.

    Args:
        prompts: none takes the trigger, or the first caption.
        every: steps; 0 draws none.
        rescale: see `sampling.Drawing`.
    """

    prompts: tuple[str, ...] = ()
    negative: str = ""
    seed: int = 0
    every: int = 250
    steps: int = 25
    guidance: float | None = None
    rescale: float | None = None


@dataclass(frozen=True)
class Spec:
    """A run.

    Args:
        base: a diffusers folder, or a single file.
        folder: where the run keeps its log, state, samples and report.
        cache: where latents and texts are kept.
        config, family: of a single file.
        threads: of torch on the CPU; None leaves them as they are.
        checkpointing: compute activations again in the backward pass; None: on a GPU.
        save_every: steps between numbered adapters; 0 keeps none.
        state_every: steps between states that a killed run goes on from.
        resume: go on from the state that is there.
        board: write events of TensorBoard, too.
        origin: says all that the result follows from.
        prior: how the base draws regularisation pictures, where none are given.
        chosen: what was chosen for the memory given, for the log.
    """

    base: Path
    folder: Path
    cache: Path
    targets: Targets
    pictures: Pictures
    settings: Settings
    samples: Samples = Samples()
    config: Path | None = None
    family: str | None = None
    checkpointing: bool | None = None
    device: str | None = None
    threads: int | None = None
    save_every: int = 0
    state_every: int = 100
    resume: bool = False
    force: bool = False
    board: bool = False
    origin: str = ""
    prior: Prior | None = None
    chosen: Mapping[str, Any] | None = None
