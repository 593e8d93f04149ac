"""Training: LoRA beside the layers of a torch model, the audit of its gradients, and saving.

This is the one floor whose modules import torch when they are imported; everything above reaches
them inside functions.
"""

from __future__ import annotations

from loramerge.errors import MissingExtra

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise MissingExtra("training needs torch", hint="pip install 'loramerge[train]'") from None
