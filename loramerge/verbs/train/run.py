"""Train an adapter on images, as the command and recipes do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loramerge.adapter import Adapter
from loramerge.adapter.encode import choose_dialect, encode, suffix_of
from loramerge.algebra.outcome import uncut
from loramerge.algebra.ranks import RankRule
from loramerge.checkpoint.files import find_files
from loramerge.errors import LoramergeError, Message, Setting
from loramerge.events import Warn
from loramerge.files.atomic import check_target
from loramerge.steps.adapters import AdapterResult, encoded_for, write_result
from loramerge.steps.inputs import base_path
from loramerge.steps.loading import loading_torch
from loramerge.steps.outputs import Output, adapter_output
from loramerge.steps.parameters import Context, Verb
from loramerge.steps.prediction import Prediction
from loramerge.steps.provenance import Made
from loramerge.verbs.train.memory import Fit, fit
from loramerge.verbs.train.parameters import Train
from loramerge.verbs.train.places import made_of_training, output_path
from loramerge.verbs.train.predicted import predict_training
from loramerge.verbs.train.result import NOTHING_MADE, TrainResult
from loramerge.verbs.train.spec import spec_of, used_settings

if TYPE_CHECKING:
    from loramerge.train.session import Trained
    from loramerge.train.spec.spec import Spec

__all__ = ["VERB", "predict", "train", "trained"]


def train(parameters: Train, context: Context = Context()) -> TrainResult:
    """Train and write.

    Ctrl-C ends it with the adapter so far, which its header says, once a step is done.

    Raises:
        LoramergeError: see `train.session.train` and `adapter.encode.encode`.
    """
    parameters.check()
    _check_import(parameters, context)
    path = output_path(parameters, context)
    if parameters.dry_run:
        return _dry_run(parameters, context)
    force = parameters.force or (parameters.resume and _is_unfinished(path))
    check_target(path, force=force)
    with loading_torch(context.notify):
        import loramerge.train  # noqa: F401 - says what to install where torch is missing
    fitted = _fit(parameters, path, context)
    parameters = fitted.parameters
    found = _trained(fitted, path, context)
    if found.adapter is None:  # of another process, which writes
        return found
    dialect = choose_dialect(parameters.target(), [found.adapter])
    target = Output(path, dialect, parameters.float_type(), force, parameters.program)
    # no recipe repeats a run that was cut short, or continued with another schedule
    result = write_result(found, target, replace(context, strip=context.strip or found.broken))
    if result.unfinished:
        context.notify(Warn(_stopped(result, result.output)))
    return _reported(result, parameters, context)


def _is_unfinished(path: Path) -> bool:
    """Return whether a file is the adapter of a run that was interrupted."""
    from loramerge.adapter.load import load
    from loramerge.train.run.ending import UNFINISHED

    try:
        return UNFINISHED in load(path).info.metadata
    except LoramergeError:
        return False


def _stopped(result: TrainResult, where: str | None) -> Message:
    return (
        f"stopped after step {result.done} of {result.steps}; {where} is the adapter so far. "
        "Continue with ",
        Setting("resume", True),
        ".",
    )


def trained(parameters: Train, context: Context = Context()) -> TrainResult:
    """Train without writing an adapter; log, state and samples go into the run's folder.

    Raises:
        KeyboardInterrupt: on Ctrl-C; the adapter so far is then in the run's folder, too.
        LoramergeError: see `train.session.train`.
    """
    parameters.check()
    _check_import(parameters, context)
    path = output_path(parameters, context)
    found = _trained(_fit(parameters, path, context), path, context, keeps=True)
    if found.unfinished:
        raise KeyboardInterrupt
    return found


def predict(parameters: Train, context: Context = Context()) -> Prediction:
    """Predict a run without reading weights or whole images; see `predict_training`.

    Raises:
        LoramergeError: what the run would refuse.
    """
    parameters.check()
    _check_import(parameters, context)
    path = output_path(parameters, context)
    if find_spec("torch") is None:
        base_path(parameters.base, context)
        return Prediction(remarks=["not predicted, since torch is not installed"])
    fitted = _fit(parameters, path, context)
    return predict_training(fitted, spec_of(fitted.parameters, path, Made("train", {}), context))


def forecast(parameters: Train, context: Context = Context()) -> dict[str, Any]:
    """Return the findings of a dry run, as `dry_run`.

    Raises:
        LoramergeError: what the run would refuse.
    """
    parameters = replace(parameters, dry_run=True)
    return {"dry_run": train(parameters, context).json()}


VERB = Verb(
    "train",
    Train,
    "adapter",
    train,
    predict,
    trained,
    uses_device=True,
    forecast=forecast,
    output_path=output_path,
)


# --- training -----------------------------------------------------------------------------------


def _check_import(parameters: Train, context: Context) -> None:
    from loramerge.train.spec.optimizers import check_import

    check_import(parameters.optimizer, allowed=context.allow_import)


def _fit(parameters: Train, path: Path, context: Context, whole: bool = False) -> Fit:
    """Choose settings that fit in the memory."""
    from loramerge.train.preamble import require_possible

    def spec(p: Train) -> Spec:
        return spec_of(p, path, Made("train", {}), context)

    if not whole:
        find_files(
            base_path(parameters.base, context)
        )  # refuse what is not a base before anything else
    require_possible(spec(parameters))  # counting memory takes seconds
    return fit(parameters, spec, context, whole=whole)


def _trained(fitted: Fit, path: Path, context: Context, *, keeps: bool = False) -> TrainResult:
    """Train; write only into the run's folder.

    Args:
        keeps: put the adapter of an interrupted run there, too.
    """
    from loramerge.train.session import LOG, SHEET
    from loramerge.train.session import train as run

    parameters = fitted.parameters
    made = made_of_training(parameters, path, context)
    spec = replace(spec_of(parameters, path, made, context), chosen=fitted.record)
    keep = _keeper(parameters, spec, made, path, context)
    found = run(
        spec,
        keep=keep,
        probe=lambda adapter: _probe(adapter, parameters, path),
        notify=context.notify,
    )
    figures: dict[str, Any] = dict(NOTHING_MADE)
    unfinished = found.done < found.steps
    if found.adapter is not None and unfinished and keeps:
        keep(found.adapter, found.done)
        context.notify(
            Warn(f"stopped after step {found.done}; the adapter so far is in {spec.folder}")
        )
    if found.adapter is not None:
        adapter, combined = _finished(found.adapter, parameters, made, context)
        figures = AdapterResult.figures(adapter, combined)
    result = TrainResult(
        **figures,
        folder=str(spec.folder),
        steps=found.steps,
        done=found.done,
        broken=unfinished or bool(found.earlier),
        resumed=found.resumed,
        skipped=found.skipped,
        trained=found.parameters,
        epochs=found.epochs,
        images=len(found.arranged.pictures),
        loss=_losses(spec.folder / LOG, "loss"),
        validation=_losses(spec.folder / LOG, "validation"),
        log=str(spec.folder / LOG),
        samples=str(spec.folder / SHEET) if parameters.sample_every else None,
    )
    result.used = used_settings(spec, found)
    result.notes = _summary(found, spec)
    if fitted.record is not None:
        result.chosen = fitted.record
        result.notes.append(fitted.said())
    return result


def _finished(
    adapter: Adapter, parameters: Train, made: Made, context: Context
) -> tuple[Adapter, Any]:
    """Return the adapter at the rank to save, and the outcome of the reduction."""
    rank = parameters.save_rank
    if rank is None:
        return adapter.with_deltas(adapter.deltas, made=made), uncut(adapter)
    from loramerge.algebra.resize import resize
    from loramerge.algebra.to_lora import to_lora

    cut = resize if parameters.method == "lora" else to_lora
    small, combined = cut(adapter, RankRule(rank=rank), threads=context.threads)
    return small.with_deltas(small.deltas, made=made), combined


def _keeper(
    parameters: Train, spec: Spec, made: Made, path: Path, context: Context
) -> Callable[[Adapter, int], None]:
    """Return the function that writes a numbered adapter into the run's folder."""

    def keep(adapter: Adapter, step: int) -> None:
        from loramerge.adapter.save import write_encoded

        small, _ = _finished(adapter, parameters, made, context)
        dialect = choose_dialect(parameters.target(), [small])
        name = f"{path.name.removesuffix(path.suffix)}-{step:06}{suffix_of(dialect)}"
        target = Output(spec.folder / name, dialect, parameters.float_type(), True)
        # the header states the steps done so far, not all steps
        stated = Made(made.verb, {**made.content, "steps": step})
        small = small.with_deltas(small.deltas, made=stated)
        encoded = encoded_for(small, target, replace(context, strip=True))
        write_encoded(encoded, spec.folder / name, force=True)

    return keep


