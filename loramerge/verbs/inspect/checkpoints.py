"""The facts about one checkpoint, from its header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from loramerge.adapter import Problem
from loramerge.adapter.metadata import trigger_words
from loramerge.checkpoint import open_checkpoint
from loramerge.errors import LoramergeError
from loramerge.files.dtypes import DTYPES
from loramerge.files.forms import is_gguf
from loramerge.steps.contents import contents_of
from loramerge.steps.lineage import lineage_of
from loramerge.verbs.inspect.facts import Inspected

__all__ = ["inspect_checkpoint"]

_NO_FAMILY = Problem(
    "note",
    "no-family",
    None,
    "these are the weights of a model, not an adapter, and its family is not known",
    "adapters with the same names and shapes can be baked into it",
)


def inspect_checkpoint(path: Path) -> Inspected:
    """Describe a base, since people point at those too."""
    checkpoint = open_checkpoint(path)
    dtypes: dict[str, int] = {}
    for file in checkpoint.files.weights:
        for tensor in file.weights().values():
            word = DTYPES[tensor.dtype].word
            dtypes[word] = dtypes.get(word, 0) + 1
    metadata: dict[
        str, str
    ] = {}  # a bake into a folder has its recipe in the files it changed alone
    for file in reversed(checkpoint.files.weights):
        metadata |= file.open()[1]
    modules = {module for module, _ in checkpoint.slots}
    components = {name: len(modules) for name in checkpoint.layouts}
    if len(components) > 1:  # the modules of one are not all named after it
        components = {n: sum(m.startswith(f"{n}.") for m in modules) for n in components}
    layouts = sorted(set(checkpoint.layouts.values()))
    return Inspected(
        path=str(path),
        size=checkpoint.size,
        what="checkpoint",
        dialect=f"layout {', '.join(layouts)}{', GGUF' if is_gguf(path) else ''}",
        family=None if checkpoint.is_unknown else checkpoint.family_name,
        family_reason=checkpoint.reason,
        modules=len(modules),
        components=components,
        dtypes=dtypes,
        trained_on=metadata.get("modelspec.architecture") or None,
        trigger_words=trigger_words(metadata),
        merged=_contents(metadata),
        metadata=metadata,
        findings=[_NO_FAMILY] if checkpoint.is_unknown else [],
    )


def _contents(metadata: Mapping[str, str]) -> str | None:
    """Return what a checkpoint was made from in words, as its header has it."""
    try:
        merge = lineage_of(metadata)
    except LoramergeError as error:
        return f"not readable: {error.problem}"
    own = contents_of(metadata)
    if own is not None:
        return own if merge is None else f"{own}; before that {merge.words}"
    if merge is not None:
        return merge.words
    stated = metadata.get("modelspec.merged_from")
    return f"a merge of {stated}" if stated else None
