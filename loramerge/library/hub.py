"""References to repositories of Hugging Face: `hf:ORG/REPO[/FILE][@REVISION]`.

Only such a reference downloads, by the package huggingface_hub into its own cache, and only where a
person writes it: on the command line or in Python. In a recipe it names what is in the cache already.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from loramerge.errors import FileError, MissingExtra, NotFound, UsageError, listed, nearest

__all__ = ["Hub", "HubReference", "cached", "connect", "fetch", "hub_reference"]

_HEAD = "hf:"
_TRUE = ("1", "ON", "YES", "TRUE")  # as the package reads them
_WRITTEN = re.compile(r"hf:([\w.-]+/[\w.-]+?)(?:/([^@]*?))?/?(?:@([\w./-]+))?")
_WEIGHTS = (".safetensors", ".pt", ".bin", ".ckpt", ".pth")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_PIPELINE = "pytorch_lora_weights.safetensors"
_MODELS = ("model_index.json", "config.json")


class HubReference(NamedTuple):
    """The parts of a reference.

    Args:
        path: of a file or folder in the repository; empty for the whole.
        revision: a branch, tag or commit; None for the newest.
    """

    repository: str
    path: str
    revision: str | None

    @property
    def name(self) -> str:
        """The last part of its path, or of the repository's name."""
        return (self.path or self.repository).rpartition("/")[2]


class Hub(NamedTuple):
    """The two things that are asked of the hub.

    Args:
        files: repository, revision → the paths of all its files.
        download: repository, revision, paths → the folder that holds these files.
    """

    files: Callable[[str, str | None], Sequence[str]]
    download: Callable[[str, str | None, Sequence[str]], Path]


def hub_reference(name: str) -> HubReference | None:
    """Return the reference that a name is, None if it is none.

    Raises:
        UsageError: if it begins like one and is none.
    """
    if not name.startswith(_HEAD):
        return None
    found = _WRITTEN.fullmatch(name)
    if found is None or ".." in name.split("/"):
        raise UsageError(
            f"{name!r} is not a repository of Hugging Face",
            expected="hf:ORG/REPO[/FILE][@REVISION]",
        )
    return HubReference(found[1], found[2] or "", found[3])


def fetch(reference: HubReference, holds: str, hub: Hub) -> Path:
    """Return the file or folder that a reference names, downloaded if it has to be.

    Args:
        holds: `adapters` or `bases`.

    Raises:
        NotFound: if the repository has none, or several.
    """
    names = sorted(hub.files(reference.repository, reference.revision))
    wanted, place = _wanted(reference, names, holds)
    return hub.download(reference.repository, reference.revision, wanted) / place


def _wanted(reference: HubReference, names: Sequence[str], holds: str) -> tuple[list[str], str]:
    """Return the files to download, and what is opened of them."""
    path = reference.path
    if path in names:
        folder = path.rpartition("/")[0]
        beside = [name for name in names if name.rpartition("/")[0] == folder]
        with_it = [name for name in beside if name.rpartition("/")[2] == _ADAPTER[0]]
        shards = [name for name in beside if name.endswith(".safetensors")]
        also = (
            with_it if "adapter_model" in path else shards if path.endswith(".index.json") else []
        )
        return sorted({path, *also}), path
    head = f"{path}/" if path else ""
    inside = [name for name in names if name.startswith(head)]
    if not inside:
        close = nearest(path, names)
        raise NotFound(
            f"{reference.repository} has no file {path!r}",
            hint=f"did you mean {_HEAD}{reference.repository}/{close}?" if close else None,
        )
    local = {name.removeprefix(head): name for name in inside}
    if holds == "adapters":
        folders = {name.rpartition("/")[0] for name in local if name.endswith(_ADAPTER[0])}
        if folders and ("" in folders or all("/" not in folder for folder in folders)):
            chosen = {""} if "" in folders else folders
            here = [n for n in local if n.rpartition("/")[0] in chosen]
            return [local[n] for n in here if n.rpartition("/")[2] in _ADAPTER], path
        if _PIPELINE in local:
            return [local[_PIPELINE]], local[_PIPELINE]
    elif any(name in local for name in _MODELS):
        return [local[name] for name in _model_files(list(local))], path
    weights = [name for name in local if name.endswith(_WEIGHTS)]
    safe = [name for name in weights if name.endswith(".safetensors")] or weights
    if len(safe) != 1:
        raise NotFound(
            f"{reference.repository} has {'no' if not safe else 'several'} files of weights",
            found=listed(safe, 12) if safe else listed(list(local), 12),
            hint=f"name the file: {_HEAD}{reference.repository}/FILE",
        )
    return [local[safe[0]]], local[safe[0]]


