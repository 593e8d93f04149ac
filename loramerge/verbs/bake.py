"""bake: adapters into a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from loramerge.adapter import Adapter
from loramerge.adapter.metadata import RECIPE_KEY
from loramerge.algebra.compare import block_of
from loramerge.checkpoint import Checkpoint, open_checkpoint
from loramerge.errors import UsageError, listed, nearest
from loramerge.events import Note, Warn
from loramerge.families.components import COMPONENT_WORDS
from loramerge.files.digest import PLACEHOLDER
from loramerge.files.dtypes import DTYPES, FLOATS
from loramerge.steps.inputs import adapter_of, base_path, open_base
from loramerge.steps.outputs import checkpoint_output, default_name, sum_name
from loramerge.steps.parameters import Context, Doc, Verb
from loramerge.steps.prediction import Prediction, predict_checkpoint
from loramerge.steps.provenance import (
    FileInput,
    Made,
    base_input,
    header_entries,
    input_of,
    length_is_known,
    recipe_in,
    step_of,
)
from loramerge.steps.references import Reference, with_weight_files
from loramerge.steps.writing import WeightParameters, float_type
from loramerge.stream.bake import bake as bake_checkpoint
from loramerge.stream.drift import Drift, drift
from loramerge.stream.plan import BakePlan, plan_bake
from loramerge.stream.rows import Survival

__all__ = ["VERB", "Bake", "BakeResult", "bake"]

_WEAK = 0.9  # share of the change below which the report names remedies


@dataclass(frozen=True, kw_only=True)
class Bake(WeightParameters):
    """Add adapters to a checkpoint; the result has the same layout as the base.

    Tensors that no adapter touches stay byte-identical. The report says how much of the requested
    change survived rounding to the base's type.
    """

    base: Annotated[
        str,
        Doc(
            "Checkpoint: a file, a diffusers folder, or a registered name.",
            ("--base", "-b"),
            "BASE",
            "bases",
        ),
    ]
    adapters: Annotated[
        tuple[Reference, ...],
        Doc("Adapters with weights: NAME:0.8.", ("ADAPTER",), None, "adapters"),
    ] = ()
    lora: Annotated[
        tuple[Reference, ...],
        Doc(
            "An adapter with its weight, as NAME:0.8; may be repeated.",
            ("--lora", "-l"),
            "ADAPTER",
            "adapters",
            recipe=False,
        ),
    ] = ()
    output: Annotated[
        str | None,
        Doc(
            "File or folder to write [default: BASE+ADAPTER].",
            ("--output", "-o"),
            "PATH",
            recipe=False,
        ),
    ] = None
    skip_missing: Annotated[
        tuple[str, ...],
        Doc(
            "Leave out adapter modules that the base lacks, in this component (unet, text_encoder, "
            "…) or in `all`; may be repeated.",
            metavar="COMPONENT",
        ),
    ] = ()
    trained_on: Annotated[
        str | None,
        Doc(
            "Base the adapter was trained on: also report how far BASE is from it where the "
            "adapter acts.",
            metavar="BASE",
            completes="bases",
            result=False,
        ),
    ] = None
    rounding: Annotated[
        Literal["nearest", "stochastic"],
        Doc(
            "How values are rounded to the base's type. Stochastic keeps weak adapters in "
            "expectation, at the price of noise."
        ),
    ] = "nearest"
    seed: Annotated[int, Ge(0), Doc("Seed of stochastic rounding.")] = 0
    dtype: Annotated[
        str | None,
        Doc("Give all floating tensors this type [default: as in the base].", metavar="TYPE"),
    ] = None
    dry_run: Annotated[bool, Doc("Say what would change, and write nothing.", recipe=False)] = False
    force: Annotated[bool, Doc("Replace an existing output.", ("--force", "-f"), recipe=False)] = (
        False
    )

    def settled(self) -> Bake:
        """Return the same with all adapters in one place, and the weights of files in theirs."""
        references = with_weight_files([*self.adapters, *self.lora], self.weights)
        return replace(self, adapters=tuple(references), lora=(), weights=())

    def check(self) -> None:
        """Refuse parameters that cannot be meant, before anything is opened.

        Raises:
            UsageError: naming what is wrong.
        """
        if not self.adapters and not self.lora and self.dtype is None:
            raise UsageError("bake needs an adapter", hint="--lora NAME:0.8")
        float_type(self.dtype, FLOATS), _skipped(self.skip_missing)


@dataclass
class BakeResult:
    """What was baked, and how much of it survived.

    Args:
        survived: ⟨ΔW_written, ΔW_asked⟩ / ‖ΔW_asked‖² over all modules; None for a dry run.
        change: ‖ΔW‖ / ‖W‖ over the touched modules.
        drift: block → [relative distance, subspace moved] where `trained_on` was given.
    """

    output: str
    dry_run: bool
    base: str
    family: str
    layouts: dict[str, str]
    modules: int
    tensors: int
    adapters: list[dict[str, Any]]
    skipped: list[str]
    notes: list[str]
    touched: list[dict[str, Any]] = field(default_factory=list)
    size: int | None = None
    survived: float | None = None
    relative_error: float | None = None
    change: float | None = None
    worst: tuple[str, float] | None = None
    drift: dict[str, tuple[float, float]] | None = None
    drift_total: tuple[float, float] | None = None

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        worst = self.worst
        norm_kept = None
        if self.relative_error is not None:
            norm_kept = math.sqrt(max(0.0, 1.0 - self.relative_error**2))
        return {
            "outputs": [] if self.dry_run else [self.output],
            "output": self.output,
            "dry_run": self.dry_run,
            "base": self.base,
            "family": self.family,
            "layouts": self.layouts,
            "modules": self.modules,
            "tensors": self.tensors,
            "adapters": self.adapters,
            "skipped": self.skipped,
            "notes": self.notes,
            "size": self.size,
            "survived": self.survived,
            "relative_error": self.relative_error,
            "norm_kept": norm_kept,
            "scale_applied": 1.0,
            "change": self.change,
            "worst": {"module": worst[0], "relative_error": worst[1]} if worst else None,
            "drift": self.drift,
            "drift_total": self.drift_total,
            "touched": self.touched,
        }


def bake(parameters: Bake, context: Context = Context()) -> BakeResult:
    """Run the verb.

    Raises:
        LoramergeError: see `stream.plan.plan_bake` and `stream.bake.bake`.
    """
    parameters.check()
    parameters = parameters.settled()
    references = parameters.adapters
    checkpoint = open_base(parameters.base, context)
    output = _output(parameters, checkpoint)
    folder = checkpoint.files.root is not None
    checkpoint_output(output, folder=folder, force=parameters.force or parameters.dry_run)
    adapters = [adapter_of(reference, context) for reference in references]
    plan = _plan(parameters, checkpoint, adapters)
    result = BakeResult(
        str(output),
        parameters.dry_run,
        str(checkpoint.path),
        checkpoint.family_name,
        checkpoint.layouts,
        len(plan.modules),
        plan.tensors,
        [{"path": a.label, "weight": r.written} for a, r in zip(adapters, references, strict=True)],
        plan.skipped,
        list(plan.notes),
    )
    if plan.skipped:
        context.notify(Warn(f"left out, because the base lacks them: {listed(plan.skipped, 5)}"))
    for note in plan.notes:
        context.notify(Note(note))
    _warn_of_embeddings(adapters, context)
    if parameters.trained_on is not None:
        _add_drift(result, adapters, checkpoint, parameters.trained_on, context)
    if parameters.dry_run:
        result.touched = _touched(plan)
        return result
    base = base_input(checkpoint)
    made = _made(parameters, base, adapters)
    _warn_of_double_bake(base, made, context)
    later = not context.strip and length_is_known(made)  # the base's digest takes as long as a bake
    with ThreadPoolExecutor(1) as pool:

        def digest(one: FileInput) -> str:
            return PLACEHOLDER if later and one is base else one.digest()

        early = {} if context.strip else header_entries(made, {}, digest)
        late: Future[Mapping[str, str]] | None = None
        if later:
            late = pool.submit(lambda: header_entries(made, {}))
        survivals = _written(plan, output, parameters, early, late, context)
    _add_survival(result, survivals, plan, context)
    result.size = _size(output)
    return result


def predict(parameters: Bake, context: Context = Context()) -> Prediction:
    """Foretell the result from headers.

    Raises:
        LoramergeError: see `stream.plan.plan_bake`.
    """
    parameters = parameters.settled()
    checkpoint = open_base(parameters.base, context)
    adapters = [adapter_of(reference, context) for reference in parameters.adapters]
    plan = _plan(parameters, checkpoint, adapters)
    made = _made(parameters, base_input(checkpoint), adapters)
    return predict_checkpoint(plan, made, context)


VERB = Verb("bake", Bake, "checkpoint", bake, predict)


def _plan(parameters: Bake, checkpoint: Checkpoint, adapters: list[Adapter]) -> BakePlan:
    weights = [reference.weight for reference in parameters.adapters]
    return plan_bake(
        checkpoint,
        list(zip(adapters, weights, strict=True)),
        skip_missing=_skipped(parameters.skip_missing),
        dtype=float_type(parameters.dtype, FLOATS),
    )


def _skipped(words: tuple[str, ...]) -> list[str]:
    """Return the components that may lack modules.

    Raises:
        UsageError: if a word is no component.
    """
    found: list[str] = []
    for word in words:
        if word != "all" and word not in COMPONENT_WORDS:
            close = nearest(word, COMPONENT_WORDS)
            raise UsageError(
                f"--skip-missing: {word!r} is no component",
                expected=", ".join(("all", *COMPONENT_WORDS)),
                hint=f"did you mean {close}?" if close else None,
            )
        found += COMPONENT_WORDS.get(word, (word,))
    return found


def _output(parameters: Bake, checkpoint: Checkpoint) -> Path:
    if parameters.output is not None:
        return Path(parameters.output)
    name = Path(parameters.base.replace("\\", "/"))
    label = name.stem if name.suffix in (".safetensors", ".ckpt") else name.name or "base"
    added = sum_name(parameters.adapters)
    stem = f"{label}+{added}" if added else f"{label}-{parameters.dtype}"
    return default_name(stem, "" if checkpoint.files.root is not None else ".safetensors")


def _written(
    plan: BakePlan,
    output: Path,
    parameters: Bake,
    metadata: Mapping[str, str],
    late: Future[Mapping[str, str]] | None,
    context: Context,
) -> list[Survival]:
    return bake_checkpoint(
        plan,
        output,
        force=parameters.force,
        seed=parameters.seed if parameters.rounding == "stochastic" else None,
        metadata=metadata,
        late=late,
        threads=context.threads,
        notify=context.notify,
    )


def _made(parameters: Bake, base: FileInput, adapters: list[Adapter]) -> Made | None:
    """Return the step for the header of the result."""
    given: dict[tuple[str, str], Any] = {("bases", parameters.base): base}
    for reference, adapter in zip(parameters.adapters, adapters, strict=True):
        given["adapters", reference.name] = input_of(adapter)
    if parameters.rounding == "nearest":
        parameters = replace(parameters, seed=0)  # it changes nothing
    return step_of("bake", parameters, given)


def _warn_of_double_bake(base: FileInput, made: Made | None, context: Context) -> None:
    """Warn where the base says that one of the adapters is in it already."""
    before = recipe_in({RECIPE_KEY: base.recipe or ""})
    if before is None or made is None:
        return
    digests = {entry["sha256"] for entry in _inputs_in(before)}
    for part in made.content.get("adapters", ()):
        node = part["adapter"]
        if isinstance(node, FileInput) and node.digest() in digests:
            context.notify(Warn(f"{node.name} is baked into this base already"))


def _inputs_in(recipe: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield every input of a recipe that has a digest, those of its inputs' own recipes too."""
    for entry in recipe["inputs"].values():
        if isinstance(entry, Mapping):
            if "sha256" in entry:
                yield entry
            if isinstance(entry.get("recipe"), Mapping):
                yield from _inputs_in(entry["recipe"])


