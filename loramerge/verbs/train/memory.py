"""Choose training settings that fit in the given memory.

The choices become parameters, as if they had been given. So the header, the report and the recipe in the
file name them, and a repetition does not depend on the memory of the machine. Without a given memory,
nothing that changes the result is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loramerge.errors import FormatError, Setting, UsageError, sized
from loramerge.events import Note
from loramerge.steps.amounts import memory_in_bytes
from loramerge.steps.parameters import Context
from loramerge.verbs.train.parameters import Train

if TYPE_CHECKING:
    from loramerge.train.dry_run import Memory
    from loramerge.train.memory.budget import Choice, Options, Rung
    from loramerge.train.memory.needs import Needs
    from loramerge.train.spec.spec import Spec

__all__ = ["Fit", "fit"]

_CHOSEN = ("checkpointing", "precision", "optimizer", "resolution")


@dataclass(frozen=True)
class Fit:
    """The settings chosen for a memory, or the reason why none fit.

    Args:
        parameters: of the run, with the chosen settings.
        given: available bytes; None if they are not known.
        rung: the chosen settings; None if none fit or memory cannot be predicted.
        ladder: all settings that were compared.
        needs: memory of the chosen settings, by phase.
        refusal: the error if nothing fits.
        stated: True if the user gave the memory, False if it is the free memory.
    """

    parameters: Train
    given: int | None = None
    rung: Rung | None = None
    ladder: list[Rung] = field(default_factory=list)
    needs: Needs | None = None
    refusal: UsageError | None = None
    stated: bool = False

    @property
    def record(self) -> dict[str, Any] | None:
        """The log's entry about the choice; None if no memory was given."""
        if self.rung is None or not self.stated:
            return None
        return {"given": self.given, **self.rung.json()}

    def memory(self) -> Memory:
        """Return the figures of a dry run."""
        from loramerge.train.dry_run import Memory

        return Memory(self.given, self.stated, self.rung, self.ladder, self.needs)

    def said(self) -> str:
        """Return the choice in a sentence."""
        assert self.rung is not None and self.given is not None
        return (
            f"for {sized(self.given)} of memory: {_spelled(self.rung.choice)}; "
            f"that needs {sized(self.rung.memory)}"
        )


def fit(
    parameters: Train,
    spec_of: Callable[[Train], Spec],
    context: Context,
    *,
    whole: bool = False,
) -> Fit:
    """Choose what the parameters leave open, so that the run fits.

    Args:
        spec_of: gives what a run with parameters is told.
        whole: count the whole ladder, and refuse nothing.

    Raises:
        UsageError: if nothing fits, naming the smallest and what to change.
    """
    from loramerge.train.device.free import free_memory
    from loramerge.train.device.workers import begin_workers

    spec = spec_of(parameters)
    recorded = _recorded(parameters, spec)
    if recorded is not None:
        return recorded
    if spec.settings.precision != "no":  # it follows from the machine, so it has to be on record
        parameters = replace(parameters, precision=spec.settings.precision)
    stated = parameters.vram is not None
    workers, device = begin_workers(spec.device)
    given = memory_in_bytes(parameters.vram) if parameters.vram is not None else free_memory(device)
    try:
        found = _fit(parameters, spec, given, device, whole)
    except FormatError as error:
        if stated:
            raise
        if workers.first:
            context.notify(Note(str(error.problem)))
        return Fit(parameters)
    if found.refusal is not None and not whole:
        raise found.refusal
    chose = found.rung is not None and (stated or found.parameters != parameters)
    if chose and workers.first:
        context.notify(Note(found.said()))
    return found


def _fit(parameters: Train, spec: Spec, given: int | None, device: Any, whole: bool) -> Fit:
    from loramerge.train.memory.budget import fitting, ladder
    from loramerge.train.memory.needs import Measure

    measure = Measure(spec, device.type)
    stated = parameters.vram is not None
    usual = _options(parameters, spec, measure, device, chooses=stated)
    if given is None:  # nothing can be promised, and nothing refused
        given_or_all, rungs = 1 << 62, ladder(usual, measure.peak)
    else:
        given_or_all, rungs = given, ladder(usual, measure.peak)
    taken: list[Rung] = []
    rung = fitting(_kept(rungs, taken), given_or_all)
    if whole:
        every = _options(parameters, spec, measure, device, chooses=True)
        shown = list(ladder(every, measure.peak))
    else:
        shown = taken
    if rung is None:
        refusal = _refusal(taken[-1], given_or_all, stated, parameters, spec, measure)
        return Fit(parameters, given, None, shown, None, refusal, stated)
    fitted = parameters
    if stated:
        fitted = replace(parameters, **_explicit(rung.choice))
    elif rung is not taken[0]:
        fitted = replace(parameters, checkpointing="on")
    return Fit(fitted, given, rung, shown, measure(rung.choice), None, stated)


def _kept(rungs: Iterable[Rung], taken: list[Rung]) -> Iterable[Rung]:
    for rung in rungs:
        taken.append(rung)
        yield rung


