"""diffusers: `load_lora_weights` of the family's pipelines."""

from __future__ import annotations

from collections.abc import Mapping

from loramerge.dialects.programs.others import NO_MAGNITUDES
from loramerge.dialects.programs.spec import Alphas, Program, Reads

__all__ = ["PROGRAM"]

_UNETS = ("sd15", "sd21", "sdxl")
_UNSEEN = r"^(?:text_encoder|transformer_2\.)"


def _network(
    dialect: str,
    families: tuple[str, ...],
    but: str = "",
    forms: tuple[str, ...] = ("lora",),
    otherwise: Mapping[str, str] = {},
    alphas: Alphas = "unseen",
) -> Reads:
    """Return the entry for diffusion transformers.

    No test has given it their text encoders, or the second transformer of a pipeline.
    """
    tried = ("lora", *otherwise, *forms)
    return Reads((dialect,), families, forms, but, _UNSEEN, tried, otherwise, alphas=alphas)


PROGRAM = Program(
    name="diffusers",
    title="diffusers",
    version="0.42.1",
    order=4,
    one_alpha=("kohya",),
    reads=(
        Reads(("kohya", "diffusers", "diffusers-legacy"), _UNETS, ("lora",), tried=("lora",),
              unseen="text_projection", alphas="unseen"),
        _network(
            "diffusers",
            (
                *("sd3", "flux1", "flux2-dev", "flux2-klein-4b", "z-image", "qwen-image", "lumina2"),
                *("wan", "anima", "cosmos2-14b", "ltx-video", "hunyuan-video", "krea2"),
                *("qwen-image-21", "chroma", "ideogram4", "minimax-h3", "ernie-image", "hidream-i1"),
                *("flux3", "auraflow", "mochi", "kandinsky5", "cogvideox", "cogview4", "sana"),
                *("ace-step", "ltx-2", "sd35-medium", "sd35-large", "flux2-klein-9b"),
                "ltx-video-13b",
            ),
        ),
        _network("diffusers", ("flux2-klein-4b",), forms=("dora of outputs",)),
        _network("kohya", ("z-image", "qwen-image")),
        _network(
            "kohya",
            ("flux2-klein-4b",),
            r"stream_modulation|norm_out",
            ("lora", "dora of outputs"),
            {"dora of outputs": NO_MAGNITUDES},
        ),
        _network("kohya", ("sd3", "lumina2", "anima", "ltx-video", "cosmos2-14b"), forms=()),
        _network("comfyui", ("z-image", "qwen-image", "minimax-h3"), alphas="read"),
        _network("comfyui", ("anima", "krea2", "hidream-i1", "ltx-2"), alphas="refused"),
        _network("comfyui", ("flux3",), r"^transformer\.(?!.*blocks\.)", alphas="refused"),
        _network("comfyui", ("sd3", "cosmos2-14b"), forms=()),
        _network(
            "comfyui", ("ltx-video",), r"time_embed\.|transformer\.proj_in$", alphas="refused"
        ),
    ),
)  # fmt: skip
