"""Adapter → file in a dialect."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from loramerge.adapter.adapter import Adapter
from loramerge.adapter.encode import Encoded, choose_dialect, encode
from loramerge.adapter.hashes import kohya_hashes
from loramerge.adapter.source import CONFIG_NAME, WEIGHTS_NAME
from loramerge.errors import FormatError, MissingExtra, NumericsError
from loramerge.files.atomic import AtomicFile, AtomicFolder, check_target
from loramerge.files.reader import release
from loramerge.files.writer import write_bytes, write_tensors

__all__ = ["save", "write_encoded"]

Check = Callable[[Path], None]


def save(
    adapter: Adapter,
    path: str | PathLike[str],
    *,
    to: str | None = None,
    dtype: str | None = None,
    force: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write an adapter atomically.

    Args:
        path: file, or folder for the dialect `peft`; `.pt` writes lora_diffusion's lists.
        to: dialect or program; None keeps the adapter's own.
        dtype: safetensors name of the float type, None for the adapter's.
        metadata: entries to add to the header.

    Returns:
        Bytes written.

    Raises:
        OutputExists: unless `force`.
        NotExpressible, NumericsError: see `encode`.
    """
    target = choose_dialect(to, [adapter])
    encoded = encode(adapter, target, dtype)
    encoded.metadata |= metadata or {}
    return write_encoded(encoded, path, force=force)


def write_encoded(
    encoded: Encoded,
    path: str | PathLike[str],
    *,
    force: bool = False,
    check: Check | None = None,
) -> int:
    """Write what `encode` gave; see `save`.

    Args:
        check: looks at the file or folder before it gets its name; what it raises leaves nothing.
    """
    place = Path(path)
    try:
        if encoded.dialect.folder:
            encoded.metadata |= encoded.late_entries()
            return _write_folder(encoded, place, force, check)
        if place.suffix == ".pt":
            return _write_lists(encoded, place, force, check)
        if encoded.dialect.container == "kohya":
            tensors, metadata = encoded.tensors, dict(encoded.metadata)  # no cycle through `late`
            encoded.late.append(lambda: kohya_hashes(tensors, metadata))
        return write_tensors(
            place, encoded.tensors, encoded.metadata, force=force, check=check, late=encoded.late
        )
    except NumericsError as error:
        error.file = error.file or str(place)
        raise


def _write_folder(encoded: Encoded, place: Path, force: bool, check: Check | None) -> int:
    if place.suffix in (".safetensors", ".pt", ".bin"):
        raise FormatError(
            "a PEFT adapter is a folder", file=place, hint=f"-o {place.with_suffix('')}"
        )
    total = 0
    single = len(encoded.configs) == 1 and {*encoded.configs} <= {"", *encoded.dialect.alone}
    with AtomicFolder(place, force=force) as folder:
        for component, config in encoded.configs.items():
            part = folder if single else folder / component
            own = [
                (key.removeprefix(f"{component}/"), tensor)
                for key, tensor in encoded.tensors
                if single or encoded.components[key] == component
            ]
            total += write_tensors(part / WEIGHTS_NAME, own, encoded.metadata)
            raw = json.dumps(config, indent=2, sort_keys=True).encode()
            write_bytes(part / CONFIG_NAME, raw)
            total += len(raw)
        if check is not None:
            check(folder)
            for path in folder.rglob("*"):
                release(path)
    return total


def _write_lists(encoded: Encoded, place: Path, force: bool, check: Check | None) -> int:
    """Write lora_diffusion's pickled lists: UNet, text encoder and embeddings beside each other."""
    if not encoded.dialect.pickle:
        raise FormatError(
            "only lora_diffusion lists are written as .pt",
            file=place,
            hint="give -o a name that ends in .safetensors",
        )
    try:
        import torch
    except ImportError:
        raise MissingExtra(
            "writing .pt files needs torch", file=place, hint="pip install 'loramerge[train]'"
        ) from None
    tensors = dict(encoded.tensors)
    outputs: dict[Path, Any] = {}
    for component, suffix in (("unet", ""), ("text_encoder", ".text_encoder")):
        count = sum(key.startswith(f"{component}:") for key in tensors) // 2
        if count:
            outputs[place.with_name(f"{place.stem}{suffix}.pt")] = [
                torch.from_numpy(tensors[f"{component}:{i}:{role}"].numpy().copy())
                for i in range(count)
                for role in ("up", "down")
            ]
    embeddings = {k: torch.from_numpy(t.numpy().copy()) for k, t in tensors.items() if k[0] == "<"}
    if embeddings:
        outputs[place.with_name(f"{place.stem}.ti.pt")] = embeddings
    for path in outputs:
        check_target(path, force=force)
    import io
    from tempfile import TemporaryDirectory

    if check is not None:
        with TemporaryDirectory(prefix=".loramerge-", dir=place.parent) as folder:
            for path, content in outputs.items():
                torch.save(content, Path(folder) / path.name)
            check(Path(folder) / place.name)
    total = 0
    for path, content in outputs.items():
        buffer = io.BytesIO()
        torch.save(content, buffer)
        with AtomicFile(path, force=force) as file:
            file.write(0, buffer.getbuffer())
        total += len(buffer.getbuffer())
    return total
