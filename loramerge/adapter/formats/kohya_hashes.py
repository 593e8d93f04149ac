"""The hashes that kohya writes into its files, by which web interfaces and sites know an adapter.

Both are taken over the file as the safetensors library would write it with the `ss_*` metadata
alone, so that editing a title changes neither: `sshs_model_hash` over the data after the header,
`sshs_legacy_hash` over the 64 KiB that start at 1 MiB.

Source: `precalculate_safetensors_hashes` of sd-scripts, by its meaning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from loramerge.files.header import build_header
from loramerge.files.tensors import Tensor, stream

__all__ = ["HASH_PLACEHOLDERS", "kohya_hashes"]

# as long as the hashes, so that the size of a file is known before they are
HASH_PLACEHOLDERS: dict[str, str] = {
    "sshs_model_hash": "0" * 64,
    "sshs_legacy_hash": "0" * 8,
}
# the safetensors library lays tensors out by type, from the last of these to the first, then name
_TYPE_ORDER = (
    "BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "I16", "U16",
    "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64",
)  # fmt: skip
_WINDOW = (0x100000, 0x110000)


def kohya_hashes(
    tensors: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str]
) -> dict[str, str]:
    """Return `sshs_model_hash` and `sshs_legacy_hash` of tensors as they will be written."""
    laid = sorted(tensors, key=lambda pair: (-_TYPE_ORDER.index(pair[1].dtype), pair[0]))
    training = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    head, _ = build_header(((name, t.dtype, t.shape) for name, t in laid), training)
    whole, window = hashlib.sha256(), hashlib.sha256()
    _update_window(window, head, 0)
    position = len(head)
    for part in stream(tensor for _, tensor in laid):
        whole.update(part)
        _update_window(window, part, position)
        position += len(part)
    return {"sshs_model_hash": whole.hexdigest(), "sshs_legacy_hash": window.hexdigest()[:8]}


def _update_window(
    window: hashlib._Hash, raw: bytes | bytearray | memoryview, position: int
) -> None:
    """Add the part of `raw` (from `position` of the file on) that is in the window."""
    start, stop = (max(0, edge - position) for edge in _WINDOW)
    if start < len(raw) and stop > 0:
        window.update(raw[start:stop])
