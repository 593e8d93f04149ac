"""Predict the memory of a run, phase by phase: models from their shapes, passes by `train.memory.held`.

A GPU holds only the models of the current phase: all of them while the base generates regularisation
images, the VAE while images are encoded, the text encoders while captions are encoded. Then it holds the
trained model, and the VAE too while samples are generated. On a CPU all loaded models stay in memory.
The largest phase has to fit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch

from loramerge.errors import FormatError, Setting
from loramerge.train.dataset.arrange import bucket_step
from loramerge.train.dataset.buckets import Size, bucket_sizes
from loramerge.train.dataset.captions import Captioning
from loramerge.train.lora.modules import inject_trainable_lora, remove_lora
from loramerge.train.memory.base import Base, base_of
from loramerge.train.memory.budget import Choice
from loramerge.train.memory.estimate import denoiser_of, forward_of, made_trainable, shape_of
from loramerge.train.memory.held import bytes_of, call_peak, checkpointed, kept_and_peak, step_peak
from loramerge.train.models.tiles import TILE
from loramerge.train.spec.optimizers import optimizer_memory
from loramerge.train.spec.spec import Spec

__all__ = ["PHASES", "Measure", "Needs", "needs"]

_WIDE = 4  # bytes of what is trained, of its gradient, and of each running mean
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
_MORE = 1.05  # of what passes: allocators round up, and leave gaps
# bytes that a process has on a device beside tensors: context, kernels, workspaces of libraries
_OVERHEAD = {"cuda": 600_000_000}
PHASES = ("training", "samples", "regularisation", "images", "texts")


@dataclass(frozen=True)
class Needs:
    """Peak bytes on the device while images and texts are encoded, in training, and while drawing.

    Args:
        encoders: bytes of the text encoders in training; 0 where they are released before.
        regularisation: while the base generates such images; 0 where it does not.
    """

    images: int
    texts: int
    training: int
    samples: int
    encoders: int = 0
    regularisation: int = 0

    @property
    def peak(self) -> int:
        """The largest."""
        return max(int(getattr(self, name)) for name in PHASES)

    @property
    def largest(self) -> str:
        """Name of the phase that needs most."""
        return max(PHASES, key=lambda name: int(getattr(self, name)))


class Measure:
    """Predicts the memory of a run and of its variants.

    Args:
        spec: of the run; `device`: type of what it runs on.

    Attributes:
        resolution: that the run has; `step`: what sides are multiples of.

    Raises:
        FormatError: if the base's configurations are not there.
        UsageError: if the resolution is below what the model can draw.
    """

    def __init__(self, spec: Spec, device: str) -> None:
        folder = spec.config or spec.base
        shape = shape_of(folder)
        if shape is None:
            raise FormatError(
                "the memory of the run cannot be predicted: the base has no configurations",
                file=folder,
                hint=(
                    "for a single file give any diffusers folder of its family: ",
                    Setting("config"),
                ),
            )
        self._spec, self._device = spec, device
        self._base = base_of(folder, shape)
        self.resolution = spec.data.resolution or shape.resolution
        self.step = bucket_step(spec.data.bucket_step, shape.unit, self.resolution)
        bucket_sizes(self.resolution, self.step, several=False)

    def __call__(self, choice: Choice) -> Needs:
        """Return the needs of the run with a choice."""
        spec = replace(
            self._spec,
            checkpointing=choice.checkpointing,
            settings=replace(
                self._spec.settings, precision=choice.precision, optimizer=choice.optimizer
            ),
        )
        try:
            with warnings.catch_warnings():  # about slow kernels, of which none is started here
                warnings.simplefilter("ignore")
                return needs(spec, self._base, choice.resolution, self.step, self._device)
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            said = (str(error).splitlines() or [""])[0][:160]
            raise FormatError(
                f"the memory of the run cannot be predicted: {said}", file=self._spec.base
            ) from None

    def peak(self, choice: Choice) -> int:
        """Return the bytes of its largest phase."""
        return self(choice).peak


@dataclass(frozen=True)
class _Step:
    """Bytes in training: the model, shapes of the trained parameters, the passes, and sampling."""

    model: int
    shapes: tuple[tuple[int, ...], ...]
    passes: int
    drawing: int


def needs(spec: Spec, base: Base, resolution: int, step: int, device: str) -> Needs:
    """Return the memory that a run needs.

    The largest bucket is a square, so no image is looked at.

    Args:
        resolution: pixels of a square's side; `step`: what sides are multiples of.
        device: type of the device.
    """
    side = resolution // step * step
    size = (side, side)
    settings, own = spec.settings, _checkpointing(spec, device)
    narrow = settings.precision != "no" and spec.targets.kind != "weights"
    dtype = _HALF[settings.precision] if narrow else torch.float32
    found = base.once(
        (spec.targets, dtype, settings.precision, own, size, spec.data.batch,
         settings.accumulate > 1, spec.samples.sample_every > 0, _guided(base, spec.samples.guidance),
         device),
        lambda: _step(spec, base, size, dtype, own, device),
    )  # fmt: skip
    vae = bytes_of(base.vae.parameters())
    texts = sum(map(_numbers, base.encoders.values())) * dtype.itemsize
    stay = (
        spec.targets.text_encoder
        or Captioning(shuffle_tags=spec.data.shuffle_tags, tag_dropout=spec.data.tag_dropout).varies
    )
    encoders = texts if stay else 0
    trained = sum(map(math.prod, found.shapes))
    kept, passing = optimizer_memory(settings.optimizer, found.shapes, device)
    means = _WIDE * trained if settings.ema is not None else 0
    resting = found.model + kept + means + encoders
    together = device == "cpu"
    if together:
        first = _WIDE * trained if spec.targets.kind == "weights" else 0
        resting += vae + first
    working = max(found.passes, _WIDE * trained + passing)
    encoding = base.once(("vae", size, device), lambda: _pictures(base, size, device))
    decoding = base.once(("decoder", size, device), lambda: _decoding(base, size, device))
    drawing = 0
    if spec.samples.sample_every:
        held = resting + means + _WIDE * trained  # with the gradients of the step before
        sparing = spec.samples.sparing and not together
        if sparing:
            decoding = base.once(
                ("tile", size, device), lambda: _decoding(base, _tile(size), device)
            )
            held_decoding = held - found.model - _WIDE * trained + vae
        else:
            held_decoding = held + (0 if together else vae)
        drawing = max(held + found.drawing, held_decoding + decoding)
    loaded = found.model + texts + vae - _WIDE * trained * (spec.targets.kind != "weights")

    prior = 0
    if spec.prior is not None:
        guided = _guided(base, spec.prior.regularisation_guidance)
        drawn = base.once(
            ("prior", dtype, guided, size, device),
            lambda: _drawing(base, dtype, size, guided, device),
        )
        prior = max(decoding, drawn)

    def whole(count: int, passing: int = 0) -> int:
        return int(count + (_MORE - 1) * passing) + _OVERHEAD.get(device, 0)

    return Needs(
        images=whole((loaded if together else vae) + encoding, encoding),
        texts=whole(loaded if together else texts),
        training=whole(resting + working, working),
        samples=whole(drawing, max(found.drawing, decoding)) if drawing else 0,
        encoders=encoders,
        regularisation=whole(loaded + prior, prior) if prior else 0,
    )


def _checkpointing(spec: Spec, device: str) -> bool:
    return device == "cuda" if spec.checkpointing is None else spec.checkpointing


def _numbers(model: Any) -> int:
    return sum(value.numel() for value in model.parameters())


def _step(
    spec: Spec, base: Base, size: Size, dtype: Any, checkpointing: bool, device: str
) -> _Step:
    """Run a step, and the passes of the sampler, without values."""
    model = denoiser_of(base.shape)
    _cast(model, dtype)
    values = made_trainable(spec, model, base.shape).values()
    model.train()
    precision = spec.settings.precision
    if checkpointing:
        model.enable_gradient_checkpointing(checkpointed(device, precision))
    kept, trained_texts = _texts(spec, base, dtype, device)

    def passed(batch: int) -> Callable[[], Any]:
        return forward_of(base.shape, model, batch, size, dtype)

    passes = kept + step_peak(
        [model], passed(spec.data.batch), device=device, precision=precision,
        batches=min(2, spec.settings.accumulate),
    )  # fmt: skip
    drawing = 0
    if spec.samples.sample_every:
        model.eval()
        drawing = call_peak([model], passed(_guided(base, spec.samples.guidance)), device=device)
    shapes = tuple(tuple(value.shape) for value in [*values, *trained_texts])
    resting = bytes_of((*model.parameters(), *model.buffers())) + bytes_of(trained_texts)
    return _Step(resting, shapes, passes, drawing)


def _guided(base: Base, guidance: float | None) -> int:
    """Return the number of predictions in a step of the sampler."""
    kind = base.shape.architecture.guidance(base.shape.denoiser)
    return 2 if kind == "classifier-free" and guidance != 1 else 1


def _drawing(base: Base, dtype: Any, size: Size, batch: int, device: str) -> int:
    """Return the bytes that predictions of a sampler's step need, of the base as it is."""
    model = denoiser_of(base.shape)
    _cast(model, dtype)
    model.requires_grad_(False)
    passes = forward_of(base.shape, model, batch, size, dtype)
    return call_peak([model], passes, device=device)


