"""The weights of a model that quantised checkpoints store in few bits, and those that stay wide.

The tools for ComfyUI quantise the matrices of the denoiser's blocks, and leave what stands before and
after the blocks as it is: embeddings of image, text and time, and the last layer; norms, biases, tables
of modulation and the gates of experts stay wide everywhere. Convolutions count where a file stores them
as matrices. llama.cpp quantises all matrices of a language model but norms and gates.

Source: `tools/lcpp.patch` and `tools/convert.py` of ComfyUI-GGUF, `src/llama-quant.cpp` of llama.cpp;
tests compare this rule with their lists.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from loramerge.checkpoint.checkpoint import Checkpoint
from loramerge.checkpoint.files import CheckpointFile
from loramerge.families.spec import Layer

__all__ = ["denoisers_in", "is_quantisable", "modules_of", "of_llama_cpp"]

_BLOCK = re.compile(
    r"(?:(?:text_model|language_model|model|encoder)\.)*\w*(?:blocks?|layers)\.(?!$)"
)
_GATE = re.compile(r"\.gate$|relative_attention_bias$|embed")
_OF_LANGUAGE = re.compile(
    r"^(?!.*(_norm|ffn_gate_inp|attn_rel_b|position_embd|token_types)\.).*\.weight$"
)
_DENOISERS = ("unet", "transformer", "transformer_2")


def modules_of(checkpoint: Checkpoint, file: CheckpointFile) -> Mapping[str, list[tuple[str, str]]]:
    """Return the modules and parameters that every known tensor of a file holds."""
    found: dict[str, list[tuple[str, str]]] = {}
    for (module, parameter), places in checkpoint.slots.items():
        for place in places:
            if place.file is file:
                found.setdefault(place.name, []).append((module, parameter))
    return found


def denoisers_in(modules: Mapping[str, Sequence[tuple[str, str]]]) -> list[str]:
    """Return the names of the denoisers among the components that a file holds."""
    components = {module.partition(".")[0] for held in modules.values() for module, _ in held}
    return [name for name in _DENOISERS if name in components]


def is_quantisable(
    checkpoint: Checkpoint,
    held: Sequence[tuple[str, str]],
    components: Sequence[str],
    *,
    convolutions: bool,
) -> bool:
    """Return whether a tensor is one of those that tools for ComfyUI quantise.

    Args:
        held: the modules and parameters that it holds.
        components: that are quantised; any if there are none.
        convolutions: whether they count.
    """
    layers: set[Layer] = {"linear", "conv"} if convolutions else {"linear"}
    return bool(held) and all(
        parameter == "weight" and _is_matrix(checkpoint, module, components, layers)
        for module, parameter in held
    )


def _is_matrix(
    checkpoint: Checkpoint, name: str, components: Sequence[str], layers: set[Layer]
) -> bool:
    component, _, path = name.partition(".")
    if not checkpoint.candidates:
        path = path if component in _DENOISERS else name
        places = checkpoint.slots[name, "weight"]
        return _is_inside(path) and all(
            place.name.endswith(".weight") and len(place.tensor.shape) == 2 for place in places
        )
    module = checkpoint.candidates[0].find(name)
    inside = _is_inside(path)
    return (
        inside
        and module is not None
        and module.layer in layers
        and (not components or component in components)
    )


def _is_inside(path: str) -> bool:
    """Return whether a layer is inside a block, and no gate."""
    return _BLOCK.match(path) is not None and not _GATE.search(path)


def of_llama_cpp(name: str) -> bool:
    """Return whether llama.cpp quantises a tensor of a language model, if it is a matrix."""
    return _OF_LANGUAGE.match(name) is not None
