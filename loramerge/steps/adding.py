"""Parts of the verbs that add adapters to a checkpoint, or take them out of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loramerge.adapter import Adapter
from loramerge.steps.checkpoints import header_of_bases
from loramerge.steps.inputs import adapter_of
from loramerge.steps.parameters import Context
from loramerge.steps.provenance import FileInput, Made, input_of, step_of
from loramerge.steps.references import Reference
from loramerge.stream.bake import bake
from loramerge.stream.edits import BakePlan
from loramerge.stream.survival import Survival

__all__ = ["named_adapters", "opened_adapters", "step_with", "write_plan"]


def opened_adapters(
    references: Sequence[Reference], context: Context, *, skip_unknown: bool
) -> list[Adapter]:
    """Return the adapters of references.

    Args:
        skip_unknown: whether tensors that nothing is known of may be left out.

    Raises:
        LoramergeError: if one cannot be read.
    """
    return [adapter_of(one, context, whole=not skip_unknown) for one in references]


def named_adapters(
    references: Sequence[Reference], adapters: Sequence[Adapter]
) -> list[dict[str, str]]:
    """Return the adapters with their weights as results list them."""
    return [
        {"path": adapter.label, "weight": reference.weight_in_words}
        for reference, adapter in zip(references, adapters, strict=True)
    ]


def step_with(
    verb: str,
    parameters: Any,
    checkpoints: Mapping[str, FileInput],
    references: Sequence[Reference],
    adapters: Sequence[Adapter],
) -> Made | None:
    """Return the step for the header of a checkpoint that a verb made; see `provenance.step_of`.

    Args:
        checkpoints: name in the parameters → file.
    """
    given: dict[tuple[str, str], Any] = {("bases", name): one for name, one in checkpoints.items()}
    for reference, adapter in zip(references, adapters, strict=True):
        given["adapters", reference.name] = input_of(adapter)
    return step_of(verb, parameters, given)


def write_plan(
    plan: BakePlan,
    output: Path,
    made: Made | None,
    source: FileInput,
    context: Context,
    **settings: Any,
) -> list[Survival]:
    """Write what a plan makes of a checkpoint, with the step that made it in the header.

    Args:
        source: the checkpoint, whose digest may follow while the rest is written.
        settings: of `stream.bake.bake`.

    Raises:
        LoramergeError: see `stream.bake.bake`.
    """
    with header_of_bases(made, [source], strip=context.strip) as (metadata, late):
        return bake(
            plan,
            output,
            metadata=metadata,
            late=late,
            threads=context.threads,
            notify=context.notify,
            **settings,
        )
