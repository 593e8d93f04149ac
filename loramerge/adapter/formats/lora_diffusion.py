"""Lists of lora_diffusion (2022): factors by position, in safetensors or pickled beside each other."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loramerge.adapter.encoded import Encoded
from loramerge.adapter.formats.container import Check, Container, Unwritten
from loramerge.adapter.formats.source import AdapterSource
from loramerge.dialects import DIALECTS
from loramerge.dialects.classify import Group
from loramerge.dialects.detection import Detection
from loramerge.errors import FormatError, MissingExtra, NotExpressible
from loramerge.files.dtypes import DTYPES
from loramerge.files.pickled import load_pickle, pickled_tensors, tensors_from_torch
from loramerge.files.tensors import RawTensor, Tensor
from loramerge.files.together import AtomicFiles

__all__ = ["CONTAINER", "check_positions", "open_pickle"]

_SISTERS = (".text_encoder", ".ti")  # the other files of a pickled adapter, and their contents
_SECTION_TITLES = {
    "unet": '["CrossAttention", "Attention", "GEGLU"]',
    "text_encoder": '["CLIPAttention"]',
}


class _LoraDiffusion(Container):
    def complete(self, content: Unwritten) -> None:
        _fill_positions(content)

    def metadata(self, content: Unwritten, kept: Mapping[str, str]) -> dict[str, str]:
        entries: dict[str, str] = {}
        for component, title in _SECTION_TITLES.items():
            ups = [k for k in content.pairs if k.startswith(f"{component}:") and k.endswith(":up")]
            if ups:
                entries[component] = title
                entries |= {f"{k[:-3]}:rank": str(content.pairs[k].shape[1]) for k in ups}
        return entries | {key: "<embed>" for key in content.pairs if key.startswith("<")}

    def write(self, encoded: Encoded, place: Path, force: bool, check: Check | None) -> int:
        if place.suffix == ".pt":
            return _write_lists(encoded, place, force, check)
        return super().write(encoded, place, force, check)


CONTAINER = _LoraDiffusion()


def _fill_positions(content: Unwritten) -> None:
    """Write zeros where a positional list has no delta: loaders count, so no place may be empty."""
    adapter, pairs = content.adapter, content.pairs
    family = adapter.info.detection.naming
    assert family is not None  # unknown families are not expressible and were refused before
    kind = content.dtype or adapter.dtype
    for component in family.components:
        stems = content.dialect.stems_of(family, component.name)
        if not any(f"{stem}:up" in pairs for stem in stems):
            continue
        for stem, module in stems.items():
            if f"{stem}:up" not in pairs:
                found = family.find(module)
                assert found is not None
                rows, columns = found.shape[0], math.prod(found.shape[1:])
                for role, shape in (("up", (rows, 1)), ("down", (1, columns))):
                    size = math.prod(shape) * DTYPES[kind].bits // 8
                    pairs[f"{stem}:{role}"] = RawTensor(bytes(size), kind, shape)


def _write_lists(encoded: Encoded, place: Path, force: bool, check: Check | None) -> int:
    """Write lora_diffusion's pickled lists: UNet, text encoder and embeddings beside each other."""
    try:
        import torch
    except ImportError:
        raise MissingExtra(
            "writing .pt files needs torch", file=place, hint="pip install 'loramerge[train]'"
        ) from None
    tensors = dict(encoded.tensors)
    outputs: dict[Path, Any] = {}
    for component, suffix in (("unet", ""), ("text_encoder", _SISTERS[0])):
        count = sum(key.startswith(f"{component}:") for key in tensors) // 2
        if count:
            outputs[place.with_name(f"{place.stem}{suffix}.pt")] = [
                torch.from_numpy(tensors[f"{component}:{i}:{role}"].numpy().copy())
                for i in range(count)
                for role in ("up", "down")
            ]
    embeddings = {k: torch.from_numpy(t.numpy().copy()) for k, t in tensors.items() if k[0] == "<"}
    if embeddings:
        outputs[place.with_name(f"{place.stem}{_SISTERS[1]}.pt")] = embeddings
    if place not in outputs:
        raise NotExpressible(
            "a pickled list belongs to the UNet, and this adapter has no modules there",
            file=place,
            hint="give the output a name that ends in .safetensors",
        )
    sisters = {place, *(place.with_name(f"{place.stem}{ending}.pt") for ending in _SISTERS)}
    targets = sorted(outputs, key=lambda path: path != place)
    with AtomicFiles(targets, force=force, stale=sorted(sisters - {*targets})) as folder:
        for path, content in outputs.items():
            with (folder / path.name).open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
        if check is not None:
            check(folder / place.name)
        return sum((folder / path.name).stat().st_size for path in targets)


# --- reading


def open_pickle(path: Path) -> AdapterSource:
    """Open a pickled state dict, or lora_diffusion's lists with their sister files.

    lora_diffusion wrote `x.pt` (UNet), `x.text_encoder.pt` and `x.ti.pt` (embeddings).
    """
    content = load_pickle(path)
    if isinstance(content, Mapping):
        return AdapterSource(str(path), pickled_tensors(path), _header(content), files=[path])
    source = AdapterSource(str(path), {}, files=[path])
    component = "text_encoder" if path.stem.endswith(".text_encoder") else "unet"
    source.tensors |= _positional(content, component, path)
    if component == "unet":
        encoder = path.with_name(f"{path.stem}.text_encoder{path.suffix}")
        if encoder.is_file():
            source.tensors |= _positional(load_pickle(encoder), "text_encoder", encoder)
            source.files.append(encoder)
        embeddings = path.with_name(f"{path.stem}.ti{path.suffix}")
        if embeddings.is_file():
            tokens = pickled_tensors(embeddings)
            source.tensors |= tokens
            source.metadata |= dict.fromkeys(tokens, "<embed>")
            source.files.append(embeddings)
    return source


def _header(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts that `save_lora_weight` puts where torch's state dicts keep versions."""
    entries = getattr(content, "_metadata", None)
    if not isinstance(entries, Mapping):
        return {}
    return {k: v for k, v in entries.items() if isinstance(k, str) and isinstance(v, str)}


def _positional(content: Any, component: str, path: Path) -> dict[str, Tensor]:
    """Name the tensors of a list up, down, up, down, … as the safetensors form would."""
    if (
        not isinstance(content, list)
        or len(content) % 2
        or not all(hasattr(value, "detach") for value in content)
    ):
        raise FormatError(
            "the pickle is neither a dictionary nor a list of up and down tensors",
            file=path,
            found=type(content).__name__,
        )
    named = {
        f"{component}:{i // 2}:{'down' if i % 2 else 'up'}": value
        for i, value in enumerate(content)
    }
    return tensors_from_torch(named, path)


def check_positions(groups: Sequence[Group], detection: Detection, source: AdapterSource) -> None:
    """Refuse positional files whose count of modules fits no known list.

    Positions mean nothing by themselves: a file with extended targets shifts every one of them.
    """
    counts = Counter(
        (g.dialect, g.stem.partition(":")[0]) for g in groups if DIALECTS[g.dialect].positional
    )
    family = detection.naming
    for (name, component), count in counts.items():
        known = len(DIALECTS[name].stems_of(family, component)) if family else 0
        if count != known:
            raise FormatError(
                "the positions of this lora_diffusion file cannot be assigned to modules",
                file=source.path,
                module=component,
                expected="144 modules of the UNet, 48 (SD1) or 92 (SD2) of the text encoder",
                found=f"{count} modules; target classes {source.metadata.get(component, 'unknown')}",
                hint="files trained with extended targets cannot be read",
            )
