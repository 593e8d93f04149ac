"""LTX-Video 2B."""

from __future__ import annotations

from loramerge.families.ltx_video import ltx_video

__all__ = ["FAMILY"]

FAMILY = ltx_video("ltx-video", "LTX-Video 2B", width=2048, blocks=28, also=("ltxv", "ltx-video"))
