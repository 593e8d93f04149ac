"""Whole models to train: from a diffusers folder or a single file, offline."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from loramerge.errors import (
    CorruptFile,
    FormatError,
    LoramergeError,
    MissingExtra,
    Setting,
    UsageError,
)
from loramerge.families import FAMILIES
from loramerge.files.forms import is_gguf
from loramerge.files.json_values import read_values
from loramerge.files.reader import TensorFile
from loramerge.train.device.exhaustion import is_exhaustion
from loramerge.train.models.architecture import Architecture, Encoder
from loramerge.train.models.registry import (
    architecture_of_family,
    architecture_of_pipeline,
    known_architectures,
)
from loramerge.train.models.schedules import (
    PREDICTIONS,
    config_of_keys,
    predicting,
    refuse_schedule,
)
from loramerge.train.models.single import Configured, configured

__all__ = [
    "Pipeline",
    "architecture_at",
    "class_of",
    "identity_of",
    "load_pipeline",
    "load_tokenizers",
    "quietly",
]


@dataclass
class Pipeline:
    """The models of one base.

    Args:
        architecture: its kind.
        denoiser: the UNet or transformer.
        scheduler: of the base's configuration.
        encoders, tokenizers: by component, `text_encoder`, `text_encoder_2`, ….
        windows: in which CLIP reads every text; `texts.read_whole` sets it.
        empty_is_zero: whether no prompt at all is states of zeros, as SDXL's configuration may say.
    """

    architecture: Architecture
    path: Path
    denoiser: Any
    vae: Any
    scheduler: Any
    encoders: dict[str, Any]
    tokenizers: dict[str, Any]
    empty_is_zero: bool = False
    windows: int = 1
    _identities: dict[str, str] = field(default_factory=dict)

    @property
    def models(self) -> dict[str, Any]:
        """Component → model, of what an adapter can act on."""
        return {self.architecture.component: self.denoiser, **self.encoders}

    @property
    def factor(self) -> int:
        """Pixels of one latent along a side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def unit(self) -> int:
        """Pixels that every side must be a multiple of."""
        return self.architecture.unit(self.denoiser.config, self.factor)

    @property
    def resolution(self) -> int:
        """Pixels of a side of what the model was made for."""
        return self.architecture.resolution(self.denoiser.config, self.factor)

    def identity(self, component: str) -> str:
        """Return the digest of the VAE's or of all text encoders' configuration and values."""
        if component not in self._identities:
            models = [self.vae] if component == "vae" else list(self.encoders.values())
            own = "" if component == "vae" else self.architecture.reading(self.denoiser.config)
            self._identities[component] = identity_of(models) + own
        return self._identities[component]

    def to(self, device: Any) -> Pipeline:
        """Move all models."""
        for model in (self.denoiser, self.vae, *self.encoders.values()):
            model.to(device)
        return self

    def release_encoders(self) -> None:
        """Let the text encoders go, once all texts are encoded."""
        self.identity("encoders")
        self.encoders.clear()


