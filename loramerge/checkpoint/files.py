"""The files a checkpoint consists of: one, shards with an index, or a diffusers folder."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from loramerge.checkpoint.storages import as_weights
from loramerge.errors import CorruptFile, FormatError, MissingFile
from loramerge.files.atomic import Contents
from loramerge.files.forms import GGUF, is_gguf, is_pickle
from loramerge.files.gguf import GgufFile
from loramerge.files.header import TensorInfo, build_header
from loramerge.files.json_values import read_values
from loramerge.files.pickled import pickled_tensors, refuse_foreign
from loramerge.files.reader import TensorFile
from loramerge.files.signatures import foreign_in
from loramerge.files.tensors import Tensor

__all__ = ["CheckpointFile", "CheckpointFiles", "contents_of", "find_files"]

_INDEX = ".safetensors.index"
_COMPONENTS = (
    "unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3",
    "text_encoder_4", "text_conditioner", "connectors", "vae",
)  # fmt: skip
_FOLDERS = (
    *_COMPONENTS, "scheduler", "tokenizer", "tokenizer_2", "tokenizer_3", "tokenizer_4",
    "feature_extractor", "safety_checker", "image_encoder",
)  # fmt: skip
_IN_FOLDERS = (
    "config.json", "generation_config.json", "scheduler_config.json", "preprocessor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "*.index.json",
    "diffusion_pytorch_model*.safetensors", "diffusion_pytorch_model*.bin",
    "model*.safetensors", "pytorch_model*.bin",
)  # fmt: skip
_SAFE_NAMES = {"pytorch_model.bin": "model.safetensors"}


@dataclass(eq=False)
class CheckpointFile:
    """One file of tensors.

    Args:
        path: where it is.
        relative: its path below the output folder; a pickle's name is that of the safetensors file
            it becomes.
        component: the component whose folder it lies in, `''` for a file that holds all.
        given: tensors that replace stored ones of these names, or are added.
    """

    path: Path
    relative: PurePosixPath
    component: str = ""
    given: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    _opened: tuple[Mapping[str, Tensor], Mapping[str, str]] | None = field(default=None, repr=False)
    _weights: Mapping[str, Tensor] | None = field(default=None, repr=False)
    _file: TensorFile | None = field(default=None, repr=False)

    @property
    def suffix(self) -> str:
        """The ending of the file it is written as."""
        return GGUF if self.gguf else ".safetensors"

    @property
    def gguf(self) -> bool:
        """True if it is a GGUF file, and is written as one."""
        return is_gguf(self.path)

    @property
    def pickled(self) -> bool:
        """True if it is read through torch and written as safetensors."""
        return is_pickle(self.path)

    def open(self) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
        """Return tensors in file order and the header's metadata."""
        if self._opened is None:
            if self.pickled:
                self._opened = (pickled_tensors(self.path), {"format": "pt"})
            else:
                file = GgufFile(self.path) if is_gguf(self.path) else TensorFile(self.path)
                self._opened, self._file = (file.tensors, file.metadata), file
            if self.given:
                self._opened = ({**self._opened[0], **self.given}, self._opened[1])
        return self._opened

    def weights(self) -> Mapping[str, Tensor]:
        """Return the tensors in file order, packed ones with the shapes of the weights they hold."""
        if self._weights is None:
            self._weights = as_weights(self.open()[0])
        return self._weights

    def names(self) -> Collection[str]:
        """Return the names of stored tensors, without the parts of weights that have other names."""
        weights = self.weights()
        return [name for name in self.open()[0] if name in weights]

    def rebuilt(
        self, entries: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
    ) -> tuple[bytes, dict[str, TensorInfo]]:
        """Build the head of a file of the same format with other tensors; see `build_header`."""
        self.open()
        return (build_header if self._file is None else self._file.rebuilt)(entries, metadata)

    @property
    def fields(self) -> Mapping[str, Any]:
        """The fields of a GGUF file, nothing for other files."""
        self.open()
        return self._file.fields if isinstance(self._file, GgufFile) else {}

    @property
    def alignment(self) -> int:
        """Number of which the size of the file is a multiple."""
        self.open()
        return 1 if self._file is None else self._file.alignment


@dataclass
class CheckpointFiles:
    """The files of a checkpoint, as `find_files` returns them.

    Args:
        root: the folder, or None for a single file.
        weights: files of tensors that belong to a component.
        others: further files to copy (configurations, tokenizers, indexes), relative to the root.
        notes: messages about files that change their form.
    """

    root: Path | None
    weights: list[CheckpointFile]
    others: list[PurePosixPath] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def suffix(self) -> str:
        """The ending of the name of a file like this checkpoint, `''` for a folder."""
        return "" if self.root is not None else self.weights[0].suffix

    def require_readable(self) -> None:
        """Refuse weights of another format, or truncated ones; of pickles only the first bytes are
        read.

        Raises:
            ForeignFile, CorruptFile: naming the file.
        """
        for file in self.weights:
            if file.pickled:
                refuse_foreign(file.path)
            else:
                file.open()

    def contents(self) -> Contents:
        """Return the files that a folder with the result of a bake may replace."""
        read = {
            PurePosixPath(file.path.relative_to(self.root).as_posix())
            for file in self.weights
            if self.root is not None
        }
        return contents_of({*read, *(file.relative for file in self.weights), *self.others})