def _probe(adapter: Adapter, parameters: Train, path: Path) -> None:
    """Refuse a result that could not be written at the end."""
    dialect = choose_dialect(parameters.target(), [adapter])
    adapter_output(path, dialect, force=True)
    encode(adapter, dialect, parameters.float_type())


# --- telling ------------------------------------------------------------------------------------


def _losses(log: Path, name: str) -> tuple[float, float] | None:
    """Return the mean loss over the first and over the last tenth of its entries in the log."""
    from loramerge.files.run_log import read_log

    losses = [entry[name] for entry in read_log(log) if entry.get(name) is not None]
    if not losses:
        return None
    part = max(1, len(losses) // 10)
    return sum(losses[:part]) / part, sum(losses[-part:]) / part


def _summary(found: Trained, spec: Spec) -> list[str]:
    """Return the lines of the report about the data."""
    dataset = found.arranged.dataset
    lines = [
        f"{len(dataset.subject)} images of the subject, {len(dataset.regular)} of regularisation",
        f"{found.epochs:.3g} epochs at {found.arranged.resolution} pixels, "
        f"{len(set(found.arranged.buckets))} buckets",
        f"captions from {', '.join(f'{k} ({n})' for k, n in dataset.sources.items())}",
    ]
    if found.windows > 1:
        lines.append(
            f"captions are encoded in {found.windows} windows of CLIP; longer ones are cut"
        )
    if dataset.unreadable:
        names = ", ".join(path.name for path, _ in dataset.unreadable)
        lines.append(f"left out, because they cannot be read: {names}")
    return lines


def _reported(result: TrainResult, parameters: Train, context: Context) -> TrainResult:
    """Write the report beside the log; a report that fails costs a warning, not the adapter."""
    from loramerge.verbs.train.report import with_figures, write_report

    try:
        result = with_figures(result, parameters, context)
        result.report = str(write_report(result))
    except (LoramergeError, OSError) as error:
        context.notify(Warn(f"the report could not be written: {error}"))
    return result


def _dry_run(parameters: Train, context: Context) -> TrainResult:
    from loramerge.train.dry_run import check

    path = output_path(parameters, context)
    fitted = _fit(parameters, path, context, whole=True)
    spec = spec_of(fitted.parameters, path, Made("train", {}), context)
    found = check(spec, notify=context.notify)
    found.memory = fitted.memory()
    if fitted.refusal is not None:
        hint = fitted.refusal.hint or ""
        parts = (hint,) if isinstance(hint, str) else hint
        context.notify(Warn((f"{fitted.refusal.problem}: ", *parts)))
    return TrainResult(
        **{**NOTHING_MADE, "modules": found.modules}, folder=str(spec.folder), check=found
    )
