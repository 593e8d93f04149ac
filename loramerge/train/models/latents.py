"""Pictures as the denoiser knows them: latents, encoded once and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from loramerge.errors import FileError, NumericsError
from loramerge.events import Notify, Progress, ignore
from loramerge.train.dataset.buckets import Size
from loramerge.train.dataset.cache import TensorCache
from loramerge.train.dataset.images import READING, fitted, opened, pixels
from loramerge.train.dataset.scan import Picture
from loramerge.train.models.pipeline import Pipeline

__all__ = ["Latents", "encode_picture"]


class Latents:
    """The latents of images, each in its bucket.

    Args:
        digest: gives the sha256 of a file.
    """

    def __init__(
        self, pipeline: Pipeline, cache: TensorCache, digest: Callable[[Path], str]
    ) -> None:
        self._pipeline, self._cache, self._digest = pipeline, cache, digest
        self._seeds: dict[Path, str] = {}

    def _seed(self, picture: Picture, bucket: Size) -> str:
        """Return the seed of the draw, in hexadecimal: the same however the file is read."""
        if picture.path not in self._seeds:
            digest, vae = self._digest(picture.path), self._pipeline.identity("vae")
            self._seeds[picture.path] = _digest(digest, *picture.size, *bucket, vae)
        return self._seeds[picture.path]

    def _key(self, picture: Picture, bucket: Size) -> str:
        return _digest(self._seed(picture, bucket), READING)

    @torch.no_grad()
    def prepare(
        self, pictures: Mapping[Path, tuple[Picture, Size]], notify: Notify = ignore
    ) -> dict[Path, str]:
        """Encode what is not in the cache yet; return those that turned out to be unreadable, and why.

        One by one, so that the bits of one do not depend on which others were there already.

        Raises:
            NumericsError: naming the image whose latents are not finite.
        """
        broken: dict[Path, str] = {}
        for index, (path, (picture, bucket)) in enumerate(pictures.items(), 1):
            try:
                key = self._key(picture, bucket)
                if key not in self._cache:
                    seed = self._seed(picture, bucket)
                    latents = encode_picture(self._pipeline, picture, bucket, seed)
                    self._cache.put(key, {"latents": latents})
            except FileError as error:
                broken[path] = error.problem
            notify(Progress("encoding images", index, len(pictures), "images"))
        self._cache.flush()
        return broken

    def __call__(self, picture: Picture, bucket: Size) -> Any:
        """Return the latents of an image, `(c, h, w)`."""
        return self._cache.get(self._key(picture, bucket))["latents"]


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


@torch.no_grad()
def encode_picture(pipeline: Pipeline, picture: Picture, bucket: Size, seed: str) -> Any:
    """Return one draw of an image's latents, scaled as the denoiser takes them, float32 on the CPU.

    Args:
        seed: of the draw, in hexadecimal.

    Raises:
        FileError: if the image cannot be read.
        NumericsError: if the latents are not finite.
    """
    vae = pipeline.vae
    image, _ = fitted(opened(picture.path), bucket)
    found = vae.encode(pixels(image)[None].to(vae.device)).latent_dist
    mean, deviation = found.mean.cpu(), found.std.cpu()
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(int(seed[:15], 16)))
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    latents = (mean + deviation * noise - shift) * vae.config.scaling_factor
    if not torch.isfinite(latents).all():
        raise NumericsError(
            "the VAE makes NaN or infinity of this image",
            file=picture.path,
            hint="look at the image; if all fail, the VAE's weights are broken",
        )
    return latents[0]
