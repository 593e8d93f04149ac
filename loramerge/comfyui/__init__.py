"""Nodes for ComfyUI: the same verbs, on adapters that stay in memory.

ComfyUI imports `comfy_entrypoint` from here; `loramerge comfyui install DIR` tells it to. Nothing of
ComfyUI is imported before it calls that function, so the nodes can be listed and tested without it.
"""

from __future__ import annotations

from typing import Any

__all__ = ["comfy_entrypoint"]


async def comfy_entrypoint() -> Any:
    """Return the extension with all nodes; ComfyUI calls this when it starts."""
    from loramerge.comfyui.extension import extension

    return extension()
