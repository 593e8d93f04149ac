"""Prepare a run: its images and their latents, the states of its texts, and what is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from loramerge.errors import Setting, UsageError, listed
from loramerge.events import Notify, Warn, ignore
from loramerge.files.digest import sha256_of_file
from loramerge.train.dataset.arrange import Arranged, arrange
from loramerge.train.dataset.cache import TensorCache
from loramerge.train.device.placing import placed
from loramerge.train.device.workers import Workers
from loramerge.train.drawing.prior import draw_prior
from loramerge.train.lora.modules import inject_trainable_lora
from loramerge.train.lora.trainees import Branches, Trainee, Weights
from loramerge.train.models.latents import Latents
from loramerge.train.models.pipeline import Pipeline
from loramerge.train.models.refusals import refuse_large
from loramerge.train.models.texts import Texts
from loramerge.train.preamble import arrange_images
from loramerge.train.spec.spec import Spec, Targets

__all__ = [
    "arranged_images",
    "base_dtype",
    "begin_checkpointing",
    "encoded_images",
    "encoded_texts",
    "trained_encoders",
    "trainee_of",
    "warn_of_empty",
]

_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def base_dtype(spec: Spec) -> Any:
    """Return the type of the base; where its own weights are trained, autocast alone narrows it."""
    if spec.targets.kind == "weights":
        return torch.float32
    return _DTYPES[spec.settings.precision]


def arranged_images(
    spec: Spec, pipeline: Pipeline, device: Any, workers: Workers, notify: Notify
) -> Arranged:
    """Find the images; draw those of regularisation first, if the base is to make them."""
    size = pipeline.unit, pipeline.resolution
    found, missing = arrange_images(spec, *size, notify)
    refuse_large(pipeline.architecture, pipeline.denoiser.config, pipeline.factor, found.buckets)
    if not missing:
        return found
    with placed(device, pipeline.vae, *pipeline.models.values()):
        folder = draw_prior(spec, pipeline, missing, workers, notify)
    data = replace(spec.data, regularisation=folder)
    return arrange(data, *size, spec.settings.seed, ignore)


def warn_of_empty(arranged: Arranged, notify: Notify) -> None:
    """Warn of images without a caption."""
    subject = arranged.dataset.subject
    empty = sum(not arranged.captioning.whole(picture) for picture in subject)
    if empty:
        notify(
            Warn(
                (
                    f"{empty} of {len(subject)} images have no caption. Give them one with ",
                    Setting("trigger"),
                    ".",
                )
            )
        )


def encoded_images(
    spec: Spec, pipeline: Pipeline, arranged: Arranged, workers: Workers, notify: Notify
) -> tuple[Latents, Arranged]:
    """Encode the images, in one process, and leave out those that turn out to be unreadable."""
    cache = TensorCache(spec.cache, "latents")
    latents = Latents(pipeline, cache, sha256_of_file)
    if workers.first:
        broken = latents.prepare(arranged.asked, notify)
        if broken:
            names = listed([path.name for path in broken], 5)
            notify(Warn(f"left out, because they are truncated or damaged: {names}"))
    workers.wait()
    if not workers.first:
        cache.refresh()
        broken = latents.prepare(arranged.asked)
    return latents, arranged.without(broken)


def trainee_of(
    targets: Targets, pipeline: Pipeline, seed: int, skip: int | None, notify: Notify
) -> Trainee:
    """Make what is to be trained trainable."""
    kind = targets.kind
    if kind == "weights":
        if targets.text_encoder:
            raise UsageError(
                "text encoders can only be trained with a LoRA",
                hint=("leave out ", Setting("text_encoder", True)),
            )
        architecture = pipeline.architecture
        unread = architecture.unread(pipeline.denoiser.config)
        return Weights(pipeline.denoiser, targets.blocks, architecture.component, unread)
    with torch.random.fork_rng(devices=[]):  # what is drawn is drawn on the CPU
        torch.manual_seed(seed)
        return _injected(targets, pipeline, skip, notify)


def _injected(targets: Targets, pipeline: Pipeline, skip: int | None, notify: Notify) -> Branches:
    decompose = targets.kind == "dora"
    architecture = pipeline.architecture
    inject_trainable_lora(
        pipeline.denoiser,
        targets.rank,
        alpha=targets.alpha,
        preset=targets.targets,
        include=targets.include,
        exclude=(*targets.exclude, *architecture.unread(pipeline.denoiser.config)),
        rank_pattern=targets.rank_pattern,
        alpha_pattern=targets.alpha_pattern,
        rslora=targets.rslora,
        dropout_p=targets.dropout,
        init=targets.init,
        decompose=decompose,
        notify=notify,
    )
    models = {architecture.component: pipeline.denoiser}
    if targets.text_encoder:
        for name, encoder in trained_encoders(pipeline).items():
            inject_trainable_lora(
                encoder,
                targets.rank,
                alpha=targets.alpha,
                preset="attn-ff",
                exclude=architecture.unread_text(encoder, skip),
                rslora=targets.rslora,
                dropout_p=targets.dropout,
                init=targets.init,
                decompose=decompose,
                notify=notify,
            )
            models[name] = encoder
    return Branches(models)


def trained_encoders(pipeline: Pipeline) -> dict[str, Any]:
    """Return component → text encoder of those that can be trained."""
    known = pipeline.architecture.encoders
    return {name: one for name, one in pipeline.encoders.items() if known[name].trained}


def encoded_texts(
    spec: Spec,
    pipeline: Pipeline,
    arranged: Arranged,
    prompts: Sequence[str],
    workers: Workers,
    notify: Notify,
) -> Texts:
    """Return states of texts: encoded once and the encoders released, unless captions vary."""
    skip = spec.data.clip_skip
    if spec.targets.text_encoder or arranged.captioning.varies:
        return Texts(pipeline, None, skip)
    cache = TensorCache(spec.cache, "texts")
    texts = Texts(pipeline, cache, skip)
    if workers.first:
        texts.prepare([*arranged.captions(), *prompts], notify)
    workers.wait()
    if not workers.first:
        cache.refresh()
    pipeline.release_encoders()
    return texts


def begin_checkpointing(spec: Spec, pipeline: Pipeline, device: Any) -> None:
    """Compute activations again in the backward pass, where the spec or the device asks for it."""
    wanted = spec.checkpointing
    if wanted if wanted is not None else device.type == "cuda":
        pipeline.denoiser.enable_gradient_checkpointing()  # not reentrant, so that no gradient is cut
