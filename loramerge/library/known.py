"""Known files by name and by digest: those of the library and its index, bases, and shipped ones."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from glob import escape
from pathlib import Path

from loramerge.adapter.formats.named import split_name
from loramerge.adapter.source import open_source
from loramerge.checkpoint.files import find_files
from loramerge.errors import LoramergeError
from loramerge.files.folders import dataset_files
from loramerge.files.forms import is_pickle
from loramerge.library.digests import digest_of, digest_of_files
from loramerge.library.entries import with_digest
from loramerge.library.lookup import find, names_in_library
from loramerge.library.paths import is_adapter_folder
from loramerge.library.registry import NameRegistry, load_registry
from loramerge.library.shipped import shipped_as

__all__ = ["KnownFiles", "digest_at"]


def digest_at(path: Path) -> str:
    """Return the digest of an adapter, a checkpoint, or a folder of images with their captions.

    That of a folder is over its files of weights; a pickled adapter may have more files beside it.

    Raises:
        LoramergeError: if it cannot be read.
    """
    path, _ = split_name(path)
    if not path.is_dir():
        alone = not is_pickle(path) or not any(
            path.parent.glob(f"{escape(path.stem)}.*{escape(path.suffix)}")
        )
        files = [path] if alone else open_source(path).files
        return digest_of(path) if len(files) == 1 else digest_of_files(path.parent, files)
    try:
        files = [file.path for file in find_files(path).weights]
    except LoramergeError:
        images = dataset_files(path)
        if images and not is_adapter_folder(path):
            return digest_of_files(path, images)
        files = open_source(path).files
    if (path / "adapter_config.json").is_file() or any(path.glob("*/adapter_config.json")):
        files = open_source(path).files
    return digest_of(files[0]) if len(files) == 1 else digest_of_files(path, files)


class KnownFiles:
    """The files of the library and the registered bases, by name and by digest.

    However many are looked up, the library is listed once and each file is read once.
    """

    def __init__(self) -> None:
        self._digests: dict[Path, str | None] = {}
        self._names: dict[str, list[tuple[str, Path]]] = {}

    def find(self, name: str, holds: str, root: Path | None = None) -> Path:
        """Return the file that a name refers to; see `library.lookup.find`."""
        return find(name, holds, self._registry, root, names=self._listed)

    def with_digest(self, sha256: str, first: str) -> Path | None:
        """Return a file with a digest, among these, indexed or shipped ones, None if there is none.

        Args:
            first: a file name; files of that name are tried before the others.
        """
        for path in with_digest(sha256):  # as the index of the library remembers
            if self._digest(path) == sha256:
                return path
        places = dict.fromkeys(shipped_as(first)) | self._places
        for path in sorted(places, key=lambda path: path.name != first):
            if self._digest(path) == sha256:
                return path
        return None

    def search(self, name: str, sha256: str | None, folders: Sequence[Path]) -> Path | None:
        """Return a file with a name and a digest, or any with that digest; None if there is none.

        Args:
            name: of the file, without folders.
            sha256: None accepts any file of that name.
            folders: searched first.
        """
        here = [folder / name for folder in folders]
        for holds in ("adapters", "bases"):
            with suppress(LoramergeError):
                here.append(self.find(name, holds))
        for path in here:
            if path.exists() and (sha256 is None or self._digest(path) == sha256):
                return path
        file, _, adapter = name.rpartition("#")  # one of several adapters in a file
        found = self.search(file, sha256, folders) if file else None
        if found is not None:
            return found.with_name(f"{found.name}#{adapter}")
        return None if sha256 is None else self.with_digest(sha256, name)

    @cached_property
    def _registry(self) -> NameRegistry:
        return load_registry()

    def _listed(self, registry: NameRegistry, holds: str) -> list[tuple[str, Path]]:
        if holds not in self._names:
            self._names[holds] = list(names_in_library(registry, holds))
        return self._names[holds]

    @cached_property
    def _places(self) -> dict[Path, None]:
        places: dict[Path, None] = {}
        for holds in ("adapters", "bases"):
            places |= dict.fromkeys(path for _, path in self._listed(self._registry, holds))
        return places | dict.fromkeys(Path(path) for path in self._registry.bases.values())

    def _digest(self, path: Path) -> str | None:
        """Return the digest of a file, None if it cannot be read and so is not the one."""
        if path not in self._digests:
            try:
                self._digests[path] = digest_at(path)
            except (LoramergeError, OSError):
                self._digests[path] = None
        return self._digests[path]
