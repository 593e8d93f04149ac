"""The making of the tiny model: `python -m loramerge.tiny build FOLDER` does it from nothing.

The VAE learns from sprites and composites of them, then twice again with ever more doodles; then the
UNet and the text encoder learn together from latents. Each stage can be interrupted, and goes on to
the bit on the same machine. The adapters are made by `tiny.adapters`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from loramerge.files.reader import TensorFile
from loramerge.files.tensors import ArrayTensor
from loramerge.files.writer import write_bytes, write_tensors
from loramerge.tiny import networks
from loramerge.tiny.drawing import doodle, draw
from loramerge.tiny.sprites import sprites
from loramerge.tiny.stages import Stage
from loramerge.train.models.objective import Noising
from loramerge.train.spec.seeds import generator_of
from loramerge.train.spec.settings import Settings

__all__ = ["build"]

_VAE_STEPS, _UNET_STEPS, _DECODER_STEPS = 2600, 2200, 1000
_PICTURES = 16_384


# --- pictures ----------------------------------------------------------------------------------


def as_tensor(pictures: list[Any]) -> Any:
    """Return pictures `(n, h, w, 3)` uint8 as `(n, 3, h, w)` float32 in `[-1, 1]`."""
    stacked = torch.from_numpy(np.stack(pictures))
    return stacked.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1


@cache
def _world(count: int, seed: int = 0) -> tuple[Any, list[str]]:
    """Return plain sprites `(n, 3, 32, 32)` uint8, and their captions."""
    drawn = [(draw(sprite), caption) for sprite, caption in sprites(count, seed)]
    pictures = torch.from_numpy(np.stack([picture for picture, _ in drawn]))
    return pictures.permute(0, 3, 1, 2).contiguous(), [caption for _, caption in drawn]


@cache
def _relatives(count: int) -> Any:
    """Return outlined and dotted sprites, half each, `(n, 3, 32, 32)` uint8."""
    half = count // 2
    drawn = [draw(sprite) for sprite, _ in sprites(half, 1, outlined=True)]
    drawn += [draw(sprite) for sprite, _ in sprites(half, 2, dotted=True)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous()


@cache
def _doodles(count: int) -> Any:
    """Return pictures of anything, `(n, 3, 32, 32)` uint8."""
    draws = random.Random("doodles")
    drawn = np.stack([doodle(draws) for _ in range(count)])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).contiguous()


def _composites(pictures: Any, others: Any, generator: Any) -> Any:
    """Cut a box of other pictures into pictures, mix channels, and stretch colours.

    So the VAE learns to draw what no sprite shows, such as the character.
    """
    made = pictures.clone()
    for i in range(len(made)):
        x, y = torch.randint(2, 24, (2,), generator=generator).tolist()
        w, h = torch.randint(4, 16, (2,), generator=generator).tolist()
        made[i, :, y : y + h, x : x + w] = others[i, :, y : y + h, x : x + w].flip(0)
        made[i] = made[i][torch.randperm(3, generator=generator)]
    gain = 0.7 + 0.3 * torch.rand(len(made), 3, 1, 1, generator=generator)
    shift = 0.3 * (torch.rand(len(made), 3, 1, 1, generator=generator) - 0.5)
    return (made * gain + shift).clamp(-1, 1)


# --- the VAE -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixture:
    """Numbers of images in a step, 16 in all: sprites, variants of sprites, and other images."""

    plain: int
    related: int
    composites: int = 0
    doodles: int = 0


_VAE_STAGES = {"vae": Mixture(8, 3, 5), "vae-2": Mixture(6, 4, 0, 6), "vae-3": Mixture(4, 4, 0, 8)}
_DECODER = Mixture(4, 4, 0, 8)


def _vae_loss(vae: Any, mixture: Mixture, seed: int) -> Callable[[int], Any]:
    """Return the loss of the VAE on the pictures of a step."""
    plain, _ = _world(_PICTURES)
    related = _relatives(_PICTURES // 4)

    def pick(source: Any, count: int, generator: Any) -> Any:
        rows = torch.randint(len(source), (count,), generator=generator)
        return source[rows].to(torch.float32) / 127.5 - 1

    def loss(number: int) -> Any:
        generator = generator_of(seed, "vae", number)
        parts = [
            pick(plain, mixture.plain, generator),
            pick(related, mixture.related, generator),
        ]
        if mixture.composites:
            first = pick(plain, mixture.composites, generator)
            second = pick(related, mixture.composites, generator)
            parts.append(_composites(first, second, generator))
        if mixture.doodles:
            parts.append(pick(_doodles(_PICTURES // 2), mixture.doodles, generator))
        pictures = torch.cat(parts)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pictures).latent_dist
            drawn = torch.randn(posterior.mean.shape, generator=generator)
            found = vae.decode(posterior.mean + posterior.std * drawn).sample
        found = found.to(torch.float32)
        error = found - pictures
        return (
            error.abs().mean()
            + error.square().mean()
            + 0.5 * (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean())
            + 2e-3 * posterior.kl().mean() / posterior.mean[0].numel()
        )

    return loss


def psnr(vae: Any, pictures: Any) -> float:
    """Return the quality of pictures in `[-1, 1]` after the VAE, in decibels (PSNR)."""
    with torch.no_grad():
        found = vae.decode(vae.encode(pictures).latent_dist.mode()).sample.clamp(-1, 1)
    return -10 * math.log10(float((found - pictures).square().mean()) / 4)


@torch.no_grad()
def _latents(vae: Any, pictures: Any, size: int = 128) -> tuple[Any, Any]:
    """Return mean and deviation of the latents of uint8 pictures, unscaled."""
    means, deviations = [], []
    for part in pictures.split(size):
        found = vae.encode(part.to(torch.float32) / 127.5 - 1).latent_dist
        means.append(found.mean)
        deviations.append(found.std)
    return torch.cat(means), torch.cat(deviations)


# --- the UNet and the text encoder -------------------------------------------------------------


def tokens_of(tokenizer: Any, captions: list[str]) -> Any:
    """Return token numbers `(n, 24)`."""
    length = tokenizer.model_max_length
    return tokenizer(
        captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


def _unet_loss(
    model: nn.ModuleDict, latents: Any, tokens: Any, empty: Any, noising: Noising, size: int = 48
) -> Callable[[int], Any]:
    count = len(latents)

    def loss(number: int) -> Any:
        generator = generator_of(0, "unet", number)
        epoch, place = divmod(number * size, count)
        order = torch.randperm(count, generator=generator_of(0, "order", epoch))
        rows = order[torch.arange(place, place + size) % count]
        clean = latents[rows]
        written = tokens[rows].clone()
        written[torch.rand(size, generator=generator) < 0.1] = empty
        noise = torch.randn(clean.shape, generator=generator)
        # one time step of each part of the schedule: less noise in the gradient
        times = (torch.arange(size) + torch.rand(size, generator=generator)) * (1000 / size)
        times = times.long().clamp(max=999)
        noisy = noising.noised(clean, noise, times)
        text = model["text_encoder"](written).last_hidden_state
        found = model["unet"](noisy, times, text).sample
        return functional.mse_loss(found, noising.target(clean, noise, times))

    return loss


# --- all of it ---------------------------------------------------------------------------------


def build(
    work: Path,
    output: Path,
    *,
    vae_steps: int = _VAE_STEPS,
    unet_steps: int = _UNET_STEPS,
    decoder_steps: int = _DECODER_STEPS,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Make the tiny model and return its folder; continue an interrupted call.

    Args:
        work: folder of the states in between (80 MB).
        output: folder of the pipeline, written anew.
        say: called with a line now and then.
    """
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    words = work / "tokenizer"
    tokenizer = networks.tokenizer(words)
    vae, unet = networks.autoencoder(), networks.unet()
    text = networks.text_encoder(len(tokenizer))
    train_vae(vae, work, vae_steps, say)
    pictures, captions = _world(_PICTURES)
    held = as_tensor([draw(sprite) for sprite, _ in sprites(256, 3)])
    say(f"vae: {psnr(vae, held):.2f} dB on sprites it has not seen")
    means, deviations = _cached(work / "latents.pt", lambda: _latents(vae, pictures))
    vae.register_to_config(scaling_factor=round(1 / float(means.std()), 5))
    latents = means * vae.config.scaling_factor
    say(
        f"latents: deviation {float(means.std()):.3f}, of the posterior {float(deviations.mean()):.3f}"
    )
    tokens, empty = tokens_of(tokenizer, captions), tokens_of(tokenizer, [""])[0]
    model = nn.ModuleDict({"unet": unet, "text_encoder": text})
    noising = Noising.of(networks.scheduler())
    loss = _unet_loss(model, latents, tokens, empty, noising)
    settings = Settings(
        steps=unet_steps, lr=2e-3, warmup_steps=min(100, unet_steps - 1), betas=(0.9, 0.99)
    )
    Stage("unet", model, loss, settings, work).run(say)
    polish_decoder(vae, work, decoder_steps, say)
    say(f"vae: {psnr(vae, held):.2f} dB with the decoder polished")
    return _finish(output, {"vae": vae, "unet": unet, "text_encoder": text}, words, tokenizer)


