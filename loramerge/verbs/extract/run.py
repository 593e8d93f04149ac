"""Make an adapter of the difference of two checkpoints: pair their tensors, decompose, and write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from loramerge.adapter import Adapter, Delta, Info, Site
from loramerge.adapter.widths import widest
from loramerge.algebra.outcome import Combined, SizeModel
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.terms import Term
from loramerge.checkpoint import Checkpoint
from loramerge.errors import AdapterError, Message, Setting, listed
from loramerge.events import Note
from loramerge.files.spool import spool_for
from loramerge.steps.adapters import AdapterResult, budget, write_result
from loramerge.steps.checkpoints import components_of, label_of
from loramerge.steps.inputs import open_base
from loramerge.steps.outputs import Output, named_output, output_of
from loramerge.steps.parameters import Context, Verb
from loramerge.steps.prediction import Prediction, predict_adapter
from loramerge.steps.provenance import FileInput, Made, base_input, step_of
from loramerge.steps.sizes import stand_in
from loramerge.stream.extract import Extraction, whole_difference
from loramerge.stream.extract import extract as extract_deltas
from loramerge.stream.pairing import PairedSite, Pairing, Sort, paired
from loramerge.verbs.extract.parameters import Extract
from loramerge.verbs.extract.result import ExtractResult

__all__ = ["VERB", "Extract", "ExtractResult", "compute_extract", "extract"]

_WORDS: Mapping[Sort, str] = {
    "matrix": "weights", "bias": "biases", "norm": "norms", "embedding": "embeddings",
    "table": "tables and other parameters",
}  # fmt: skip


def extract(parameters: Extract, context: Context = Context()) -> ExtractResult:
    """Extract an adapter and write it.

    Raises:
        LoramergeError: see `stream.differences.paired` and `stream.extract.extract`.
    """
    inputs = _opened(parameters, context)
    output = _output(parameters, inputs).checked()
    with inputs.digested(context):
        result = _compute(inputs, parameters, output, context)
        return write_result(result, output, context)


def output_path(parameters: Extract, context: Context = Context()) -> Path:
    """Return the path that `extract` writes to, from headers."""
    return _output(parameters, _opened(parameters, context)).place


def compute_extract(parameters: Extract, context: Context = Context()) -> ExtractResult:
    """Extract an adapter without writing it; see `extract`."""
    inputs = _opened(parameters, context)
    return _compute(inputs, parameters, output_of(parameters, [inputs.frame]), context)


def predict(parameters: Extract, context: Context = Context()) -> Prediction:
    """Predict the result from headers."""
    inputs = _opened(parameters, context)
    output = output_of(parameters, [inputs.frame])
    sites = inputs.paired(output)
    rule, dtype = parameters.rule(inputs.tuned.size), _difference_type(parameters, sites)
    frame = inputs.frame.with_deltas({}, dtype=_written_type(parameters, sites))
    wanted = ("matrix", *parameters.sorts())
    terms = {
        group.site: [Term(_shadow(group, parameters, rule, dtype))]
        for group in sites.groups
        if group.sort in wanted
    }
    found = predict_adapter(frame, terms, rule, output, inputs.made(parameters), context)
    elements = [_elements(group) for group in sites.groups]
    found.at_most = True
    found.memory += (context.threads or 1) * _COPIES * 4 * max(elements, default=0)
    found.seconds += sum(elements) * _SECONDS
    return found


_COPIES = 4  # of a module's difference that are held at a time, about
_SECONDS = 2e-8  # for each element: read twice, and passed over some ten times

VERB = Verb(
    "extract", Extract, "adapter", extract, predict, compute_extract, output_path=output_path
)


@dataclass(frozen=True)
class _Inputs:
    """The opened checkpoints.

    Args:
        frame: an adapter of their family without deltas.
        nodes: what they are to the step that uses them.
    """

    tuned: Checkpoint
    base: Checkpoint
    frame: Adapter
    nodes: tuple[FileInput, FileInput]
    skip: tuple[str, ...]

    def paired(self, output: Output) -> Pairing:
        return paired(self.tuned, self.base, output.dialect, skip=self.skip)

    def made(self, parameters: Extract) -> Made | None:
        given = {
            ("bases", parameters.tuned): self.nodes[0],
            ("bases", parameters.base): self.nodes[1],
        }
        return step_of("extract", parameters, given)

    @contextmanager
    def digested(self, context: Context) -> Iterator[None]:
        """Compute the digests of both in a thread, which are then at hand for the header."""
        if context.strip:
            yield
            return
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: [node.digest() for node in self.nodes])
            yield


_AN_ADAPTER: tuple[str, Message] = (
    "this is an adapter, and extract compares two checkpoints",
    ("give the tuned checkpoint as ", Setting("tuned")),
)


def _opened(parameters: Extract, context: Context) -> _Inputs:
    parameters.check()
    tuned = open_base(parameters.tuned, context, _AN_ADAPTER)
    base = open_base(parameters.base, context)
    skip = tuple(components_of(parameters.skip_missing))
    found = paired(tuned, base, None, skip=skip)
    frame = Adapter({}, info=Info(detection=found.detection, dialects=_dialects(tuned)))
    return _Inputs(tuned, base, frame, (base_input(tuned), base_input(base)), skip)


def _dialects(tuned: Checkpoint) -> dict[str, int]:
    """Return the dialect to write if none is asked for, or nothing, which means the family's.

    Modules of no known family are named as in their files. Two networks need a dialect that tells them
    apart.
    """
    if tuned.candidates:
        parts = tuned.candidates[0].components
        both = any({one.name, one.second_of} <= tuned.layouts.keys() for one in parts)
        return {"diffusers": 1} if both else {}
    if not tuned.is_unknown:
        return {"peft": 1}
    return {"diffusers" if any(file.component for file in tuned.files.weights) else "comfyui": 1}


def _output(parameters: Extract, inputs: _Inputs) -> Output:
    ranks = "full" if parameters.full else parameters.rank_label()
    return named_output(parameters, [inputs.frame], f"{label_of(parameters.tuned)}-{ranks}")


def _compute(
    inputs: _Inputs, parameters: Extract, output: Output, context: Context
) -> ExtractResult:
    sites = inputs.paired(output)
    rule = parameters.rule(inputs.tuned.size)
    if rule.max_size is not None:
        parameters = replace(parameters, max_size=str(rule.max_size))
    made = inputs.made(parameters)
    frame = inputs.frame.with_deltas({}, dtype=_written_type(parameters, sites))

    def sizes(shapes: Mapping[Site, Delta]) -> SizeModel:
        return budget(frame, shapes, output, made, context)

    found = extract_deltas(
        sites.groups,
        rule,
        parameters.sorts(),
        whole=parameters.full,
        keep_rounding=parameters.keep_rounding,
        sizes=sizes if rule.max_size is not None else None,
        dtype="F64" if output.precise else _difference_type(parameters, sites),
        threads=context.threads,
        keep=spool_for(output.path),
        notify=context.notify,
    )
    _require_something(found, sites, inputs)
    adapter = frame.with_deltas(found.deltas, made=made)
    result = _result(parameters, inputs, sites, found, adapter)
    for text in _remarks(result):
        context.notify(Note(text))
    return result


def _written_type(parameters: Extract, sites: Pairing) -> str:
    """Return the type in which the adapter is written unless another is asked for."""
    return _difference_type(parameters, sites) if parameters.full else widest(sites.dtypes)


def _difference_type(parameters: Extract, sites: Pairing) -> str:
    """Return the type that holds differences: one that is exact for half types."""
    return "F64" if "F64" in sites.dtypes else "F32"


def _shadow(group: PairedSite, parameters: Extract, rule: RankRule, dtype: str) -> Delta:
    """Return a delta without values that is at least as large as the result at a site."""
    if parameters.full or group.sort != "matrix":
        return whole_difference(group, dtype)
    cap, most = rule.cap(_kernel(group)), min(group.flat_shape)
    return stand_in(group.shape, most if cap is None else min(cap, most), "F32")


def _kernel(group: PairedSite) -> int:
    return _elements(group) // (group.shape[0] * group.shape[1])


def _elements(group: PairedSite) -> int:
    rows, columns = group.flat_shape
    return rows * columns


def _require_something(found: Extraction, sites: Pairing, inputs: _Inputs) -> None:
    """Refuse to write an adapter without any delta.

    Raises:
        AdapterError: saying what the difference consists of.
    """
    if found.deltas:
        return
    count, where = len(sites.groups), f"{inputs.tuned.path} and {inputs.base.path}"
    if found.outcomes:
        raise AdapterError(
            "no module keeps a direction under these criteria",
            file=where,
            hint=("allow a larger file with ", Setting("max_size"), ", or a smaller error"),
        )
    if found.energies:
        raise AdapterError(
            "the checkpoints differ only in parameters that were not asked for",
            file=where,
            found=listed([f"{_WORDS[sort]} ({n})" for sort, n in found.counts.items()]),
            hint=("give ", Setting("vectors", True), " or ", Setting("full", True)),
        )
    if found.rounding:
        types = f" to {listed(sorted(found.types))}" if found.types else ""
        raise AdapterError(
            f"there is nothing to extract: the checkpoints differ by no more than rounding{types}",
            file=where,
            found=f"{len(found.rounding)} of {count} sites with other values, within rounding",
            hint=("give ", Setting("keep_rounding", True), " to keep the rounding itself"),
        )
    raise AdapterError(
        f"there is nothing to extract: the checkpoints are equal in all {count} sites", file=where
    )


def _result(
    parameters: Extract,
    inputs: _Inputs,
    sites: Pairing,
    found: Extraction,
    adapter: Adapter,
) -> ExtractResult:
    combined: Combined = found.combined
    return ExtractResult(
        **AdapterResult.figures(adapter, combined),
        tuned=str(inputs.tuned.path),
        base=str(inputs.base.path),
        captured=found.captured,
        unchanged=found.unchanged,
        rounding=found.rounding,
        rounded_to=sorted(found.types),
        not_kept={
            _WORDS[sort]: {"count": found.counts[sort], "share": energy / found.total}
            for sort, energy in found.energies.items()
        },
        one_side=sites.one_side,
        other_components=sites.components,
        outside=sites.outside,
    )


def _remarks(result: ExtractResult) -> Iterator[str]:
    """Yield sentences on what was not compared."""
    if result.other_components:
        names = listed(result.other_components)
        yield f"left out, because only one of the checkpoints has it: {names}"
    if result.one_side:
        yield f"left out, because only one of the checkpoints has them: {listed(result.one_side, 5)}"
    if result.outside:
        count = result.outside
        one = count == 1
        yield (
            f"{count} {'tensor belongs' if one else 'tensors belong'} to no adaptable module of "
            f"{result.family or 'the model'} and {'is' if one else 'are'} not compared"
        )
