"""Names of outputs: defaults, and refusals of names that cannot be written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loramerge.adapter import Adapter
from loramerge.adapter.encode import choose_dialect, suffix_of
from loramerge.adapter.formats.peft import CONTENTS
from loramerge.checkpoint.generic import is_transformers
from loramerge.dialects import Dialect
from loramerge.errors import FileError, Message, OutputExists, Setting, UsageError
from loramerge.files.atomic import Contents, check_contents, check_target, may_be_in_name
from loramerge.library.paths import is_adapter_folder
from loramerge.library.shipped import SHIPPED_ADAPTERS, SHIPPED_BASES
from loramerge.steps.references import Reference
from loramerge.steps.writing import WriteParameters

__all__ = [
    "Output",
    "adapter_output",
    "checkpoint_output",
    "default_name",
    "named_output",
    "output_of",
    "sum_name",
]

_LONGEST = 120
_APART = frozenset('/\\:*?"<>|')  # what some system keeps out of names
_MOST_BYTES = 200  # file systems allow 255 for a name, and a temporary one is longer
_PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_ANOTHER: Message = ("give another ", Setting("output"))


@dataclass(frozen=True)
class Output:
    """The path, dialect and type of an adapter that is written.

    Args:
        path: None where it stays in memory.
        dtype: safetensors name of the type, None for the adapter's own.
        program: that it is written for, if one is named.
    """

    path: Path | None
    dialect: Dialect
    dtype: str | None = None
    force: bool = False
    program: str | None = None

    @property
    def precise(self) -> bool:
        """True if results must be as exact as float64 can hold."""
        return self.dtype == "F64"

    @property
    def place(self) -> Path:
        """The path of a result that has one."""
        assert self.path is not None
        return self.path

    def at(self, path: Path) -> Output:
        """Return the same at a path, or refuse it before any work is done.

        Raises:
            UsageError, OutputExists: see `adapter_output`.
        """
        return replace(self, path=adapter_output(path, self.dialect, force=self.force))

    def checked(self) -> Output:
        """Return this, or refuse its path before any work is done.

        Raises:
            UsageError, OutputExists: see `adapter_output`.
        """
        return self.at(self.place)


def output_of(parameters: WriteParameters, adapters: Sequence[Adapter]) -> Output:
    """Return the form of a result that stays in memory."""
    dialect = choose_dialect(parameters.target(), list(adapters), parameters.output)
    return Output(None, dialect, parameters.float_type(), parameters.force, parameters.program)


def named_output(parameters: WriteParameters, adapters: Sequence[Adapter], stem: str) -> Output:
    """Return the path and the form of a result; `checked` refuses a path that cannot be written.

    Args:
        stem: default name of the file without its suffix.
    """
    found, path = output_of(parameters, adapters), parameters.output
    chosen = default_name(stem, suffix_of(found.dialect)) if path is None else Path(path)
    return replace(found, path=chosen)


def default_name(stem: str, suffix: str) -> Path:
    """Return an output name in the current folder, cut to 120 characters with a hash of the rest."""
    stem = stem.encode("utf-8", "replace").decode()
    clean = "".join(c if may_be_in_name(c) and c not in _APART else "_" for c in stem).strip(". ")
    if len(clean) + len(suffix) > _LONGEST or len(clean.encode()) > _MOST_BYTES:
        digest = hashlib.sha256(clean.encode()).hexdigest()[:8]
        clean = clean[: _LONGEST - len(suffix) - 9]
        while len(clean.encode()) > _MOST_BYTES:
            clean = clean[:-1]
        clean = f"{clean}-{digest}"
    if clean in (*SHIPPED_ADAPTERS, *SHIPPED_BASES):  # a file of that name would stand before it
        clean = f"{clean}-copy"
    return Path(clean + suffix)


def sum_name(references: Sequence[Reference]) -> str:
    """Return `a@0.7+b@0.3`; a weight of 1 is left out, and weights add no spaces."""
    return "+".join(
        r.label
        if r.written == "1"
        else f"{r.label}@{r.written.replace(' ', '-')}".replace(":", "@")
        for r in references
    )


def adapter_output(path: Path, target: Dialect, *, force: bool) -> Path:
    """Return the path of an adapter to write, or refuse it before any work is done.

    Raises:
        UsageError: if the name does not fit the sort of output. OutputExists: if it exists and may
        not be replaced.
    """
    if target.folder:
        if path.suffix.lower() in (".safetensors", *_PICKLES):
            raise UsageError(
                "a PEFT adapter is a folder", file=path, hint=_name(path.with_suffix(""))
            )
        return _checked_folder(path, CONTENTS, is_adapter_folder, force=force)
    if target.container == "gguf":
        problem = "adapters for llama.cpp are written as GGUF files"
        return _checked_file(path, problem, force=force, suffix=".gguf")
    if target.pickle and path.suffix.lower() == ".pt":
        return _checked(path, force=force)
    return _checked_file(path, "adapters are written as safetensors files", force=force)


def checkpoint_output(
    path: Path, contents: Contents | None, *, force: bool, suffix: str = ".safetensors"
) -> Path:
    """Return the path of a checkpoint to write, or refuse it; see `adapter_output`.

    Args:
        contents: the files that a folder there may hold; None for a checkpoint of one file.
        suffix: the ending of that file.
    """
    if contents is None:
        problem = "checkpoints are written as safetensors files"
        if suffix != ".safetensors":
            problem = f"the result is a {suffix} file"
        return _checked_file(path, problem, force=force, suffix=suffix)
    if path.suffix.lower() in (".safetensors", *_PICKLES):
        raise UsageError(
            "the base is a folder, and so is the result",
            file=path,
            hint=_name(path.with_suffix("")),
        )
    return _checked_folder(path, contents, _is_checkpoint_folder, force=force)


def _name(path: object) -> Message:
    return (Setting("output", str(path)),)


def _is_nameless(path: Path) -> bool:
    return path.name in ("", "..")


def _checked(path: Path, *, force: bool) -> Path:
    if _is_nameless(path):
        raise UsageError(
            "this cannot be the name of an output",
            found=str(path),
            hint=("give ", Setting("output"), " a name"),
        )
    above = next((p for p in path.parents if p.exists()), Path())
    if not above.is_dir():
        raise FileError("this is a file, and the output needs a folder here", file=above)
    return check_target(path, force=force)


def _checked_file(path: Path, problem: str, *, force: bool, suffix: str = ".safetensors") -> Path:
    if not _is_nameless(path) and path.suffix.lower() != suffix:
        others = {*_PICKLES, ".safetensors", ".gguf"} - {suffix}
        stem = path.with_suffix("") if path.suffix.lower() in others else path
        raise UsageError(problem, file=path, hint=_name(f"{stem}{suffix}"))
    if force and path.is_dir() and not _is_nameless(path):
        raise FileError("the output is an existing folder", file=path, hint=_ANOTHER)
    return _checked(path, force=force)


def _checked_folder(
    path: Path, contents: Contents, replaceable: Callable[[Path], bool], *, force: bool
) -> Path:
    """Check a folder: replacing it removes its content, so it must be of the same sort."""
    _checked(path, force=force)
    if path.is_dir() and any(path.iterdir()):
        check_contents(path, contents)
        if not replaceable(path):
            raise OutputExists(
                f"the folder is not {contents.what}, and replacing it would remove its files",
                file=path,
                hint=_ANOTHER,
            )
    return path


def _is_checkpoint_folder(folder: Path) -> bool:
    configs = ("model_index.json", "unet/config.json", "transformer/config.json")
    pipeline = any((folder / name).is_file() for name in configs)
    return pipeline or (is_transformers(folder) and any(folder.glob("*.safetensors")))
