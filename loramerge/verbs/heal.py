"""heal: safe repairs of adapters, each named, with ΔW otherwise as it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from loramerge.adapter import Adapter, Problem
from loramerge.algebra.health import examine
from loramerge.algebra.health.healing import Repaired, heal_adapter, without_damaged
from loramerge.algebra.health.repairs import REPAIRS
from loramerge.algebra.outcome import uncut
from loramerge.algebra.proof import Proof
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.terms import Term
from loramerge.algebra.weights import Weight
from loramerge.errors import AdapterError, Setting, UsageError, listed, suggestion
from loramerge.steps.adapters import AdapterResult, write_result
from loramerge.steps.batch import (
    CopyingParameters,
    FileWork,
    for_one_file,
    in_batch,
    one_by_one,
)
from loramerge.steps.batch_result import FilesResult
from loramerge.steps.inputs import require_whole
from loramerge.steps.outputs import Output, named_output, output_of
from loramerge.steps.parameters import Context, Doc, ForFiles, Verb
from loramerge.steps.prediction import Prediction, predict_adapter
from loramerge.steps.proving import prove_written
from loramerge.steps.references import Reference
from loramerge.steps.source import Source, open_source
from loramerge.steps.writing import OwnType, WriteParameters

__all__ = [
    "VERB",
    "Heal",
    "HealFiles",
    "HealResult",
    "HealSettings",
    "compute_heal",
    "heal",
    "heal_files",
]


@dataclass(frozen=True, kw_only=True)
class HealSettings(WriteParameters):
    """The parameters that say what is repaired, whether in one file or in several."""

    dtype: OwnType = None
    only: Annotated[
        tuple[str, ...],
        Doc(
            "Make only this repair: alpha, untrained, dead-ranks, spike, float16; may be repeated.",
            metavar="REPAIR",
        ),
    ] = ()
    alpha_zero: Annotated[
        Literal["drop", "rank"],
        Doc(
            "Modules with alpha 0: leave them out (they have no effect), or read alpha as the rank, "
            "as kohya's trainer does."
        ),
    ] = "drop"
    drop_damaged: Annotated[
        bool,
        Doc(
            "Leave out modules that cannot be repaired: with NaN or infinity, or without their "
            "partners. Without this option they are an error."
        ),
    ] = False

    @property
    def base(self) -> str | None:
        """None: no repair depends on a base."""
        return None

    @property
    def skip_unknown(self) -> bool:
        """True: what is damaged is looked at before it is refused."""
        return True

    def check(self) -> None:
        """Refuse unknown repairs, before anything is opened.

        Raises:
            UsageError: naming the nearest.
        """
        self.target(), self.float_type()
        for name in self.only:
            if name not in REPAIRS:
                raise UsageError(
                    f"{name!r} is not a repair",
                    expected=listed(list(REPAIRS)),
                    hint=suggestion(name, REPAIRS),
                )


@dataclass(frozen=True, kw_only=True)
class Heal(HealSettings):
    """Repair an adapter: spikes, zero ranks, odd alphas, modules that change nothing.

    Each repair is named. What is not repaired keeps its values, and the written file is read back and
    compared with the expected change. An adapter that needs no repair is not written again, unless an
    output, a dialect or a type is given.
    """

    adapter: Annotated[Reference, Doc("Adapter to repair.", ("ADAPTER",), completes="adapters")]


@dataclass(frozen=True, kw_only=True)
class HealFiles(HealSettings, CopyingParameters):
    """Repair adapters: spikes, zero ranks, odd alphas, modules that change nothing.

    Each repair is named. What is not repaired keeps its values, and every written file is read back
    and compared with the expected change. Modules with NaN cannot be repaired: --drop-damaged leaves
    them out. Without -o, --to, --for or --dtype, a file that needs no repair is not written again. Of
    several files, one that fails is reported, and the others are still repaired.
    """

    def check(self) -> None:
        """Refuse unknown repairs, and copies without a folder."""
        CopyingParameters.check(self)
        HealSettings.check(self)

    def each_of(self, path: Path) -> list[tuple[str, Heal]]:
        """Return the parameters that repair one of the files."""
        return [("", for_one_file(self, HealSettings, Heal, path))]


@dataclass(kw_only=True, repr=False)
class HealResult(AdapterResult):
    """A repaired adapter, what was done, and what is left to remark.

    Args:
        repairs: every repair that was made.
        findings: of the repaired adapter.
        proof: comparison of the file with the expected change; None until it is written.
    """

    path: str
    repairs: list[Repaired] = field(default_factory=list)
    findings: list[Problem] = field(default_factory=list)
    proof: Proof | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Repair → number of modules."""
        return dict(Counter(one.repair for one in self.repairs))

    @property
    def is_needless(self) -> bool:
        """True if there was nothing to repair."""
        return not self.repairs

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        names = ("severity", "code", "module", "message", "remedy")
        return {"path": self.path} | super().json() | {
            "size_before": self.size_before,
            "size_after": self.size,
            "repairs": [vars(one) for one in self.repairs],
            "findings": [{name: getattr(f, name) for name in names} for f in self.findings],
        }  # fmt: skip


