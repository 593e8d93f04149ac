"""Biases of PEFT's second factors: with `lora_bias`, every module of a component has one."""

from __future__ import annotations

from loramerge.adapter.formats.container import Unwritten
from loramerge.files.header import nbytes
from loramerge.files.tensors import RawTensor

__all__ = ["add_zero_biases"]

_UP, _BIAS = ".lora_B.weight", ".lora_B.bias"


def add_zero_biases(content: Unwritten) -> None:
    """Add a bias of zeros to each module without one, in the components where another has one."""
    pairs, components = content.pairs, content.components
    having = {components[key] for key in pairs if key.endswith(_BIAS)}
    for key, tensor in list(pairs.items()) if having else ():
        bias = key.removesuffix(_UP) + _BIAS
        if key.endswith(_UP) and components[key] in having and bias not in pairs:
            shape = tensor.shape[:1]
            pairs[bias] = RawTensor(bytes(nbytes(tensor.dtype, shape)), tensor.dtype, shape)
            components[bias] = components[key]