def _warn_of_embeddings(adapters: list[Adapter], context: Context) -> None:
    for adapter in adapters:
        if adapter.embeddings:
            names = listed(list(adapter.embeddings), 4)
            context.notify(
                Note(f"{adapter.label}: embeddings are not part of a checkpoint: {names}")
            )


def _touched(plan: BakePlan) -> list[dict[str, Any]]:
    return [
        {
            "file": str(file.relative),
            "tensor": name,
            "module": edit.site.name,
            "rows": list(edit.place.rows),
            "shape": list(edit.place.shape),
            "dtype": DTYPES[edit.place.tensor.dtype].word,
            "adapters": len(edit.deltas),
        }
        for file, tensors in plan.edits.items()
        for name, edits in tensors.items()
        for edit in edits
    ]


def _add_survival(
    result: BakeResult, survivals: list[Survival], plan: BakePlan, context: Context
) -> None:
    asked = math.fsum(s.asked for s in survivals)
    if asked == 0:
        return
    base = math.fsum(s.base for s in survivals)
    result.survived = math.fsum(s.along for s in survivals) / asked
    result.relative_error = math.sqrt(math.fsum(s.error for s in survivals) / asked)
    result.change = math.sqrt(asked / base) if base > 0 else None
    worst = max((s for s in survivals if s.asked > 0), key=lambda s: s.relative_error)
    result.worst = (worst.module, worst.relative_error)
    result.touched = [
        {
            "module": s.module,
            "tensor": s.tensor,
            "survived": s.survived,
            "relative_error": s.relative_error,
            "change": math.sqrt(s.asked / s.base) if s.base > 0 else None,
        }
        for s in survivals
    ]
    grown = {s.tensor for s in survivals if s.rescaled}
    if grown:
        context.notify(
            Note(
                f"{len(grown)} tensors got a larger scale, because their new values did not "
                f"fit the old one: {listed(sorted(grown), 3)}"
            )
        )
    if result.survived < _WEAK:
        scaled = any(
            e[0].place.require_held().beside for f in plan.edits.values() for e in f.values()
        )
        types = sorted(
            {DTYPES[e.place.tensor.dtype].word for f in plan.edits.values() for es in f.values()
             for e in es}
        )  # fmt: skip
        context.notify(
            Warn(
                f"only {result.survived:.0%} of the change survived rounding to {', '.join(types)}; "
                "--rounding stochastic keeps it in expectation"
                + (
                    ""
                    if scaled
                    else ", --dtype float32 (or bfloat16 for float8 bases) keeps it exactly"
                )
            )
        )


def _add_drift(
    result: BakeResult,
    adapters: list[Adapter],
    checkpoint: Checkpoint,
    trained_on: str,
    context: Context,
) -> None:
    other = open_checkpoint(base_path(trained_on, context))
    found = drift(adapters, other, checkpoint, threads=context.threads, notify=context.notify)
    if not found:
        raise UsageError(
            "there is nothing to compare the bases by",
            hint="--trained-on needs adapters with low-rank modules that both bases have",
        )
    zero = Drift(0.0, 0.0, 0.0, 0.0)
    blocks: dict[str, Drift] = {}
    for site, one in found.items():
        name = block_of(site)
        blocks[name] = blocks.get(name, zero) + one
    result.drift = {name: (d.distance, d.subspace) for name, d in blocks.items()}
    total = sum(found.values(), zero)
    result.drift_total = (total.distance, total.subspace)


def _size(output: Path) -> int:
    if output.is_file():
        return output.stat().st_size
    return sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
