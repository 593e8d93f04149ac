"""Handles on tensors, in files and in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from loramerge.files.reader import TensorFile
from loramerge.files.tensors import ArrayTensor, stream
from loramerge.files.writer import write_tensors


def test_a_stream_is_the_bytes_of_its_tensors_in_order(tmp_path: Path) -> None:
    """Neighbours in a file, jumps back, tensors in memory, empty ones, and more than one piece."""
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.integers(0, 255, 3_000_000, dtype=np.uint8),
        "b": rng.standard_normal((7, 5)).astype(np.float32),
        "c": np.empty((0, 4), np.float32),
        "d": rng.standard_normal(11).astype(np.float16),
    }
    path = tmp_path / "x.safetensors"
    write_tensors(path, [(name, ArrayTensor(array)) for name, array in arrays.items()], {})
    stored = TensorFile(path).tensors
    for order in ("abcd", "dcba", "badc", "aa"):
        tensors = [stored[name] for name in order]
        tensors.insert(1, ArrayTensor(arrays["d"]))
        expected = b"".join(bytes(tensor.raw()) for tensor in tensors)
        assert b"".join(bytes(part) for part in stream(tensors)) == expected