def train_vae(vae: Any, work: Path, steps: int, say: Callable[[str], None]) -> None:
    """Train the VAE in stages, each with a learning rate that falls to 0."""
    for seed, (name, mixture) in enumerate(_VAE_STAGES.items()):
        vae.train().requires_grad_(True)
        loss = _vae_loss(vae, mixture, seed)
        Stage(name, vae, loss, _vae_settings(steps), work, ema=0.998).run(say)


def polish_decoder(vae: Any, work: Path, steps: int, say: Callable[[str], None]) -> None:
    """Train the decoder alone: latents, and so everything learned from them, stay as they are."""
    for part in (vae.decoder, vae.post_quant_conv):
        part.train().requires_grad_(True)
    loss = _vae_loss(vae, _DECODER, len(_VAE_STAGES))
    Stage("decoder", vae, loss, _vae_settings(steps), work, ema=0.998).run(say)


def _vae_settings(steps: int) -> Settings:
    return Settings(steps=steps, lr=2e-3, warmup_steps=min(100, steps - 1), weight_decay=1e-3)


def _cached(path: Path, make: Callable[[], Any]) -> Any:
    if path.exists():
        return torch.load(path, weights_only=True)
    made = make()
    torch.save(made, path)
    return made


def _finish(folder: Path, models: Mapping[str, nn.Module], words: Path, tokenizer: Any) -> Path:
    """Write the float16 pipeline, in names that transformers 4 and 5 both read."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        **{name: model.half() for name, model in models.items()},
        tokenizer=tokenizer,
        scheduler=networks.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    encoder = TensorFile(folder / "text_encoder" / "model.safetensors")
    named = [(_long(name), ArrayTensor(t.numpy())) for name, t in encoder.tensors.items()]
    write_tensors(encoder.path, named, {"format": "pt"}, force=True)
    for name in ("vocab.json", "merges.txt"):
        write_bytes(folder / "tokenizer" / name, (words / name).read_bytes(), force=True)
    return folder


def _long(name: str) -> str:
    """Return a name of the text encoder with the level that transformers 5 leaves out."""
    return name if name.startswith("text_model.") else f"text_model.{name}"
