"""Training: LoRA beside the layers of a torch model, the audit of its gradients, and whole runs.

This is the one floor whose modules import torch when they are imported; everything above reaches
them inside functions. The package can be called: `lm.train(base, images, …)` is `api.train`, whose
name it would hide otherwise, and whose signature and help it has.
"""

from __future__ import annotations

import sys
from importlib import import_module
from inspect import signature
from types import ModuleType
from typing import Any

from loramerge.errors import MissingExtra

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise MissingExtra("training needs torch", hint="pip install 'loramerge[train]'") from None


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **parameters: Any) -> Any:
        return import_module("loramerge.api").train(*arguments, **parameters)

    @property
    def __signature__(self) -> Any:
        return signature(import_module("loramerge.api").train)

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        doc: str | None = import_module("loramerge.api").train.__doc__
        return doc


sys.modules[__name__].__class__ = _Callable
