"""The facts about a file that the index keeps, and its sketch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loramerge.errors import FormatError, LoramergeError
from loramerge.files.digest import sha256_of_file_and_data
from loramerge.library.known import digest_at
from loramerge.library.paths import is_adapter_folder

if TYPE_CHECKING:
    from loramerge.adapter import Adapter
    from loramerge.algebra.arrays import Array
    from loramerge.library.index import Index

__all__ = [
    "Digests",
    "Read",
    "described",
    "digests",
    "form",
    "read",
    "unit_sketch",
    "without_sketch",
]

_MOST_TAGS = 100
_COMMENTS = (
    "modelspec.description", "modelspec.author", "modelspec.usage_hint", "ss_training_comment",
    "modelspec.tags",
)  # fmt: skip
_TITLES = ("modelspec.title", "ss_output_name")
_PICKLES = (".pt", ".bin", ".ckpt", ".pth")


@dataclass(frozen=True)
class Digests:
    """The digests of a file or of an adapter's folder.

    Args:
        sha256: the one that recipes and sites name it by.
        data: of a safetensors file that of its bytes after the header, else None.
    """

    sha256: str
    data: str | None = None

    @property
    def identity(self) -> str:
        """The digest that a change of metadata keeps, where there is one."""
        return self.data or self.sha256


@dataclass(frozen=True, eq=False)
class Read:
    """The facts about a content, and its sketch of length 1, `(4096,)`; None where there is none."""

    facts: dict[str, Any]
    sketch: Array | None = None


def digests(path: Path) -> Digests:
    """Return the digests of a file or folder.

    Raises:
        LoramergeError: if it cannot be read.
    """
    if path.is_dir():
        return Digests(digest_at(path))
    if path.suffix.lower() == ".safetensors":
        return Digests(*sha256_of_file_and_data(path))
    return Digests(sha256_of_file_and_data(path)[0])


def read(path: Path, known: Digests) -> Read:
    """Return the facts about a file and its sketch; it is read but for pickles, which need torch.

    Raises:
        LoramergeError: if it cannot be read.
    """
    facts: dict[str, Any] = {
        "size": _size(path),
        "autov2": known.sha256[:10],
        "autov3": known.data[:12] if known.data else None,
    }
    if path.suffix.lower() in _PICKLES and not path.is_dir():
        return Read(facts | {"what": "pickle"})
    adapter, own = _opened(path)
    if adapter is None:
        return Read(facts | own)
    sketch, reason = unit_sketch(adapter)
    return Read(facts | own | {"not_sketched": reason}, sketch)


def described(path: Path) -> dict[str, Any]:
    """Return the facts that the header of a file says, without its digests; pickles are not opened.

    Raises:
        LoramergeError: if it cannot be read.
    """
    facts = {"size": _size(path)}
    if path.suffix.lower() in _PICKLES and not path.is_dir():
        return facts | {"what": "pickle"}
    return facts | _opened(path)[1]


def _opened(path: Path) -> tuple[Adapter | None, dict[str, Any]]:
    """Return the adapter in a file and its facts; for a checkpoint only these."""
    from loramerge.adapter.load import load

    try:
        adapter = load(path)
    except FormatError:
        if path.is_dir() and not is_adapter_folder(path):
            return None, _of_checkpoint(path)
        raise
    if adapter.only_replaces and not adapter.embeddings:
        return None, _of_checkpoint(path)
    return adapter, _of_adapter(adapter)


def _size(path: Path) -> int:
    files = [path] if not path.is_dir() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)


def unit_sketch(adapter: Adapter) -> tuple[Array | None, str | None]:
    """Return the sketch of an adapter divided by its length, or None and why there is none."""
    import numpy as np

    from loramerge.adapter.opaque import flatly_named
    from loramerge.algebra.compare import comparable
    from loramerge.algebra.sketch import sketch

    if not adapter.deltas:
        return None, "it holds no adapter"
    if not any(comparable(delta) for delta in adapter.deltas.values()):
        return None, "what it changes depends on the base, which is not here"
    try:
        with np.errstate(all="ignore"):
            found = sketch(flatly_named(adapter))
            norm = float(np.linalg.norm(found))
    except LoramergeError as error:
        return None, error.problem
    if not np.isfinite(norm):
        return None, "it holds NaN or infinity"
    if norm == 0:
        return None, "it changes nothing"
    return (found / norm).astype(np.float32), None


def without_sketch(index: Index) -> dict[int, str]:
    """Return content → why it has no sketch, of all adapters without one."""
    found = {}
    for (content,) in index.rows("SELECT id FROM contents WHERE NOT sketched"):
        facts = index.facts(content) or {}
        if facts.get("what") == "pickle":
            found[content] = "it is pickled, and not opened"
        elif facts.get("what") != "checkpoint":
            found[content] = facts.get("not_sketched") or "it is not known why"
    return found


def form(facts: dict[str, Any]) -> str:
    """Return the dialect and the types of a file in words."""
    return f"{facts.get('dialect') or 'unknown'} {'/'.join(facts.get('dtypes', ()))}"


def _of_adapter(adapter: Adapter) -> dict[str, Any]:
    from loramerge.adapter.metadata import tags, trained_on, trigger_words
    from loramerge.files.dtypes import DTYPES

    info = adapter.info
    what = "adapter" if adapter.deltas or info.configs else "unknown"
    return {
        "what": "embeddings" if adapter.embeddings and not adapter.deltas else what,
        "dialect": " + ".join(info.dialects) or ("peft" if info.configs else None),
        "family": info.detection.name,
        "trained_on": trained_on(info.metadata),
        "kinds": adapter.kinds(),
        "components": adapter.components(),
        "modules": len(adapter.deltas),
        "ranks": {str(rank): count for rank, count in adapter.ranks().items()},
        "dtypes": [DTYPES[name].word for name in adapter.dtypes()],
        "title": next((info.metadata[key] for key in _TITLES if info.metadata.get(key)), None),
        "trigger_words": trigger_words(info.metadata),
        "tags": tags(info.metadata)[:_MOST_TAGS],
        "comment": "\n".join(filter(None, map(info.metadata.get, _COMMENTS))) or None,
        "problems": [one.message for one in info.problems if one.severity == "error"],
    }


def _of_checkpoint(path: Path) -> dict[str, Any]:
    from loramerge.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path)
    family = None if checkpoint.is_unknown else checkpoint.family_name
    return {"what": "checkpoint", "family": family}
