"""The words people use for components, and the components they mean."""

from __future__ import annotations

__all__ = ["COMPONENT_WORDS"]

# what users write → component names
COMPONENT_WORDS: dict[str, tuple[str, ...]] = {
    "unet": ("unet", "transformer"),
    "transformer": ("transformer", "unet"),
    "te": ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4"),
    "te1": ("text_encoder",),
    "te2": ("text_encoder_2",),
    "te3": ("text_encoder_3",),
    "te4": ("text_encoder_4",),
    "text_encoder": ("text_encoder",),
    "text_encoder_2": ("text_encoder_2",),
    "text_encoder_3": ("text_encoder_3",),
    "text_encoder_4": ("text_encoder_4",),
    "transformer_2": ("transformer_2",),
    "text_conditioner": ("text_conditioner",),
    "connectors": ("connectors",),
}