def _model_files(names: Sequence[str]) -> list[str]:
    """Return the configurations and weights of a model in diffusers' or transformers' layout.

    Of the same weights in several types, those without the name of a variant are taken.
    """
    folders = {name.rpartition("/")[0] for name in names if name.endswith("config.json")}
    found = []
    for name in names:
        folder, _, file = name.rpartition("/")
        if file.endswith(".json") and (not folder or folder in folders):
            found.append(name)
        elif file.endswith(".safetensors") and folder in folders:
            usual = re.sub(r"\.(?:fp16|bf16|non_ema)(?=[.-])", "", name)
            if usual == name or usual not in names:
                found.append(name)
    return found


# --- huggingface_hub


def _package() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise MissingExtra(
            "names that begin with hf: need the package huggingface_hub",
            hint="pip install huggingface_hub, or download the file and give its path",
        ) from None
    return huggingface_hub


def connect() -> Hub:
    """Return the hub itself, or what is in the cache where `HF_HUB_OFFLINE` is set.

    Raises:
        MissingExtra: without huggingface_hub.
    """
    package = _package()
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in _TRUE:
        return cached()

    def files(repository: str, revision: str | None) -> Sequence[str]:
        with _Asking(repository):
            found: list[str] = package.list_repo_files(repository, revision=revision)
            return found

    def download(repository: str, revision: str | None, names: Sequence[str]) -> Path:
        import glob

        with _Asking(repository):
            patterns = [glob.escape(name) for name in names]
            return Path(
                package.snapshot_download(repository, revision=revision, allow_patterns=patterns)
            )

    return Hub(files, download)


def cached() -> Hub:
    """Return what is in the cache; nothing is downloaded.

    Raises:
        MissingExtra: without huggingface_hub.
    """
    package = _package()

    def folder(repository: str, revision: str | None) -> Path:
        with _Asking(repository, cached=True):
            return Path(
                package.snapshot_download(repository, revision=revision, local_files_only=True)
            )

    def files(repository: str, revision: str | None) -> Sequence[str]:
        root = folder(repository, revision)
        return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]

    return Hub(files, lambda repository, revision, _: folder(repository, revision))


class _Asking:
    """Turns the errors of a download into ours, with the repository's name.

    What the package says of each attempt is left out: the error says it once.

    Raises:
        NotFound: if there is no such repository, revision or copy.
        FileError: if the hub does not answer, or refuses.
    """

    def __init__(self, repository: str, *, cached: bool = False) -> None:
        self._repository, self._cached = repository, cached

    def __enter__(self) -> None:
        import logging

        self._before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # its own logger takes a level back when it is first used

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import logging

        logging.disable(self._before)
        if not isinstance(error, Exception) or isinstance(error, NotFound):
            return
        name = type(error).__name__
        if self._cached:
            says = f"{self._repository} has not been downloaded, and recipes do not download"
            hint = f"hf download {self._repository}"
        elif name == "RepositoryNotFoundError":
            says, hint = (
                f"Hugging Face has no repository {self._repository}, or it is private",
                None,
            )
        elif name in ("RevisionNotFoundError", "GatedRepoError"):
            says, hint = f"{self._repository} cannot be downloaded ({name})", "hf auth login"
            if name == "RevisionNotFoundError":
                says, hint = f"{self._repository} has no such revision", None
        else:
            first = str(error).strip().splitlines()[:1]
            raise FileError(
                f"{self._repository} was not downloaded: {first[0][:200] if first else name}",
                hint="download the file in another way, and give its path",
            ) from None
        raise NotFound(says, hint=hint) from None
