"""The models of a base without their values, and what was counted for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from loramerge.errors import FormatError
from loramerge.files.json_values import read_values
from loramerge.train.memory.estimate import Shape
from loramerge.train.models.libraries import class_of, quietly

__all__ = ["Base", "base_of"]

_TOKENS = 77  # of a text, where the encoders do not say it


@dataclass
class Base:
    """The models of a base without their values, on the meta device.

    Args:
        encoders: by component, in float32.
    """

    shape: Shape
    vae: Any
    encoders: dict[str, Any]
    _found: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens that a text has."""
        read = [getattr(e.config, "max_position_embeddings", 0) for e in self.encoders.values()]
        return max(read, default=0) or _TOKENS

    def once(self, key: Any, count: Callable[[], Any]) -> Any:
        """Return the earlier count for a key, or count now."""
        name = repr(key)
        if name not in self._found:
            self._found[name] = count()
        return self._found[name]


# configurations → what was counted for them; a sweep of runs on one base counts once
_COUNTED: dict[str, dict[str, Any]] = {}


def base_of(folder: Path, shape: Shape) -> Base:
    """Return the models of a diffusers folder, read from configurations alone.

    Raises:
        FormatError: if they cannot be made.
    """
    try:
        index = read_values(folder / "model_index.json")
        read = {"vae": _config(folder / "vae"), "denoiser": dict(shape.denoiser)}
        with quietly() as (diffusers, transformers), torch.device("meta"):
            vae = diffusers.AutoencoderKL.from_config(read["vae"])
            encoders = {}
            for name, encoder in shape.architecture.encoders.items():
                if (index.get(name) or [None])[0] is not None:
                    read[name] = _config(folder / name)
                    kind = class_of(encoder.model, transformers)
                    encoders[name] = kind(kind.config_class.from_dict(read[name]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"{type(error).__name__}: {error}"
        raise FormatError(
            f"the memory of the run cannot be predicted: {said}", file=folder
        ) from None
    for model in (vae, *encoders.values()):
        model.requires_grad_(False)
        model.eval()
    said = json.dumps([shape.architecture.name, shape.factor, read], sort_keys=True, default=str)
    return Base(shape, vae, encoders, _COUNTED.setdefault(said, {}))


def _config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_values(folder / "config.json")
    return found
