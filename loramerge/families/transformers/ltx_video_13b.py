"""LTX-Video 13B."""

from __future__ import annotations

from loramerge.families.ltx_video import ltx_video

__all__ = ["FAMILY"]

FAMILY = ltx_video(
    "ltx-video-13b", "LTX-Video 13B", width=4096, blocks=48, also=("ltxv-13b", "ltx-video-13b")
)
