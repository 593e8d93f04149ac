"""Run a whole training: from a base and images to an adapter, with log, samples and a saved state.

    trained = train(spec, keep=lambda adapter, step: …, notify=notify)

A step depends only on the seed and its number, and files are written atomically. So a run that is killed
at any time and resumed ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from loramerge.adapter import Adapter
from loramerge.errors import OutOfMemory, OutputExists, Setting, UsageError
from loramerge.events import Note, Notify, ignore
from loramerge.files.folders import RUN_LOG, RUN_SAMPLES, RUN_STATE
from loramerge.train.dataset.arrange import Arranged
from loramerge.train.dataset.header import header_of_images
from loramerge.train.dataset.length import in_steps
from loramerge.train.device.placing import placed
from loramerge.train.device.threads import torch_threads
from loramerge.train.device.workers import Workers, begin_workers
from loramerge.train.drawing.samples import SampleSheet
from loramerge.train.lora.starting import start_from
from loramerge.train.models.loading import load_pipeline
from loramerge.train.models.texts import Texts, encode, read_whole
from loramerge.train.preamble import require_possible
from loramerge.train.prepare import (
    arranged_images,
    base_dtype,
    begin_checkpointing,
    encoded_images,
    encoded_texts,
    trained_encoders,
    trainee_of,
    warn_of_empty,
)
from loramerge.train.run.board import Board
from loramerge.train.run.ending import naming_phase, state_header
from loramerge.train.run.examples import Examples
from loramerge.train.run.log import Log
from loramerge.train.run.loop import Run, TrainStep, advance, averaged, begin
from loramerge.train.run.resume import load_state, run_header, save_state
from loramerge.train.run.validation import validation_loss
from loramerge.train.spec.spec import Spec

__all__ = ["LOG", "SHEET", "STATE", "Trained", "train"]

STATE, LOG, SHEET = RUN_STATE, RUN_LOG, RUN_SAMPLES

Keep = Callable[[Adapter, int], None]


@dataclass
class Trained:
    """The result of a run.

    Args:
        adapter: None in a process that writes nothing.
        parameters: number of trained parameters.
        resumed: step at which it was resumed, 0 for a new run.
        arranged: the images.
        steps: number of all steps; `done`: those that are done, fewer if the run was interrupted.
        earlier: numbers of all steps that the run was begun and continued with before.
        windows: of CLIP, in which texts were read.
    """

    adapter: Adapter | None
    parameters: int
    resumed: int
    skipped: int
    arranged: Arranged
    prediction: str
    epochs: float
    steps: int
    done: int
    earlier: tuple[int, ...] = ()
    windows: int = 1


def train(
    spec: Spec,
    *,
    keep: Keep = lambda adapter, step: None,
    probe: Callable[[Adapter], None] = lambda adapter: None,
    metadata: dict[str, str] | None = None,
    notify: Notify = ignore,
) -> Trained:
    """Train an adapter.

    Args:
        keep: called with the adapter after every `save_every` steps.
        probe: called with the adapter before the first step; an error it raises stops the run early,
            e.g. if no dialect can store this adapter.
        metadata: further entries of the header.

    Raises:
        LoramergeError: see `load_pipeline`, `scan`, `inject_trainable_lora`, `begin` and `advance`.
        OutputExists: if the folder holds a run, and the spec neither resumes nor replaces it.
    """
    with torch_threads(spec.threads):
        return _trained(spec, keep, probe, metadata or {}, notify)


def _trained(
    spec: Spec,
    keep: Keep,
    probe: Callable[[Adapter], None],
    metadata: dict[str, str],
    notify: Notify,
) -> Trained:
    workers, device = begin_workers(spec.device)
    notify = notify if workers.first else ignore
    _refuse_other_run(spec)
    require_possible(spec)  # `begin` warns of a low rate
    naming = partial(naming_phase, spec, device)
    with naming_phase(spec, torch.device("cpu"), "loading"):
        pipeline = load_pipeline(
            spec.base,
            dtype=base_dtype(spec),
            config=spec.config,
            family=spec.family,
            prediction=spec.prediction,
        )
    with naming("regularisation"):
        arranged = arranged_images(spec, pipeline, device, workers, notify)
    warn_of_empty(arranged, notify)
    # a device holds what the phase at hand works with, and nothing else; see `train.memory.needs`
    with naming("images"), placed(device, pipeline.vae):
        latents, arranged = encoded_images(spec, pipeline, arranged, workers, notify)
    sheet = SampleSheet(spec.samples, spec.folder, arranged, pipeline)
    windows = read_whole(
        pipeline, [*map(arranged.captioning.whole, arranged.pictures), *sheet.texts]
    )
    if windows > 1:
        notify(Note(f"a text is longer than one window of CLIP: all are read in {windows} windows"))
    with naming("texts"), placed(device, *pipeline.encoders.values()):
        texts = encoded_texts(spec, pipeline, arranged, sheet.texts, workers, notify)
    arranged, held = arranged.divided(spec.validation, spec.settings.seed)
    spec = in_steps(spec, arranged.order(spec.data.batch, spec.settings.seed), workers.count)
    with naming("training"):
        for model in pipeline.models.values():
            model.to(device)
        trainee = trainee_of(
            spec.targets, pipeline, spec.settings.seed, spec.data.clip_skip, notify
        )
        if spec.init is not None:
            start_from(pipeline.models, spec.init)
    begin_checkpointing(spec, pipeline, device)

    def examples(arranged: Arranged, batch: int) -> Examples:
        return Examples(
            arranged.pictures, arranged.buckets, arranged.order(batch, spec.settings.seed),
            arranged.captioning, latents, None if spec.targets.text_encoder else texts,
            weight=spec.data.regularisation_weight, sizes=pipeline.architecture.sizes,
        )  # fmt: skip

    run = begin(
        pipeline.denoiser,
        pipeline.architecture.objective(pipeline.scheduler),
        examples(arranged, spec.data.batch),
        spec.settings,
        trainee=trainee,
        encode=lambda captions: encode(pipeline, captions, spec.data.clip_skip),
        workers=workers,
        notify=notify,
    )  # fmt: skip
    resumed = _resume(spec, run, notify)
    for encoder in trained_encoders(pipeline).values():
        encoder.train(spec.targets.text_encoder)
    entries = {**header_of_images(spec, arranged, windows), **metadata}

    def adapter(*, last: bool = False) -> Adapter:
        with averaged(run):
            own = {**run_header(run), **entries, **state_header(run, last=last)}
            return trainee.adapter(run.noising.prediction, own)

    if workers.first:
        probe(adapter())

    def validate() -> float:
        assert held is not None
        loss: float = validation_loss(run, examples(held, 1), len(held.pictures))
        return loss

    _run(spec, run, texts, sheet, adapter, keep, None if held is None else validate, notify)
    return Trained(
        adapter(last=True) if workers.first else None,
        sum(value.numel() for value in trainee.parameters),
        resumed,
        run.skipped,
        arranged,
        run.noising.prediction,
        _epochs(spec, run.done, arranged, workers),
        spec.settings.steps,
        run.done,
        run.earlier,
        windows,
    )


def _run(
    spec: Spec,
    run: Run,
    texts: Texts,
    sheet: SampleSheet,
    adapter: Callable[[], Adapter],
    keep: Keep,
    validate: Callable[[], float] | None,
    notify: Notify,
) -> None:
    """Train to the end or to Ctrl-C, stopping where something is drawn or kept.

    Raises:
        KeyboardInterrupt: if nothing is trained yet, or half of a step is.
        OutOfMemory: naming the phase; a state is saved before where it is whole.
    """
    first = run.workers.first
    if first:
        sheet.forget_later(run.done)
    log = Log(spec.folder / LOG, run.done, spec.chosen) if first else None
    board = Board(spec.folder, run.done) if first and spec.tensorboard else None

    def on_step(step: TrainStep) -> None:
        for written in (log, board):
            if written is not None:
                written(step)

    def draw() -> None:
        with averaged(run):
            pictures = sheet.draw(texts, run.done)
        if board is not None and pictures:
            board.show(sheet.prompts, pictures, run.done)

    def save() -> None:
        if first and run.done and run.whole:
            save_state(run, spec.folder / STATE, spec.origin)

    naming = partial(naming_phase, spec, run.parameters[0].device, run=run)
    try:
        if first and run.done == 0:
            with naming("samples"):
                draw()
        while run.done < run.settings.steps:
            with naming("training"):
                advance(run, _next_stop(spec, run.done), on_step=on_step, notify=notify)
            if validate is not None and _is_due(run, spec.validate_every):
                loss = validate()
                for written in (log, board):
                    if written is not None:
                        written.validated(run.done, loss)
            # the state last: what it says is done has been drawn and kept
            kept = spec.save_every > 0 and run.done % spec.save_every == 0
            if first and (kept or sheet.due(run.done, run.settings.steps)):
                with naming("samples"):
                    draw()  # each numbered adapter has a row in the sheet
            if first and kept:
                keep(adapter(), run.done)
            if board is not None:
                board.flush()
            save()
        advance(run)  # nothing but the audit of a run that had ended before
    except OutOfMemory:
        save()
        raise
    except KeyboardInterrupt:
        if not run.done or not run.whole:
            raise
        save()
    finally:
        for written in (log, board):
            if written is not None:
                written.close()
    run.workers.wait()


def _is_due(run: Run, every: int) -> bool:
    return run.done % every == 0 or run.done == run.settings.steps


def _next_stop(spec: Spec, done: int) -> int:
    """Return the next number of steps at which something is to be done."""
    validates = spec.validate_every if spec.validation else 0
    every = (spec.samples.sample_every, spec.save_every, spec.state_every, validates)
    return min(spec.settings.steps, *((done // n + 1) * n for n in every if n))


def _refuse_other_run(spec: Spec) -> None:
    state = spec.folder / STATE
    if state.exists() and not spec.resume and not spec.force:
        raise OutputExists(
            "this folder already holds a run",
            file=spec.folder,
            hint=(
                "continue it with ",
                Setting("resume", True),
                ", start again with ",
                Setting("force", True),
                ", or give another ",
                Setting("folder"),
            ),
        )


def _resume(spec: Spec, run: Run, notify: Notify) -> int:
    """Go on from the state that is there, if it is asked for; return its step."""
    state = spec.folder / STATE
    if not spec.resume or not state.exists():
        return 0
    try:
        load_state(run, state, spec.origin, spec.former_origin)
    except UsageError:
        if not spec.force:
            raise
        notify(Note("the state belongs to another run; starting again"))
        return 0
    notify(Note(f"resuming after step {run.done} of {run.settings.steps}"))
    if run.earlier and run.done < run.settings.steps:
        notify(
            Note(
                f"the run was begun with {run.earlier[0]} steps; from here on the learning rate follows "
                f"the schedule of {run.settings.steps}, so the result is not that of one undisturbed run"
            )
        )
    return run.done


def _epochs(spec: Spec, steps: int, arranged: Arranged, workers: Workers) -> float:
    shown = steps * spec.settings.accumulate * workers.count * spec.data.batch
    return shown / arranged.order(spec.data.batch, 0).shown