def _options(parameters: Train, spec: Spec, measure: Any, device: Any, *, chooses: bool) -> Options:
    """Return the values to choose from; those that the user gave are fixed.

    Without a given memory, only settings that do not change the result vary.
    """
    from loramerge.train.device.workers import half_precision
    from loramerge.train.memory.budget import Options, smaller_resolutions

    p, own = parameters, measure.resolution
    precision = [spec.settings.precision]
    optimizers = [spec.settings.optimizer]
    resolutions = [own]
    usual = device.type == "cuda"
    checkpointing = [usual] if usual else [False, True]
    if p.checkpointing is not None:
        checkpointing = [p.checkpointing == "on"]
    elif chooses:
        checkpointing = [False, True]
    if chooses:
        half = half_precision(device)
        if p.precision is None and precision == ["no"] and half is not None:
            precision.append(half)
        if p.optimizer is None and not p.optimizer_option:
            eight = device.type == "cuda" and find_spec("bitsandbytes") is not None
            optimizers += ["adamw8bit", "adafactor"] if eight else ["adafactor"]
        if p.resolution is None:
            resolutions = smaller_resolutions(own, measure.step)
    return Options(checkpointing, precision, optimizers, resolutions)


def _explicit(choice: Choice) -> dict[str, Any]:
    """Return a choice as parameters."""
    return {
        "checkpointing": "on" if choice.checkpointing else "off",
        "precision": choice.precision,
        "optimizer": choice.optimizer,
        "resolution": choice.resolution,
    }


def _spelled(choice: Choice) -> str:
    precision = {"no": "float32"}.get(choice.precision, choice.precision)
    checkpointing = "checkpointing" if choice.checkpointing else "no checkpointing"
    return f"{choice.resolution} pixels, {checkpointing}, {precision}, {choice.optimizer}"


# --- what does not fit --------------------------------------------------------------------------


def _refusal(
    least: Rung, given: int, stated: bool, parameters: Train, spec: Spec, measure: Any
) -> UsageError:
    """Return the error for a memory that is too small for every choice."""
    remedies = _remedies(parameters, spec, measure(least.choice))
    if not stated:
        vram = Setting("vram", f"{given // 10**6}MB")
        remedies.insert(0, (vram, ", which may choose settings that change the result"))
    enough = Setting("vram", f"{-(-least.memory // 10**6)}MB")
    return UsageError(
        f"needs {sized(least.memory)} with {_spelled(least.choice)}; "
        f"{sized(given)} are {'given' if stated else 'free'}",
        hint=_joined([*remedies, (enough, " if there is more")]),
    )


def _joined(parts: Sequence[tuple[str | Setting, ...]]) -> tuple[str | Setting, ...]:
    """Return remedies as one message."""
    found: list[str | Setting] = []
    for part in parts:
        found += [*([" · "] if found else []), *part]
    return tuple(found)


def _remedies(p: Train, spec: Spec, needs: Needs) -> list[tuple[str | Setting, ...]]:
    """Return changes that the user could make, the largest saving first."""
    largest = needs.largest
    said = (
        (largest == "samples", (Setting("sample_every", 0), " draws no samples")),
        (needs.encoders > 0 and p.text_encoder,
         ("without ", Setting("text_encoder", True),
          f" {sized(needs.encoders)} of text encoders are released")),
        (needs.encoders > 0 and not p.text_encoder,
         ("without ", Setting("shuffle_tags", True), " and ", Setting("tag_dropout"),
          f" {sized(needs.encoders)} of text encoders are released")),
        (spec.targets.kind == "weights", (Setting("method", "lora"), " instead of whole weights")),
        (p.batch > 1 and largest == "training", (Setting("batch", 1), " with ", Setting("accumulate"))),
        (p.ema is not None, ("no ", Setting("ema"))),
        (p.checkpointing == "off", ("no ", Setting("checkpointing", "off"))),
        *((getattr(p, name) is not None, ("leave ", Setting(name), " to ", Setting("vram")))
          for name in ("precision", "optimizer", "resolution")),
    )  # fmt: skip
    return [remedy for holds, remedy in said if holds]


# --- going on -----------------------------------------------------------------------------------


def _recorded(parameters: Train, spec: Spec) -> Fit | None:
    """Return the settings that a resumed run was started with, if they were chosen for a memory.

    Raises:
        UsageError: if that needs more than is given now.
    """
    from loramerge.train.memory.budget import Choice, Rung
    from loramerge.train.run.log import read_chosen
    from loramerge.train.session import LOG, STATE

    if not parameters.resume or not (spec.folder / STATE).exists():
        return None
    record = read_chosen(spec.folder / LOG)
    if record is None:
        return None
    choice = Choice(*(record[name] for name in _CHOSEN))
    rung = Rung(choice, record["saving"], record["memory"])
    given = record["given"]
    if parameters.vram is not None:
        given = memory_in_bytes(parameters.vram)
        if rung.memory > given and not parameters.force:
            raise UsageError(
                f"the run was started with {_spelled(choice)}, which needs {sized(rung.memory)}; "
                f"{sized(given)} are given",
                file=Path(spec.folder),
                hint=(
                    "give as much memory as at first, or start again with ",
                    Setting("force", True),
                    " and without ",
                    Setting("resume", True),
                ),
            )
    told = {
        name: value
        for name, value in _explicit(choice).items()
        if getattr(parameters, name) is None
    }
    return Fit(replace(parameters, **told), given, rung, [rung], None, None, stated=True)