def _cast(model: Any, dtype: Any) -> None:
    for value in (*model.parameters(), *model.buffers()):
        if value.is_floating_point():
            value.data = value.data.to(dtype)


def _texts(spec: Spec, base: Base, dtype: Any, device: str) -> tuple[int, list[Any]]:
    """Return the bytes that text encoders leave for the backward pass, and their trained values."""
    if not spec.targets.text_encoder:
        return 0, []
    targets, kept = spec.targets, 0
    trained: list[Any] = []
    known = base.shape.architecture.encoders
    for name, encoder in base.encoders.items():
        _cast(encoder, dtype)
        if not known[name].trained:
            continue
        groups, _ = inject_trainable_lora(
            encoder, targets.rank, alpha=targets.alpha, preset="attn-ff",
            exclude=base.shape.architecture.unread_text(encoder, spec.data.clip_skip),
            rslora=targets.rslora,
            dropout_p=targets.dropout, decompose=targets.kind == "dora",
        )  # fmt: skip
        try:
            tokens = torch.zeros(spec.data.batch, base.tokens, dtype=torch.long, device="meta")
            held, _ = kept_and_peak(
                [encoder], partial(encoder, tokens), device=device,
                precision=spec.settings.precision,
            )  # fmt: skip
        finally:
            remove_lora(encoder)
        kept += held
        trained += chain(*groups)
    return kept, trained


def _pictures(base: Base, size: Size, device: str) -> int:
    def encode() -> None:
        pixels = torch.empty(1, 3, size[1], size[0], device="meta")
        base.vae.encode(pixels).latent_dist.std.cpu  # noqa: B018 - mean and deviation are made

    return call_peak([base.vae], encode, device=device)


def _tile(size: Size) -> Size:
    """Return the largest part of an image that is decoded at once in tiles."""
    return min(size[0], TILE), min(size[1], TILE)


def _decoding(base: Base, size: Size, device: str) -> int:
    factor = base.shape.factor
    channels = base.vae.config.latent_channels
    latents = (1, channels, size[1] // factor, size[0] // factor)
    return call_peak(
        [base.vae], lambda: base.vae.decode(torch.empty(latents, device="meta")), device=device
    )
