"""The strings in an adapter's header: those that survive an operation, and those made anew."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping

from loramerge.files.json_values import values_in

__all__ = [
    "NETWORK",
    "RECIPE_KEY",
    "VERSION_KEY",
    "combined",
    "structure",
    "tags",
    "training_metadata",
    "trigger_words",
]

RECIPE_KEY = "loramerge.recipe"  # what made the file, as a recipe
VERSION_KEY = "loramerge.version"
NETWORK = "loramerge.network"  # of two networks of a pipeline, the one whose modules a file has

# Describe the stored tensors and would be wrong after any change.
_STALE = frozenset(
    {"sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", RECIPE_KEY, VERSION_KEY}
)
_STRUCTURE = frozenset({"lora_adapter_metadata", "unet", "text_encoder", NETWORK})
_TAGS = "ss_tag_frequency"
# of the model specification of Stability AI (modelspec, version 1.0.1)
_TITLE, _MERGED = "modelspec.title", "modelspec.merged_from"
_WORDS, _MODEL_TAGS = "modelspec.trigger_phrase", "modelspec.tags"


def _is_structure(key: str, value: str) -> bool:
    """Return whether an entry describes the layout of the file, not its training."""
    positional = key.endswith(":rank") and key.startswith(("unet:", "text_encoder:"))
    return key in _STALE or key in _STRUCTURE or positional or value == "<embed>"


def structure(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the entries that a program needs to load the file."""
    return {
        k: v
        for k, v in metadata.items()
        if k == "format" or (k not in _STALE and _is_structure(k, v))
    }


def training_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the entries that stay true when the tensors change."""
    return {k: v for k, v in metadata.items() if not _is_structure(k, v)}


def combined(metadatas: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Unite the training metadata of several adapters, independent of their order.

    What all that have it agree on is kept; tag counts are added up, trigger phrases and tags united,
    and `modelspec.merged_from` lists the titles; the rest contradicts itself in the result and is
    left out. The network stays where all name the same.
    """
    given = list(metadatas)
    cleaned = [training_metadata(metadata) for metadata in given]
    keys = sorted({key for metadata in cleaned for key in metadata})
    result: dict[str, str] = {}
    if (
        len(networks := {metadata.get(NETWORK, "") for metadata in given}) == 1
        and "" not in networks
    ):
        result[NETWORK] = networks.pop()
    for key in keys:
        found = {metadata[key] for metadata in cleaned if key in metadata}
        if len(found) == 1:
            result[key] = found.pop()
        elif key == _TAGS:
            result[key] = _united_tags(m[key] for m in cleaned if key in m)
        elif key == _WORDS:
            result[key] = ", ".join(_united(trigger_words(m) for m in cleaned))
        elif key == _MODEL_TAGS:
            result[key] = ", ".join(_united(m[key].split(",") for m in cleaned if key in m))
        elif key == _TITLE:
            result[_MERGED] = ", ".join(_united([m[key]] for m in cleaned if key in m))
    return result


def _united(lists: Iterable[Iterable[str]]) -> list[str]:
    """Return all words of several lists, each once, in an order that theirs does not change."""
    return sorted({word.strip() for words in lists for word in words if word.strip()})


def _tag_tables(raw: str) -> dict[str, dict[str, int]]:
    try:
        content = values_in(raw)
    except ValueError:
        return {}
    if not isinstance(content, dict):
        return {}
    tables = {}
    for folder, table in content.items():
        if isinstance(table, dict):
            tables[str(folder)] = {
                str(tag): int(n)
                for tag, n in table.items()
                if isinstance(n, (int, float)) and math.isfinite(n)
            }
    return tables


def _united_tags(raws: Iterable[str]) -> str:
    united: dict[str, dict[str, int]] = {}
    for raw in raws:
        for folder, table in _tag_tables(raw).items():
            counts = united.setdefault(folder, {})
            for tag, n in table.items():
                counts[tag] = counts.get(tag, 0) + n
    ordered = {f: dict(sorted(t.items())) for f, t in sorted(united.items())}
    return json.dumps(ordered, ensure_ascii=False)


def tags(metadata: Mapping[str, str]) -> list[tuple[str, int]]:
    """Return (tag, count) over all training folders, most frequent first."""
    counts: dict[str, int] = {}
    for table in _tag_tables(metadata.get(_TAGS, "")).values():
        for tag, n in table.items():
            name = tag.strip()
            counts[name] = counts.get(name, 0) + n
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """Return the trigger words of the adapter, as far as its metadata has them.

    `modelspec.trigger_phrase` is what the author states. Without it, kohya's folder names
    (`10_zuzu cat`, repeats and words) are what the trainer used.
    """
    stated = metadata.get(_WORDS, "")
    if stated.strip():
        return [word.strip() for word in stated.split(",") if word.strip()]
    words = []
    for folder in _tag_tables(metadata.get(_TAGS, "")):
        repeats, _, name = folder.partition("_")
        if repeats.isdigit() and name:
            words.append(name)
    embedded = [key for key, value in metadata.items() if value == "<embed>"]
    return words + embedded


def trained_on(metadata: Mapping[str, str]) -> str | None:
    """Return the base that the adapter was trained on, according to the metadata."""
    for key in ("ss_sd_model_name", "modelspec.architecture", "ss_base_model_version"):
        if metadata.get(key):
            return metadata[key]
    return None
