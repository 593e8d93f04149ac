"""Labels of parameters, as the page's forms have them."""

from __future__ import annotations

from loramerge.errors import Setting

__all__ = ["in_page", "label"]

# as in static/words.js
_NAMED = {
    "lr": "Learning rate",
    "text_lr": "Learning rate of the text encoder",
    "dtype": "Data type",
    "vram": "GPU memory",
    "to": "Dialect",
    "for": "For the program",
    "a": "First",
    "b": "Second",
    "ema": "Moving average (EMA)",
    "min_snr": "Min-SNR",
    "rslora": "rsLoRA",
    "lora_plus": "LoRA+",
    "vae": "VAE",
    "lora": "Adapters",
}
_ENDS = {"output": "Save as", "force": "Replace the file that is there"}  # beside the run button


def label(word: str) -> str:
    """Return the label of a parameter: `allow_again` → `Allow again`."""
    found = {**_NAMED, **_ENDS}.get(word)
    text = word.replace("_", " ")
    return found or text[:1].upper() + text[1:]


def in_page(setting: Setting) -> str:
    """Return `“Rank”: 8`; the label alone for a switch, or where no value is given."""
    name = f"“{label(setting.name)}”"
    return name if setting.value is None or setting.value is True else f"{name}: {setting.value}"