def identity_of(models: list[Any]) -> str:
    """Return a digest of the models' values and of what says how they are used."""
    total = hashlib.sha256()
    for model in models:
        factor = getattr(model.config, "scaling_factor", None)
        shift = getattr(model.config, "shift_factor", None)
        moved = "" if shift is None else f"{shift}\0"
        total.update(f"{type(model).__name__}\0{factor}\0{moved}".encode())
        for name, value in sorted(model.state_dict().items()):
            total.update(f"{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            total.update(raw.numpy().data)
    return total.hexdigest()[:32]


@contextmanager
def quietly() -> Iterator[tuple[Any, Any]]:
    """Give diffusers and transformers, without their bars and remarks on the error stream."""
    try:
        import diffusers
        import transformers
    except ImportError:
        raise MissingExtra(
            "training pipelines needs diffusers and transformers",
            hint="pip install 'loramerge[train]'",
        ) from None
    loggers = (diffusers.utils.logging, transformers.utils.logging)
    levels = [logger.get_verbosity() for logger in loggers]
    for logger in loggers:
        logger.disable_progress_bar()
        logger.set_verbosity_error()
    try:
        with _offline():
            yield diffusers, transformers
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.set_verbosity(level)
            logger.enable_progress_bar()


@contextmanager
def _offline() -> Iterator[None]:
    """Keep Hugging Face's client off the network for a while, whatever its callers ask for."""
    constants: Any = import_module("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def class_of(name: str, package: Any) -> Any:
    """Return a class of a package by its name, or any class by its import path."""
    module, _, own = name.rpartition(".")
    return getattr(import_module(module) if module else package, own)


def load_pipeline(
    path: Path,
    *,
    dtype: Any = None,
    config: Path | None = None,
    family: str | None = None,
    prediction: str | None = None,
) -> Pipeline:
    """Load a base; nothing is fetched from a network.

    Args:
        path: a diffusers folder, or a single file.
        dtype: torch type of denoiser and text encoders; None is float32. The VAE is always float32,
            because SDXL's gives NaN in float16.
        config: for a single file, a diffusers folder of its family, of which configurations and
            tokenizers are taken; None makes them from its shapes, and looks for tokenizers here.
        family: of a single file.
        prediction: what the model predicts, in the words of `schedules.PREDICTIONS`; None: what the
            base says.

    Raises:
        UsageError: if the model is of a kind or noise schedule that cannot be trained here, or a
            single file lacks what `config` gives.
        FormatError, CorruptFile: if it cannot be read.
    """
    dtype = torch.float32 if dtype is None else dtype
    told = {} if path.is_dir() else _told(path, family)
    predicts = told.get("prediction_type") if prediction is None else PREDICTIONS[prediction]
    with quietly() as (diffusers, transformers):
        if path.is_dir():
            found = _from_folder(path, dtype, diffusers, transformers)
        elif config is not None:
            found = _from_file(path, dtype, config, family, diffusers)
        else:
            kind = architecture_at(path, family)
            with configured(path, kind, family, predicts, transformers) as made:
                found = _from_file(path, dtype, None, family, diffusers, made)
    if prediction is not None and "prediction" in found.architecture.refused:
        raise UsageError(found.architecture.refused["prediction"], file=path, found=prediction)
    found.scheduler = predicting(found.scheduler, prediction, told)
    channels = found.architecture.channels(found.denoiser.config)
    if channels != found.vae.config.latent_channels:
        raise UsageError(
            "this model takes more than latents, as those for inpainting do",
            file=path,
            expected=f"{found.vae.config.latent_channels} channels",
            found=channels,
        )
    for model in (found.denoiser, found.vae, *found.encoders.values()):
        model.requires_grad_(False)
        model.eval()
    return found


def _index(path: Path) -> Mapping[str, Any]:
    try:
        content = read_values(path / "model_index.json")
        assert isinstance(content, dict)
    except FileNotFoundError:
        raise FormatError(
            "this folder is not a diffusers pipeline",
            file=path,
            expected="model_index.json, and a folder for each model",
        ) from None
    except (OSError, ValueError, AssertionError):
        raise CorruptFile("the index of the pipeline cannot be read", file=path) from None
    return content


def _architecture(name: object, path: Path) -> Architecture:
    found = architecture_of_pipeline(name)
    if found is None:
        raise UsageError(
            "this kind of model cannot be trained yet",
            file=path,
            expected=", ".join(name for one in known_architectures() for name in one.pipelines),
            found=name,
        )
    return found


def architecture_at(path: Path, family: str | None = None) -> Architecture:
    """Return the kind of a base, of which only the index is read.

    Args:
        family: of a single file.

    Raises:
        UsageError, FormatError, CorruptFile: as `load_pipeline`.
    """
    if path.is_dir():
        return _architecture(_index(path).get("_class_name"), path)
    if is_gguf(path):
        raise FormatError(
            "a GGUF base can be baked into and merged, but not trained on or previewed",
            file=path,
            hint="give the safetensors model or the diffusers folder that it was made from",
        )
    found = architecture_of_family(family)
    if found is None:
        whose = "single files of this family" if family else "a file of no known family"
        raise UsageError(
            f"{whose} can be neither trained on nor previewed",
            file=path,
            expected=", ".join(name for one in known_architectures() for name in one.families),
            found=family,
            hint="give a diffusers folder, which Flux.1 and SD3 need",
        )
    return found


def _from_folder(path: Path, dtype: Any, diffusers: Any, transformers: Any) -> Pipeline:
    index = _index(path)
    kind = _architecture(index.get("_class_name"), path)
    encoders = {n: e for n, e in kind.encoders.items() if (index.get(n) or [None])[0]}
    lacking = [n for n, e in kind.encoders.items() if n not in encoders and not e.optional]
    if lacking:
        raise UsageError("the base lacks a text encoder", file=path, expected=", ".join(lacking))

    def model(cls: Any, name: str, wanted: Any) -> Any:
        for file in (path / name).glob("*.safetensors"):
            TensorFile(file).close()  # names a file of another format, and one that is cut
        try:
            return cls.from_pretrained(
                path / name, local_files_only=True, torch_dtype=wanted, **_variant(path / name)
            )
        except (OSError, ValueError, RuntimeError) as error:
            if is_exhaustion(error):
                raise
            raise CorruptFile(f"{name} cannot be loaded ({error})", file=path) from None

    return Pipeline(
        kind,
        path,
        model(class_of(kind.denoiser, diffusers), kind.component, dtype),
        model(diffusers.AutoencoderKL, "vae", torch.float32),
        _scheduler(path, kind, diffusers),
        {n: model(class_of(one.model, transformers), n, dtype) for n, one in encoders.items()},
        _tokenizers(path, encoders, transformers),
        kind.zeroes_empty and bool(index.get("force_zeros_for_empty_prompt", False)),
    )


def _variant(folder: Path) -> dict[str, str]:
    """Return the variant of a model's files, where there are none without one."""
    names = [path.name for path in folder.glob("*.safetensors")]
    plain = any(name.count(".") == 1 for name in names)
    variants = sorted({name.split(".")[1] for name in names if name.count(".") == 2})
    return {} if plain or not variants else {"variant": variants[0].partition("-")[0]}


def _told(path: Path, family: str | None) -> dict[str, Any]:
    """Return the facts about its schedule that a single file holds."""
    try:
        file = TensorFile(path)
    except LoramergeError:  # a pickle tells nothing
        return {}
    try:
        return config_of_keys(
            file.tensors.keys(),
            file.metadata,
            path,
            None if family is None else FAMILIES.get(family),
        )
    finally:
        file.close()


def _scheduler(path: Path, kind: Architecture, diffusers: Any) -> Any:
    cls = class_of(kind.scheduler, diffusers)
    place = path / "scheduler" / "scheduler_config.json"
    try:
        refuse_schedule(read_values(place), flow=kind.flow, file=place)
        return cls.from_pretrained(path, subfolder="scheduler", local_files_only=True)
    except (OSError, ValueError, AttributeError) as error:
        raise CorruptFile(f"the scheduler cannot be loaded ({error})", file=path) from None


def _tokenizers(path: Path, encoders: Mapping[str, Encoder], transformers: Any) -> dict[str, Any]:
    found = {}
    for name, encoder in encoders.items():
        try:
            found[name] = class_of(encoder.tokenizer, transformers).from_pretrained(
                path / encoder.folder, local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise CorruptFile(f"the tokenizer cannot be loaded ({error})", file=path) from None
    return found


def load_tokenizers(path: Path) -> dict[str, Any]:
    """Return the tokenizers of a diffusers folder by text encoder; none where it has none."""
    kind = _architecture(_index(path).get("_class_name"), path)
    there = {n: one for n, one in kind.encoders.items() if (path / one.folder).is_dir()}
    with quietly() as (_, transformers):
        return _tokenizers(path, there, transformers)


def _from_file(
    path: Path,
    dtype: Any,
    config: Path | None,
    family: str | None,
    diffusers: Any,
    made: Configured | None = None,
) -> Pipeline:
    kind = architecture_at(path, family)
    options: dict[str, Any] = dict(kind.options)
    if made is not None:
        options |= {"config": str(made.folder), **made.tokenizers}
    if config is not None:
        _architecture(_index(config).get("_class_name"), config)
        options["config"] = str(config)
    try:
        with warnings.catch_warnings():  # about schedulers' old configurations
            warnings.simplefilter("ignore")
            whole = getattr(diffusers, kind.pipelines[0]).from_single_file(
                str(path), local_files_only=True, torch_dtype=dtype, **options
            )
    except Exception as error:  # diffusers raises many kinds where files are missing
        if is_exhaustion(error):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0][:160]
        if config is not None:
            raise FormatError(
                "the file does not fit the configurations of the folder", file=path, found=said,
                expected=str(config),
            ) from None  # fmt: skip
        if made is not None:
            raise FormatError(
                "this file does not fit the configuration that its shapes tell", file=path, found=said,
                hint=("give a diffusers folder of its kind: ", Setting("config")),
            ) from None  # fmt: skip
        raise UsageError(
            "a single file holds weights alone, and its configuration and tokenizer are not here",
            file=path,
            found=said,
            hint=("give any diffusers folder of this family: ", Setting("config")),
        ) from None
    own = {"_class_name": type(whole.scheduler).__name__, **whole.scheduler.config}
    refuse_schedule(own, flow=kind.flow, file=config or path)
    whole.vae.to(torch.float32)
    encoders = {n: m for n in kind.encoders if (m := getattr(whole, n, None)) is not None}
    tokenizers = {n: getattr(whole, kind.encoders[n].folder) for n in encoders}
    zero = bool(getattr(whole.config, "force_zeros_for_empty_prompt", False))
    return Pipeline(
        kind,
        path,
        getattr(whole, kind.component),
        whole.vae,
        class_of(kind.scheduler, diffusers).from_config(whole.scheduler.config),
        encoders,
        tokenizers,
        kind.zeroes_empty and zero,
    )
