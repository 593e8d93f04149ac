"""mix: a weighted combination of adapters, exact unless ranks are lowered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from loramerge.adapter import Adapter
from loramerge.adapter.metadata import trigger_words
from loramerge.adapter.save import choose_dialect, encode, suffix_of, write_encoded
from loramerge.algebra.arrays import check_device
from loramerge.algebra.combine import Combined
from loramerge.algebra.mix import mix as mix_adapters
from loramerge.algebra.mix import mixed_frame
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.weights import Weight
from loramerge.events import Note
from loramerge.files.dtypes import DTYPES
from loramerge.library.references import Reference, parse_reference, with_weight_files
from loramerge.verbs.inputs import open_adapter
from loramerge.verbs.outputs import (
    adapter_output,
    default_name,
    size_model,
    sum_name,
    version_entry,
    weighted_shapes,
)
from loramerge.verbs.parameters import Context, Doc
from loramerge.verbs.writing import RankParameters, WeightParameters, WriteParameters

__all__ = ["Mix", "MixResult", "mix"]


@dataclass(frozen=True, kw_only=True)
class Mix(WeightParameters, RankParameters, WriteParameters):
    """Combine adapters with weights, exactly.

    The sum is taken of what the adapters change (ΔW), so ranks, alphas and dialects may differ, and
    `mix a:0.5` is exactly half of a. Nothing is cut unless a rank option asks for it.
    """

    adapters: Annotated[
        tuple[str, ...],
        Doc(
            "Adapters with weights: NAME:0.7, NAME:unet=0.8:te=0, NAME:OUTALL, NAME:1,0,0,… or a "
            "pasted <lora:NAME:0.8>.",
            ("ADAPTER",),
            completes="adapters",
        ),
    ]
    embeddings: Annotated[
        Literal["all", "first", "none"],
        Doc(
            "Textual-inversion embeddings in the files: carry all (two of one name are an error), "
            "let the first adapter win, or leave them out."
        ),
    ] = "all"


@dataclass
class MixResult:
    """What was written, and what it lost."""

    output: str
    size: int
    dialect: str
    dtype: str
    family: str | None
    modules: int
    ranks: dict[int, int]
    inputs: list[dict[str, Any]]
    lossy: bool
    relative_error: float
    norm_kept: float
    worst: tuple[str, float] | None
    left_out: list[str]
    unknown_keys: dict[str, list[str]]

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return {
            "outputs": [self.output],
            "size": self.size,
            "dialect": self.dialect,
            "dtype": self.dtype,
            "family": self.family,
            "modules": self.modules,
            "ranks": self.ranks,
            "inputs": self.inputs,
            **lossy_json(self.lossy, self.relative_error, self.norm_kept, self.worst),
            "left_out": self.left_out,
            "unknown_keys": self.unknown_keys,
        }


def lossy_json(
    lossy: bool, relative_error: float, norm_kept: float, worst: tuple[str, float] | None
) -> dict[str, Any]:
    """Return the figures every lossy step reports; exact steps report an error of 0.

    `scale_applied` is what the result was multiplied by to make up for what was cut: 1, since this
    version never does so.
    """
    return {
        "relative_error": relative_error if lossy else 0.0,
        "norm_kept": norm_kept if lossy else 1.0,
        "scale_applied": 1.0,
        "worst": {"module": worst[0], "relative_error": worst[1]} if worst else None,
    }


def mix(parameters: Mix, context: Context = Context()) -> MixResult:
    """Run the verb.

    Raises:
        LoramergeError: see `algebra.mix.mix` and `adapter.save.encode`.
    """
    asked, dtype = parameters.target(), parameters.float_type()
    references = with_weight_files(
        [parse_reference(text) for text in parameters.adapters], parameters.weights
    )
    adapters = [open_adapter(reference.path(), context.notify) for reference in references]
    target = choose_dialect(asked, adapters)
    output = None if parameters.output is None else Path(parameters.output)
    if output is None:
        stem = sum_name(references)
        if label := parameters.rank_label():
            stem += f"-{label}"
        output = default_name(stem, suffix_of(target))
    adapter_output(output, target, force=parameters.force)
    inputs = [(a, r.weight) for a, r in zip(adapters, references, strict=True)]
    rule = parameters.rule(sum(adapter.info.size or 0 for adapter in adapters))
    mixed, combined = _mixed(inputs, rule, parameters, dtype, context)
    encoded = encode(mixed, target, dtype)
    encoded.metadata |= version_entry()
    size = write_encoded(encoded, output, force=parameters.force)
    context.notify(Note("use it at weight 1: the weights are in the file"))
    return MixResult(
        output=str(output),
        size=size,
        dialect=target.name,
        dtype=DTYPES[dtype or mixed.dtype].word,
        family=mixed.info.detection.name,
        modules=len(mixed.deltas),
        ranks=mixed.ranks(),
        inputs=[_described(a, r) for a, r in zip(adapters, references, strict=True)],
        lossy=combined.lossy,
        relative_error=combined.relative_error if combined.lossy else 0.0,
        norm_kept=combined.norm_kept if combined.lossy else 1.0,
        worst=combined.worst,
        left_out=combined.left_out,
        unknown_keys={
            a.label: list(a.info.account.unknown) for a in adapters if a.info.account.unknown
        },
    )


def _mixed(
    inputs: list[tuple[Adapter, Weight]],
    rule: RankRule,
    parameters: Mix,
    dtype: str | None,
    context: Context,
) -> tuple[Adapter, Combined]:
    sizes = None
    if rule.max_size is not None:
        frame = mixed_frame([adapter for adapter, _ in inputs], parameters.embeddings)
        shapes = weighted_shapes(inputs)
        target = choose_dialect(parameters.target(), [adapter for adapter, _ in inputs])
        frame.info.metadata |= version_entry()
        sizes = size_model(frame, shapes, target, dtype or frame.dtype)
    return mix_adapters(
        inputs,
        rule,
        embeddings=parameters.embeddings,
        sizes=sizes,
        device=check_device(context.device),
        precise=dtype == "F64",
        threads=context.threads,
        notify=context.notify,
    )


def _described(adapter: Adapter, reference: Reference) -> dict[str, Any]:
    return {
        "adapter": reference.label,
        "path": adapter.info.path,
        "weight": reference.written,
        "ranks": adapter.ranks(),
        "trigger_words": trigger_words(adapter.info.metadata),
    }
