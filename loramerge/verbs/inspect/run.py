"""The verb inspect: dialect, family and problems of files, from headers alone or with the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from loramerge.adapter import Adapter
from loramerge.adapter.load import load
from loramerge.errors import FamilyError, FormatError, LoramergeError, Setting
from loramerge.events import Warn
from loramerge.files.forms import is_gguf
from loramerge.library.paths import below, is_adapter_folder, is_sharded
from loramerge.library.patterns import files_of
from loramerge.records import record
from loramerge.steps.parameters import Context, Verb
from loramerge.verbs.inspect.adapters import inspect_adapter
from loramerge.verbs.inspect.facts import Inspect, Inspected, InspectResult

if TYPE_CHECKING:
    from loramerge.steps.prediction import Prediction

__all__ = ["VERB", "inspect", "things"]


def inspect(parameters: Inspect, context: Context = Context()) -> InspectResult:
    """Run the verb. With a single file errors are raised; with several they are reported.

    Raises:
        LoramergeError: for a single file that cannot be read.
    """
    if parameters.csv:
        from loramerge.files.tables import check_table

        check_table(Path(parameters.csv), Setting("csv"))
    found = []
    code = 0
    named = things(parameters.files, context)
    for thing in named:
        try:
            found.append(_one(thing, parameters, context))
        except LoramergeError as error:
            if len(named) == 1:
                raise
            context.notify(Warn(f"{thing}: {error.problem}"))
            found.append(Inspected(str(thing), None, "unreadable", error=error.problem))
            code = code or error.exit_code
    if len(found) > 1:
        _add_sidecars(found)
    if parameters.check and any(p.severity == "error" for f in found for p in f.findings):
        code = 5
    result = InspectResult(found, code, parameters.metadata, parameters.verbose, parameters.sort)
    if parameters.csv:
        _write_csv(Path(parameters.csv), result)
    return result


def _add_sidecars(files: Sequence[Inspected]) -> None:
    """Add what other programs keep beside adapters, where headers do not say it."""
    from loramerge.library.sidecars import listing, sidecar_facts

    folders: dict[Path, Mapping[str, str]] = {}
    for file in files:
        path = Path(file.path)
        if file.what != "adapter" or not path.exists():
            continue
        if path.parent not in folders:
            folders[path.parent] = listing(path.parent)
        facts = sidecar_facts(path, folders[path.parent])
        file.usual_weight = facts.weight
        file.trigger_words = file.trigger_words or list(facts.trigger_words)
        file.trained_on = file.trained_on or facts.base


def _write_csv(path: Path, result: InspectResult) -> None:
    """Write the table as CSV."""
    from loramerge.files.tables import write_table
    from loramerge.verbs.inspect.table import CSV, rows_of

    write_table(
        path, list(CSV), [[value(row) for value in CSV.values()] for row in rows_of(result)]
    )


@record(eq=False)
class InMemory:
    """An adapter that a recipe computed, and its name there."""

    name: str
    adapter: Adapter

    def __str__(self) -> str:
        return self.name


def things(names: Sequence[str], context: Context) -> list[Path | InMemory]:
    """Return the files, folders and adapters in memory of names, each once.

    The files of a sharded checkpoint, or of a pipeline's folder, stand for that checkpoint.
    """
    found: list[Path | InMemory] = []
    for name in names:
        known = context.known.get(name)
        if isinstance(known, Adapter):
            found.append(InMemory(name, known))
        elif known is not None:
            found.append(known)
        else:
            top, files = below(context.root, name), files_of(name, context.root, context.notify)
            if len(files) > 1:
                from loramerge.steps.wholes import wholes

                found += wholes(files, top)
            else:
                found += files
    return list(dict.fromkeys(found))


def _is_gguf_adapter(path: Path) -> bool:
    from loramerge.adapter.formats.gguf_reading import is_gguf_adapter

    return is_gguf_adapter(path)


def _one(path: Path | InMemory, parameters: Inspect, context: Context) -> Inspected:
    if isinstance(path, InMemory):
        found = inspect_adapter(path.adapter, parameters, context)
        found.path = path.name
        return found
    if (path / "model_index.json").is_file():
        return _checkpoint(path)
    if is_sharded(path) or (is_gguf(path) and not _is_gguf_adapter(path)):
        return _checkpoint(path)
    try:
        adapter = load(path)
    except FormatError:
        if path.is_dir() and not is_adapter_folder(path):
            return _checkpoint(path)
        raise
    if adapter.only_replaces and not adapter.embeddings:
        with suppress(FamilyError):
            return _checkpoint(path)
    return inspect_adapter(adapter, parameters, context)


def _checkpoint(path: Path) -> Inspected:
    """Describe a checkpoint; what that needs is imported only then."""
    from loramerge.verbs.inspect.checkpoints import inspect_checkpoint

    return inspect_checkpoint(path)


def predict(parameters: Inspect, context: Context = Context()) -> Prediction:
    """Predict what looking takes."""
    from loramerge.steps.prediction import predict_report

    adapters = []
    for thing in things(parameters.files, context):
        with suppress(FormatError):  # a checkpoint
            adapters.append(thing.adapter if isinstance(thing, InMemory) else load(thing))
    return predict_report(adapters)


VERB = Verb("inspect", Inspect, "report", inspect, predict)