def heal(parameters: Heal, context: Context = Context()) -> HealResult:
    """Repair, write and compare; write nothing if nothing is repaired and no such file is asked for.

    Raises:
        AdapterError: if modules cannot be repaired, or nothing would be left. NumericsError: if the
            written file differs from the expected change.
    """
    parameters.check()
    source = _open(parameters, context)
    output = _output(parameters, source)
    asked = _asks_for_file(parameters)
    if asked:
        output = output.checked()
    result = _compute(source, parameters, output, context)
    if result.is_needless and not asked:
        return result
    return write_result(result, output.checked(), context, check=prove_written)


def _asks_for_file(parameters: Heal) -> bool:
    """Return whether a file is to be written whatever needs repair: recipes and -o name an output."""
    reweighted = parameters.adapter.weight != Weight()
    return parameters.output is not None or parameters.says_how or reweighted


def output_path(parameters: Heal, context: Context = Context()) -> Path:
    """Return the path that `heal` writes to, from headers."""
    parameters.check()
    return _output(parameters, _open(parameters, context)).place


def _output(parameters: Heal, source: Source) -> Output:
    return named_output(parameters, source.adapters, f"{parameters.adapter.label}-healed")


def compute_heal(parameters: Heal, context: Context = Context()) -> HealResult:
    """Repair without writing.

    Raises:
        AdapterError: see `heal`.
    """
    parameters.check()
    source = _open(parameters, context)
    return _compute(source, parameters, output_of(parameters, source.adapters), context)


def _open(parameters: Heal, context: Context) -> Source:
    source = open_source([parameters.adapter], None, context, skip_unknown=True)
    for adapter in source.adapters:
        if not adapter.deltas and not adapter.embeddings:
            adapter.require_sound()  # refuses it, and says why
    return source


def _compute(source: Source, parameters: Heal, output: Output, context: Context) -> HealResult:
    threads, notify = context.threads, context.notify
    given = source.adapter
    errors = any(p.severity == "error" for p in given.info.problems)
    if not errors:
        require_whole(given)
    whole, dropped = without_damaged(
        given, drop=parameters.drop_damaged, threads=threads, notify=notify
    )
    weighted = source.changed(lambda _: whole).weighted()
    found, repairs = heal_adapter(
        weighted,
        parameters.only or tuple(REPAIRS),
        alpha_zero=parameters.alpha_zero,
        threads=threads,
        notify=notify,
    )
    made = source.step("heal", parameters)
    found = found.with_deltas(found.deltas, made=made, path=None, files=(), size=None)
    findings = examine(found, threads=threads, notify=notify).problems
    if len(found.deltas) < len(given.deltas):  # a layer that was left out is not lost
        findings = [problem for problem in findings if problem.code != "layer-lost"]
    _require_healed(given, findings)
    return HealResult(
        **AdapterResult.figures(found, uncut(found)),
        path=given.label,
        size_before=given.info.size,
        repairs=[*dropped, *repairs],
        findings=findings,
    )


def _require_healed(given: Adapter, findings: Sequence[Problem]) -> None:
    """Refuse a result that `inspect --check` would not pass."""
    errors = [problem for problem in findings if problem.severity == "error"]
    if errors:
        raise AdapterError(
            f"this cannot be repaired: {errors[0].message}",
            file=given.info.path,
            module=listed([p.module for p in errors if p.module], 5),
            hint=(
                "leave these modules out by convert with ",
                Setting("drop"),
                f"; {errors[0].remedy}",
            ),
        )


def predict(parameters: Heal, context: Context = Context()) -> Prediction:
    """Predict the result from headers; repairs that need the weights are not predicted."""
    source = _open(parameters, context)
    whole = replace(source.adapter.info, problems=[])
    adapter = replace(source.adapter, info=whole)
    terms = {site: [Term(delta)] for site, delta in adapter.deltas.items()}
    output = output_of(parameters, source.adapters)
    made = source.step("heal", parameters)
    return predict_adapter(adapter, terms, RankRule(), output, made, context, keeps_types=True)


_FIGURES = (
    "size_after", "dialect", "dtype", "modules", "ranks", "relative_error", "norm_kept",
    "scale_applied", "worst", "left_out", "repairs", "findings",
)  # fmt: skip


def heal_files(parameters: HealFiles, context: Context = Context()) -> FilesResult[HealResult]:
    """Repair files. With a single one errors are raised; with several they are reported.

    Raises:
        UsageError: for options that cannot go together.
        LoramergeError: for a single file, see `heal`.
    """
    work = FileWork(
        one_by_one(heal),
        one_by_one(_compute),
        _FIGURES,
        prove_written,
        unwanted=None if parameters.says_how else _needless,
        copy_rest=parameters.copy_rest,
    )
    return in_batch(parameters, work, context)


def _needless(found: HealResult, _size: int, _before: int) -> str | None:
    return "there is nothing to repair" if found.is_needless else None


VERB = Verb(
    "heal",
    Heal,
    "adapter",
    heal,
    predict,
    compute_heal,
    ForFiles(HealFiles, heal_files),
    output_path=output_path,
)
