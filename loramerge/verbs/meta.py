"""meta: the strings in a file's header, shown or edited without touching tensors."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from loramerge.adapter import Adapter
from loramerge.adapter.formats.kohya_hashes import HASH_PLACEHOLDERS, kohya_hashes
from loramerge.adapter.formats.peft import WEIGHTS_NAME
from loramerge.adapter.load import load
from loramerge.adapter.metadata import structure
from loramerge.checkpoint.files import contents_of
from loramerge.errors import (
    AdapterError,
    FormatError,
    LoramergeError,
    NotFound,
    Setting,
    UsageError,
    listed,
    suggestion,
)
from loramerge.events import Note, Warn
from loramerge.files.atomic import AtomicFolder
from loramerge.files.forms import is_pickle
from loramerge.files.pickled import refuse_foreign
from loramerge.files.reader import TensorFile
from loramerge.files.rewrite import rewrite_header
from loramerge.files.signatures import foreign_in
from loramerge.library.shipped import is_shipped
from loramerge.steps.inputs import find_told
from loramerge.steps.outputs import checkpoint_output
from loramerge.steps.parameters import Context, Doc, Verb

__all__ = ["VERB", "Meta", "MetaResult", "meta"]

_PIPELINE = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True, kw_only=True)
class Meta:
    """Show or edit the metadata in a file's header; tensors stay byte-identical.

    Works on every safetensors file, checkpoints too. Without options the metadata is shown. With
    options the file itself is replaced, once the new one is complete; -o writes another one and leaves
    it as it is. The report names the value that each entry had before.
    """

    file: Annotated[
        str,
        Doc("File, PEFT folder, or name of an adapter or base.", ("FILE",), None, "files"),
    ]
    set: Annotated[
        tuple[str, ...],
        Doc("Set an entry; may be repeated.", metavar="KEY=VALUE"),
    ] = ()
    unset: Annotated[
        tuple[str, ...],
        Doc("Remove an entry, or all that match a pattern; may be repeated.", metavar="KEY"),
    ] = ()
    strip: Annotated[
        bool,
        Doc("Remove everything that programs do not need to load the file, before --set."),
    ] = False
    output: Annotated[
        str | None,
        Doc("Write another file [default: replace FILE].", ("--output", "-o"), "FILE", path=True),
    ] = None
    force: Annotated[bool, Doc("Replace an existing output.", ("--force", "-f"))] = False

    def check(self) -> None:
        """Refuse parameters that contradict each other, before anything is opened.

        Raises:
            UsageError: naming the problem.
        """
        for text in self.set:
            key, sign, value = text.partition("=")
            if not sign or not key.strip():
                raise UsageError(f"{text!r} is not an entry", expected="KEY=VALUE")
            if key == "__metadata__" or not _is_text(key) or not _is_text(value):
                raise UsageError(f"{key!r} cannot be stored in a header")

    @property
    def edits(self) -> bool:
        """True if anything is to be changed or written."""
        return bool(self.set or self.unset or self.strip or self.output)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass
class MetaResult:
    """The metadata and its changes.

    Args:
        changed: key → (before, after), None where there is none.
        output: None where nothing was written.
    """

    path: str
    metadata: dict[str, str]
    changed: dict[str, tuple[str | None, str | None]]
    output: str | None = None
    size: int | None = None

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return {
            "outputs": [] if self.output is None else [self.output],
            "path": self.path,
            "size": self.size,
            "metadata": self.metadata,
            "changed": {key: list(pair) for key, pair in self.changed.items()},
        }


def meta(parameters: Meta, context: Context = Context()) -> MetaResult:
    """Show or edit.

    Raises:
        UsageError: for entries that cannot be, or are not there. AdapterError: if the edit would
        change the adapter's effect. FormatError: if the file has no such header.
    """
    parameters.check()
    path = _place(parameters.file, context)
    weights = _weights(path)
    source = TensorFile(weights)
    before = dict(source.metadata)
    after = _edited(before, parameters, weights)
    changed = {
        key: (before.get(key), after.get(key))
        for key in sorted({**before, **after})
        if before.get(key) != after.get(key)
    }
    hashed = [key for key in HASH_PLACEHOLDERS if key in after]
    if hashed and any(key.startswith("ss_") for key in changed):
        found = kohya_hashes(source.tensors.items(), after)
        for key in hashed:
            after[key] = found[key]
            changed |= {key: (before.get(key), found[key])} if before.get(key) != found[key] else {}
    result = MetaResult(str(path), after, dict(sorted(changed.items())), size=source.size)
    if not parameters.edits:
        return result
    if not changed and parameters.output is None:
        context.notify(Note("nothing to change: the metadata has these entries already"))
        return result
    if parameters.output is None and is_shipped(weights):
        raise UsageError(
            "this file comes with loramerge and cannot be changed",
            file=weights,
            hint=("write another: ", Setting("output", path.name)),
        )
    if idle := [key for key in changed if key.lower() in _PARAMETERS]:
        context.notify(
            Note(
                f"{listed(idle)}: metadata does not change an adapter's effect; to weaken an "
                "adapter, mix it with a weight: NAME:0.5"
            )
        )
    return _written(result, path, source, parameters, context)


# names of what tensors and adapter_config.json hold, which people try to set in the metadata
_PARAMETERS = ("alpha", "lora_alpha", "rank", "r", "dim", "scale", "weight", "strength")

VERB = Verb("meta", Meta, "report", meta, None)


def _place(name: str, context: Context) -> Path:
    """Return the path that a name stands for: an adapter's, or else a base's."""
    try:
        return find_told(name, "adapters", context)
    except NotFound as error:
        try:
            return find_told(name, "bases", context)
        except LoramergeError:
            raise error from None


def _weights(path: Path) -> Path:
    """Return the file whose header is meant.

    Raises:
        FormatError: if there is none.
    """
    if is_pickle(path):
        refuse_foreign(path)
        raise FormatError(
            "a pickled file has no metadata",
            file=path,
            hint="loramerge convert writes an adapter as safetensors",
        )
    if not path.is_dir():
        return path
    for name in (WEIGHTS_NAME, _PIPELINE):
        if (path / name).is_file():
            return path / name
    files = sorted(p.relative_to(path).as_posix() for p in path.rglob("*.safetensors"))
    raise FormatError(
        "a folder with several files has several headers" if files else "the folder has no header",
        file=path,
        found=listed(files, 4) or foreign_in(path) or "no safetensors file",
        hint=f"loramerge meta {path / files[0]}" if files else None,
    )


def _edited(before: Mapping[str, str], parameters: Meta, file: Path) -> dict[str, str]:
    """Return the metadata after strip, unset and set, in this order.

    Raises:
        UsageError: if an entry to remove is not there.
    """
    found = structure(before) if parameters.strip else dict(before)
    for word in parameters.unset:
        gone = [word] if word in before else [key for key in before if fnmatchcase(key, word)]
        if not gone:
            raise UsageError(
                f"there is no entry {word!r}",
                file=file,
                found=listed(list(before), 8) or "no metadata",
                hint=suggestion(word, before),
            )
        for key in gone:
            found.pop(key, None)
    for text in parameters.set:
        key, _, value = text.partition("=")
        found[key] = value
    return found


def _written(
    result: MetaResult, path: Path, source: TensorFile, parameters: Meta, context: Context
) -> MetaResult:
    weights = Path(source.path)
    target = path if parameters.output is None else Path(parameters.output)
    contents = contents_of(_below(path)) if path.is_dir() else None
    here = target.exists() and target.resolve() == path.resolve()
    if not here:
        checkpoint_output(target, contents, force=parameters.force)
    broken = _unread(weights)
    before = None if broken else _loaded(weights)

    def check(edited: Path) -> None:
        if before is not None:
            _require_same(before, _loaded(edited, like=weights), weights, context)
        elif broken and (still := _unread(edited)):
            context.notify(Warn(f"the file cannot be read as an adapter: {still}"))

    if here or not path.is_dir():
        place = weights if here else target
        result.size = rewrite_header(source, place, result.metadata, force=True, check=check)
    else:
        with AtomicFolder(target, force=parameters.force, contents=contents) as folder:
            for file in path.rglob("*"):
                copy = folder / file.relative_to(path)
                if file.is_dir():
                    copy.mkdir(parents=True, exist_ok=True)
                elif file != weights:
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, copy)
            copy = folder / weights.relative_to(path)
            result.size = rewrite_header(source, copy, result.metadata, check=check)
    result.output = str(target)
    return result


def _below(folder: Path) -> set[PurePosixPath]:
    return {PurePosixPath(path.relative_to(folder).as_posix()) for path in folder.rglob("*")}


def _loaded(path: Path, like: Path | None = None) -> Adapter | None:
    """Return the file as an adapter, None if it is none; only the header is read.

    Args:
        like: the file it takes the place of; where that is part of a PEFT folder, the metadata says
            nothing of the weights, and nothing needs to be compared.
    """
    if (like or path).name == WEIGHTS_NAME:
        return None
    found = load(path)
    return found if found.deltas else None


def _unread(path: Path) -> str:
    """Return the reason why a file cannot be read, as an adapter or anything else; empty if it can."""
    try:
        load(path)
    except LoramergeError as error:
        return error.problem
    return ""


def _require_same(before: Adapter, after: Adapter | None, file: Path, context: Context) -> None:
    """Refuse an edit that changes the adapter's effect: some dialects keep alphas in the header.

    Raises:
        AdapterError: naming the modules.
    """
    deltas = {} if after is None else after.deltas
    changed = [
        site.name
        for site, delta in before.deltas.items()
        if site not in deltas or (delta.kind, delta.shape, delta.alpha) != _facts(deltas[site])
    ]
    if changed or len(deltas) != len(before.deltas):
        raise AdapterError(
            "this edit would change the adapter's effect: programs read these entries to "
            "interpret the tensors",
            file=file,
            module=listed(changed, 4) or None,
            hint="keep lora_adapter_metadata and other entries that programs need; to change the "
            "layout of a file, use `loramerge convert`",
        )
    names = before.info.detection.name, after.info.detection.name if after else None
    if names[0] != names[1]:
        context.notify(
            Warn(f"the family is now read as {names[1]}; before it was {names[0]}, which only the "
                "removed metadata said")
        )  # fmt: skip


def _facts(delta: Any) -> tuple[Any, ...]:
    return delta.kind, delta.shape, delta.alpha
