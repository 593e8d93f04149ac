"""The libraries of models, diffusers and transformers: without their remarks, and without a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from loramerge.errors import MissingExtra

__all__ = ["class_of", "quietly"]


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