def contents_of(paths: Collection[PurePosixPath]) -> Contents:
    """Return the files of checkpoint folders: usual ones, and those of the new folder.

    Args:
        paths: paths of the new files, relative to the folder.
    """

    def known(path: PurePosixPath) -> bool:
        folder, name = path.parent.as_posix(), path.name
        usual = folder in _FOLDERS and any(fnmatchcase(name, one) for one in _IN_FOLDERS)
        return usual or str(path) == "model_index.json" or path in paths

    return Contents("a checkpoint", known)


def find_files(path: Path) -> CheckpointFiles:
    """Find the files of a checkpoint.

    Raises:
        MissingFile: if there is nothing at `path`, or a shard is missing.
        FormatError: if a folder holds no weights.
    """
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise MissingFile("no such checkpoint", file=path)
    if path.name.endswith(".json") and _INDEX in path.name:
        return _folder(path.parent)
    file = CheckpointFile(path, PurePosixPath(path.name))
    notes = [f"{path.name} is pickled; it will be written as safetensors"] if file.pickled else []
    return CheckpointFiles(None, [file], notes=notes)


def _folder(root: Path) -> CheckpointFiles:
    """Find the weights of a folder: in component folders, or directly in it."""
    found = CheckpointFiles(root, [])
    for file in sorted(p for p in root.rglob("*") if p.is_file()):
        relative = PurePosixPath(file.relative_to(root).as_posix())
        if any(part.startswith(".") for part in relative.parts):
            continue
        component = relative.parts[0] if len(relative.parts) == 2 else ""
        if component not in _COMPONENTS:
            component = ""
        inside = bool(component) or len(relative.parts) == 1
        if inside and relative.suffix == ".safetensors":
            found.weights.append(CheckpointFile(file, relative, component))
        elif inside and is_pickle(file):
            _add_pickle(found, file, relative, component)
        else:
            found.others.append(relative)
            if inside and relative.suffix == ".json" and _INDEX in relative.name:
                _check_index(file)
    if not found.weights:
        raise FormatError(
            "the folder holds no weights",
            file=root,
            expected="for example unet/diffusion_pytorch_model.safetensors",
            found=foreign_in(root),
            hint="give the folder that holds model_index.json, or a single file",
        )
    return found


def _add_pickle(
    found: CheckpointFiles, file: Path, relative: PurePosixPath, component: str
) -> None:
    """Add a pickled weight file, unless a safetensors file has the same weights."""
    if not component:
        found.others.append(relative)
        found.notes.append(
            f"{relative} is copied unchanged: adapters are not baked into pickles beside"
        )
        return
    if (file.parent / f"{file.name.partition('-00')[0]}.bin.index.json").is_file():
        raise FormatError(
            "shards of pickled weights cannot be baked",
            file=file,
            hint="save the component as safetensors, e.g. with save_pretrained",
        )
    name = relative.name
    for old, new in _SAFE_NAMES.items():
        name = name.replace(old.removesuffix(".bin"), new.removesuffix(".safetensors"))
    safe = relative.with_name(name).with_suffix(".safetensors")
    if (file.parent / safe.name).is_file():
        found.notes.append(f"{relative} is left out: {safe.name} holds the same weights")
        return
    found.weights.append(CheckpointFile(file, safe, component))
    found.notes.append(f"{relative} is pickled; it will be written as {safe}")


def _check_index(path: Path) -> None:
    """Check that all shards of an index are there.

    Raises:
        MissingFile: naming the first that is not.
    """
    try:
        index = read_values(path)
        files = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(files, dict):
            raise ValueError("it has no weight_map, which names the shard of each tensor")
        if not isinstance(index.get("metadata", {}), dict):
            raise ValueError("its metadata are not an object")
        if not all(isinstance(shard, str) for shard in files.values()):
            raise ValueError("the name of a shard is not text")
        if any({"/", "\\"} & set(shard) for shard in files.values()):
            raise ValueError("a shard lies in another folder")
        shards = sorted(set(files.values()))
    except (OSError, ValueError) as error:
        raise CorruptFile(f"the index cannot be read ({error})", file=path) from None
    for shard in shards:
        if not os.path.isfile(path.parent / shard):  # false also for names that no file can have
            raise MissingFile(
                "a shard is missing",
                file=path,
                expected=shard,
                hint="download the checkpoint again",
            )
