"""The inputs of a merge, opened, and what its result says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loramerge.checkpoint import Checkpoint
from loramerge.checkpoint.files import CheckpointFiles, find_files
from loramerge.steps.inputs import base_path, open_base
from loramerge.steps.models import Models, Rule, open_models
from loramerge.steps.parameters import Context
from loramerge.steps.provenance import (
    FileInput,
    Made,
    Node,
    base_input,
    files_input,
    input_of,
    step_of,
)
from loramerge.steps.taking import rules_in
from loramerge.verbs.merge.parameters import Merge

__all__ = ["Opened", "lineage", "made_of", "opened"]


@dataclass(frozen=True)
class Opened:
    """The opened inputs of a merge, and the files that its VAE comes from."""

    models: Models
    base: Checkpoint | None
    text_encoder: Checkpoint | None
    layout: Checkpoint | None
    vae: CheckpointFiles | None
    rules: Sequence[Rule] = ()

    @property
    def first(self) -> Checkpoint:
        """The checkpoint whose layout the result has, unless there is another for that."""
        return self.models.checkpoints[0][1]

    @property
    def suffix(self) -> str:
        """The ending of the output, `''` for a folder."""
        return (self.layout or self.first).files.suffix


def opened(parameters: Merge, context: Context) -> tuple[Merge, Opened]:
    """Return the inputs, and the parameters with what they take from one input in its weights."""

    def other(name: str | None) -> Checkpoint | None:
        return None if name is None else open_base(name, context)

    models = open_models(parameters.models, context, whole=not parameters.skip_unknown)
    vae = None if parameters.vae is None else find_files(base_path(parameters.vae, context))
    rules = rules_in(parameters.take, models.references)
    if not parameters.layers:
        models = models.taking(rules, on_base=parameters.base is not None)
        parameters = replace(parameters, take=())
    parameters = replace(parameters, models=tuple(models.references))
    base, text_encoder = other(parameters.base), other(parameters.text_encoder)
    layout = other(parameters.layout)
    return parameters, Opened(models, base, text_encoder, layout, vae, rules)


def made_of(parameters: Merge, inputs: Opened) -> tuple[Made | None, list[FileInput]]:
    """Return the step for the header of the result, and the checkpoints that it is made from."""
    given: dict[tuple[str, str], Node | None] = {
        ("models", reference.name): base_input(one) for reference, one in inputs.models.checkpoints
    }
    others = {
        parameters.base: inputs.base,
        parameters.text_encoder: inputs.text_encoder,
        parameters.layout: inputs.layout,
    }
    for name, one in others.items():
        if name is not None and one is not None:
            given["bases", name] = given.get(("models", name)) or base_input(one)
    if parameters.vae is not None and inputs.vae is not None:
        path = inputs.vae.root or inputs.vae.weights[0].path
        given.setdefault(("bases", parameters.vae), files_input(path, inputs.vae))
    files = {id(node): node for node in given.values() if isinstance(node, FileInput)}
    bases = list(files.values())
    for reference, adapter in inputs.models.adapters:
        given["adapters", reference.name] = input_of(adapter)
    return step_of("merge", parameters, given), bases


def lineage(models: Models) -> dict[str, str]:
    """Return the entry by which programs list what a checkpoint was merged from."""
    if not models.checkpoints[0][1].candidates:
        return {}
    paths = [model.path.name for _, model in models.checkpoints]
    paths += [Path(adapter.label).name for _, adapter in models.adapters]
    names = (name.encode("utf-8", "replace").decode() for name in paths)
    return {"modelspec.merged_from": ", ".join(names)}
