"""Load whole models to train, from a diffusers folder or a single file; nothing is fetched."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from loramerge.errors import CorruptFile, FormatError, LoramergeError, Setting, UsageError
from loramerge.families import FAMILIES
from loramerge.files.json_values import read_values
from loramerge.files.reader import TensorFile
from loramerge.train.device.exhaustion import is_exhaustion
from loramerge.train.models.architecture import Architecture, Encoder
from loramerge.train.models.libraries import class_of, quietly
from loramerge.train.models.pipeline import Pipeline
from loramerge.train.models.recognised import architecture_at, architecture_of_index, index_of
from loramerge.train.models.schedules import (
    PREDICTIONS,
    config_of_keys,
    predicting,
    refuse_schedule,
)
from loramerge.train.models.single import Configured, configured

__all__ = ["load_pipeline", "load_tokenizers"]


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
    told = {} if path.is_dir() else _schedule_facts(path, family)
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


def _from_folder(path: Path, dtype: Any, diffusers: Any, transformers: Any) -> Pipeline:
    index = index_of(path)
    kind = architecture_of_index(index, path)
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


def _schedule_facts(path: Path, family: str | None) -> dict[str, Any]:
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
        architecture_of_index(index_of(config), config)
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
                "this file does not fit the configuration that follows from its shapes",
                file=path, found=said,
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


def load_tokenizers(path: Path) -> dict[str, Any]:
    """Return the tokenizers of a diffusers folder by text encoder; none where it has none."""
    kind = architecture_of_index(index_of(path), path)
    there = {n: one for n, one in kind.encoders.items() if (path / one.folder).is_dir()}
    with quietly() as (_, transformers):
        return _tokenizers(path, there, transformers)


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
