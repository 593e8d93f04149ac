"""Training: LoRA beside the layers of a torch model, the audit of its gradients, and whole runs.

This is the one floor whose modules import torch when they are imported; everything above reaches
them inside functions. The package can be called: `lm.train(base, images, …)` is `api.train`, whose
name it would hide otherwise.
"""

from __future__ import annotations

import sys
from importlib import import_module
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


sys.modules[__name__].__class__ = _Callable
