"""Loramerge: adapter algebra for diffusion models.

Layers, each importing only those to its right: `cli` → `recipe` → `api` → `verbs` → `steps` →
`train`, `report`, `library` → `stream` → `algebra` → `adapter`, `checkpoint` → `dialects` →
`families` → `files` → `errors`, `events`. The names below are loaded when first used, so that
importing the package costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it; importing `typing` takes longer than all of this
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "Adapter": "loramerge.api",
    "Bounds": "loramerge.parameters",
    "Doc": "loramerge.parameters",
    "GradientAudit": "loramerge.train.lora.audit",
    "LoramergeError": "loramerge.errors",
    "UsageError": "loramerge.errors",
    "Weight": "loramerge.algebra.weights",
    "bake": "loramerge.api",
    "card": "loramerge.api",
    "collapse_lora": "loramerge.train.lora.modules",
    "compare": "loramerge.api",
    "convert": "loramerge.api",
    "diff": "loramerge.api",
    "error_curve": "loramerge.api",
    "extract": "loramerge.api",
    "extract_lora_ups_down": "loramerge.train.lora.modules",
    "heal": "loramerge.api",
    "inject_trainable_lora": "loramerge.train.lora.modules",
    "inject_trainable_lora_extended": "loramerge.train.lora.modules",
    "inspect": "loramerge.api",
    "library": "loramerge.library",
    "load": "loramerge.api",
    "load_lora_weight": "loramerge.train.lora.saving",
    "merge": "loramerge.api",
    "mix": "loramerge.api",
    "operator": "loramerge.algebra.operators",
    "plan": "loramerge.recipe.plan",
    "preview": "loramerge.api",
    "remove_lora": "loramerge.train.lora.modules",
    "resize": "loramerge.api",
    "resize_each": "loramerge.api",
    "run": "loramerge.recipe.run",
    "save": "loramerge.api",
    "save_lora_weight": "loramerge.train.lora.saving",
    "train": "loramerge.api",
    "tune_lora_scale": "loramerge.train.lora.modules",
    "unbake": "loramerge.api",
    "verify": "loramerge.api",
}

__all__ = [
    "Adapter",
    "Bounds",
    "Doc",
    "GradientAudit",
    "LoramergeError",
    "UsageError",
    "Weight",
    "__version__",
    "bake",
    "card",
    "collapse_lora",
    "compare",
    "convert",
    "diff",
    "error_curve",
    "extract",
    "extract_lora_ups_down",
    "heal",
    "inject_trainable_lora",
    "inject_trainable_lora_extended",
    "inspect",
    "library",
    "load",
    "load_lora_weight",
    "merge",
    "mix",
    "operator",
    "plan",
    "preview",
    "remove_lora",
    "resize",
    "resize_each",
    "run",
    "save",
    "save_lora_weight",
    "train",
    "tune_lora_scale",
    "unbake",
    "verify",
]

if TYPE_CHECKING:
    from loramerge import library
    from loramerge.adapter import Adapter
    from loramerge.algebra.operators import operator
    from loramerge.algebra.weights import Weight
    from loramerge.api import (
        bake,
        card,
        compare,
        convert,
        diff,
        error_curve,
        extract,
        heal,
        inspect,
        load,
        merge,
        mix,
        preview,
        resize,
        resize_each,
        save,
        train,
        unbake,
        verify,
    )
    from loramerge.errors import LoramergeError, UsageError
    from loramerge.parameters import Bounds, Doc
    from loramerge.recipe.plan import plan
    from loramerge.recipe.run import run
    from loramerge.train.lora.audit import GradientAudit
    from loramerge.train.lora.modules import (
        collapse_lora,
        extract_lora_ups_down,
        inject_trainable_lora,
        inject_trainable_lora_extended,
        remove_lora,
        tune_lora_scale,
    )
    from loramerge.train.lora.saving import load_lora_weight, save_lora_weight


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{_instead(name)}")
    from importlib import import_module

    module = import_module(_LAZY[name])
    return module if module.__name__ == f"{__name__}.{name}" else getattr(module, name)


def _instead(name: str) -> str:
    """Return the replacement of a function of another program, "" if there is none."""
    if name.startswith("_"):
        return ""
    from loramerge.habits import answer_to_command

    answer = answer_to_command(name)
    return f": {answer}" if answer else ""


def __dir__() -> list[str]:
    return sorted(__all__)
