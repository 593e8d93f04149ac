"""Write all files of a checkpoint, in the layout of the one that it was made from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from loramerge.checkpoint import CheckpointFile
from loramerge.checkpoint.files import CheckpointFiles
from loramerge.events import Notify, ignore
from loramerge.files.atomic import AtomicFolder, check_space
from loramerge.files.dtypes import is_float
from loramerge.files.header import TensorInfo
from loramerge.files.json_values import read_values
from loramerge.files.tensors import StoredTensor, Tensor
from loramerge.stream.walk import Layout, Written, write

__all__ = [
    "bytes_of_others",
    "config_with",
    "dtype_of",
    "index_of",
    "unchanged",
    "write_checkpoint",
]

Finding = TypeVar("Finding")


def write_checkpoint(
    files: CheckpointFiles,
    layouts: Sequence[tuple[CheckpointFile, Layout[Finding], bool]],
    output: Path,
    *,
    task: str,
    other: Callable[[Path], bytes | None] = lambda _: None,
    force: bool = False,
    late: Future[Mapping[str, str]] | None = None,
    threads: int | None = None,
    executor: Executor | None = None,
    notify: Notify = ignore,
    accept: Callable[[list[Finding]], None] | None = None,
) -> list[Finding]:
    """Write the files of a checkpoint atomically; return what the tasks found, in file order.

    Args:
        files: of the checkpoint whose layout the result has.
        layouts: of every file of weights, and whether anything in it changes.
        task: word for what is done, in reports of progress.
        other: function of a file without weights that gives its new content, None where it is copied.
        late: replacements for entries of the headers of files that change, see `walk.write`.
        executor: computes the tensors in other processes, see `parts`; None computes them here.
        accept: is given what the tasks found before the files get their names, and may refuse it.

    Raises:
        OutputExists, DiskFull, NumericsError.
    """
    check_space(output, sum(layout.size for _, layout, _ in layouts))
    written = Written((layout for _, layout, _ in layouts), task, notify)
    fill = None
    if executor is not None and _is_worth(executor, layouts):
        from loramerge.stream.parts import write_in_parts

        fill = partial(write_in_parts, executor=executor)
    if files.root is None:
        ((_, layout, changes),) = layouts
        entries = late if changes else None
        return write(
            layout,
            output,
            written,
            force=force,
            late=entries,
            threads=threads,
            fill=fill,
            accept=accept,
        )
    found: list[Finding] = []
    with AtomicFolder(output, force=force, contents=files.contents()) as folder:
        for relative in files.others:
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            content = other(files.root / relative)
            if content is None:
                shutil.copyfile(files.root / relative, folder / relative)
            else:
                (folder / relative).write_bytes(content)
        for file, layout, changes in layouts:
            entries = late if changes else None
            target = folder / file.relative
            found += write(layout, target, written, late=entries, threads=threads, fill=fill)
        if accept is not None:
            accept(found)
    return found


def _is_worth(
    executor: Executor, layouts: Sequence[tuple[CheckpointFile, Layout[Any], bool]]
) -> bool:
    """Return whether an executor shall compute the parts of the files.

    One that starts by itself does so where much of a file is computed, not copied, from inputs that
    others can open.
    """
    least = getattr(executor, "least", 0)
    if least == 0:
        return True
    if all(_computed(layout) < least for _, layout, _ in layouts):
        return False
    from loramerge.stream.parts import can_travel

    return all(can_travel(layout) for _, layout, _ in layouts)


def _computed(layout: Layout[Any]) -> int:
    """Return the bytes of the tensors of a file that are computed."""
    places = (layout.infos[name] for name in layout.computed)
    return sum(place.stop - place.start for place in places)


def unchanged(file: CheckpointFile, *, finite: bool) -> Layout[Any]:
    """Return the layout of a file that is copied as it is, its header included.

    Args:
        finite: refuse NaN and infinity in it.
    """
    tensors, metadata = file.open()
    stored = [tensor for tensor in tensors.values() if isinstance(tensor, StoredTensor)]
    head = file.path.read_bytes() if not stored else stored[0].source.read(0, stored[0].info.start)
    infos = {tensor.info.name: tensor.info for tensor in stored}
    return Layout(head, infos, tensors, metadata, finite=finite, alignment=file.alignment)


def bytes_of_others(files: CheckpointFiles, other: Callable[[Path], bytes | None]) -> int:
    """Return the bytes of a folder's files without weights as they will be; see `write_checkpoint`."""
    if files.root is None:
        return 0
    total = 0
    for path in (files.root / relative for relative in files.others):
        content = other(path)
        total += path.stat().st_size if content is None else len(content)
    return total


def index_of(source: Path, infos: Mapping[CheckpointFile, Mapping[str, TensorInfo]]) -> bytes:
    """Return an index of shards with the tensors that they hold now, and their total size.

    Args:
        infos: the tensors of each file as they are written.
    """
    index = read_values(source)
    shards = index.setdefault("weight_map", {})
    known, total = set(shards.values()), 0
    held: dict[str, str] = {}
    for file, tensors in infos.items():
        if file.path.parent == source.parent and file.path.name in known:
            held |= dict.fromkeys(tensors, file.path.name)
            total += sum(info.stop - info.start for info in tensors.values())
    gone = [name for name in shards if name not in held]
    shards |= {name: file for name, file in held.items() if shards.get(name) != file}
    for name in gone:
        del shards[name]
    index.setdefault("metadata", {})["total_size"] = total
    return json.dumps(index, indent=2).encode()


def config_with(source: Path, changes: Mapping[str, Any]) -> bytes:
    """Return a model's configuration with other values, in every part that states them."""
    config = read_values(source)
    text = config.get("text_config")
    for name, value in changes.items():
        inside = isinstance(text, dict) and name in text
        if inside:
            text[name] = value
        if name in config or not inside:
            config[name] = value
    return json.dumps(config, indent=2).encode()


def dtype_of(tensor: Tensor, dtype: str | None, *, gguf: bool = False) -> str:
    """Return the type in which a tensor is written, where floats may get another.

    Args:
        gguf: whether it is a GGUF file; programs that read one need its biases and norms in float32.
    """
    kept = not dtype or not is_float(tensor.dtype) or (gguf and len(tensor.shape) < 2)
    return tensor.dtype if kept or dtype is None else dtype
