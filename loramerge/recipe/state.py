"""The state of a recipe: a small file beside it that records what each output was made from."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import loramerge
from loramerge.algebra.weights import weight_content
from loramerge.errors import CorruptFile, LoramergeError, Setting
from loramerge.files.json_values import values_in
from loramerge.files.writer import write_bytes
from loramerge.library.known import digest_at
from loramerge.library.registry import cache as cache_folder
from loramerge.recipe.task import Task
from loramerge.steps.parameters import stated
from loramerge.steps.references import Reference

__all__ = ["Fact", "Record", "State", "file_fact", "package_digest", "task_key"]

Fact = Mapping[str, str]  # one dependency of a result: a file's name and digest, or a task's key


@cache
def package_digest() -> str:
    """Return the digest of the package's source, because results of other code are made again."""
    root = Path(loramerge.__file__).parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(path.relative_to(root).as_posix().encode() + b"\0")
        total.update(path.read_bytes())
    return total.hexdigest()


def file_fact(path: Path) -> Fact:
    """Return the name and digest of a file; headers contain the name, so it counts, too."""
    return {"name": path.name, "sha256": digest_at(path)}


def task_key(task: Task, facts: Mapping[str, Fact], *, strip: bool) -> str:
    """Return the digest of everything that a task's result depends on.

    Args:
        facts: name in the parameters → the file or task it stands for.
    """

    def content_of(value: Any) -> Any:
        if isinstance(value, Reference):
            return {"of": dict(facts[value.name]), "weight": weight_content(value.weight)}
        return dict(facts[value])

    content = {}
    for one, value in stated(task.parameters):
        values = value if one.many else (value,)
        if one.refers:
            values = [content_of(v) if one.names(v) else v for v in values]
        content[one.word] = list(values)
    whole = [package_digest(), strip, task.verb.name, content]
    code = getattr(task.parameters, "code", None)  # of a merge operator from outside
    whole += [] if code is None else [code]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


@dataclass
class Record:
    """The record of a finished task.

    Args:
        output: path relative to the recipe, None for a report that is not saved.
        sha256: of the output.
        figures: the numbers and words it reported.
        seconds: the time it took.
    """

    key: str
    output: str | None = None
    sha256: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no run has written; a state may come from anywhere.

        Raises:
            TypeError, ValueError: if a value is of another kind.
        """
        texts = all(isinstance(one, str | None) for one in (self.output, self.sha256))
        if not (isinstance(self.key, str) and texts and isinstance(self.figures, dict)):
            raise TypeError
        if not 0 <= self.seconds < math.inf:
            raise ValueError


@dataclass
class State:
    """The records of a recipe, by task; kept only in memory where the recipe is not in a file.

    Args:
        running: outputs that were being made when the state was last written.
        trusted: it was written on this machine. Another one may have come with the recipe, and does
            not allow replacing files.
    """

    path: Path | None
    root: Path
    records: dict[str, Record] = field(default_factory=dict)
    running: list[str] = field(default_factory=list)
    trusted: bool = True

    @classmethod
    def beside(cls, recipe: Path | None, root: Path) -> State:
        """Read the state of a recipe; an empty one where there is none yet.

        Raises:
            CorruptFile: if it cannot be read.
        """
        if recipe is None:
            return cls(None, root)
        path = recipe.with_name(f"{recipe.stem}.state.json")
        try:
            raw = path.read_bytes()
            content = values_in(raw.decode("utf-8"))
            records = {name: Record(**fields) for name, fields in content["tasks"].items()}
            found = cls(path, root, records, trusted=_is_ours(raw))
            # an output that a stopped run had begun and that does not exist is not this recipe's
            found.running = [str(n) for n in content["running"] if (root / str(n)).exists()]
            return found
        except FileNotFoundError:
            return cls(path, root)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptFile(
                f"the state of the recipe cannot be read ({type(error).__name__})",
                file=path,
                hint=("delete it, then write the outputs again with ", Setting("force", True)),
            ) from None

    def relative(self, output: Path) -> str:
        """Return an output's path as it is recorded, relative to the recipe."""
        try:
            return Path(os.path.relpath(output, self.root)).as_posix()
        except ValueError:  # another drive
            return output.as_posix()

    def is_current(self, task: Task, key: str) -> bool:
        """Return whether a task was done with this key and its output is still unchanged."""
        record = self.records.get(task.name)
        if record is None or record.key != key:
            return False
        if task.save is None:
            return True
        return record.output == self.relative(task.save) and _has(task.save, record.sha256)

    def owns(self, output: Path) -> bool:
        """Return whether this recipe made the file at a path here, or had begun to."""
        return self.trusted and (self.relative(output) in self.running or self.made(output))

    def made(self, output: Path) -> bool:
        """Return whether this recipe made the file, according to the state."""
        name = self.relative(output)
        return any(r.output == name and _has(output, r.sha256) for r in self.records.values())

    def begin(self, task: Task) -> None:
        """Record that a task's output is being made."""
        if task.save is not None:
            self.running = sorted({*self.running, self.relative(task.save)})
            self.write()

    def abandon(self, task: Task) -> None:
        """Record that a task failed, so that there is no output."""
        if task.save is not None:
            self.running = [name for name in self.running if name != self.relative(task.save)]
            if self.path is not None and not self.running and not self.records:
                self.path.unlink(missing_ok=True)
            else:
                self.write()

    def finish(self, task: Task, record: Record) -> None:
        """Record that a task is done."""
        self.records[task.name] = record
        if task.save is not None:
            self.running = [name for name in self.running if name != self.relative(task.save)]
        self.write()

    def write(self) -> None:
        """Write the state atomically."""
        if self.path is None:
            return
        tasks = {name: asdict(record) for name, record in sorted(self.records.items())}
        content = {"version": 1, "running": self.running, "tasks": tasks}
        raw = json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8", "replace")
        former = _remember(raw, self.path) if self.trusted else None
        write_bytes(self.path, raw, force=True)
        if former is not None:  # only now: a run may be killed at any moment
            _forget(former)


def _mark_of(raw: bytes) -> Path:
    """Return the place of the mark that says that a state was written on this machine."""
    return cache_folder() / "states" / hashlib.sha256(raw).hexdigest()


def _is_ours(raw: bytes) -> bool:
    try:
        return _mark_of(raw).exists()
    except (LoramergeError, OSError):
        return False


def _remember(raw: bytes, path: Path) -> Path | None:
    """Mark a state as written here; return the mark of the one that it replaces."""
    with suppress(LoramergeError, OSError):  # without marks, outputs are replaced with force only
        mark = _mark_of(raw)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        if path.exists() and (former := _mark_of(path.read_bytes())) != mark:
            return former
    return None


def _forget(mark: Path) -> None:
    with suppress(OSError):
        mark.unlink(missing_ok=True)


def _has(path: Path, sha256: str | None) -> bool:
    try:
        return path.exists() and digest_at(path) == sha256
    except (LoramergeError, OSError):
        return False
