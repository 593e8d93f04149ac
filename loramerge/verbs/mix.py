"""mix: combine adapters with weights by a merge operator, by default to the exact sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from typing import Annotated, Any, Literal

from loramerge.adapter import Adapter
from loramerge.adapter.encode import choose_dialect
from loramerge.adapter.metadata import trigger_words
from loramerge.adapter.sites import without_values
from loramerge.algebra.arrays import check_device
from loramerge.algebra.compat import mix_like
from loramerge.algebra.mix import frame_of
from loramerge.algebra.mix import mix as mix_adapters
from loramerge.algebra.operator import Method, Operator
from loramerge.algebra.operators import find_operator, known_operators
from loramerge.algebra.operators.linear import OPERATOR as LINEAR
from loramerge.algebra.outcome import Combined, uncut
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.terms import require_base_free, terms_of
from loramerge.algebra.weights import Weight
from loramerge.errors import Setting, UsageError, listed
from loramerge.events import Note
from loramerge.library.references import Reference, with_weight_files
from loramerge.parameters import Parameter
from loramerge.steps.adapters import AdapterResult, budget, target_of, whole_size, written
from loramerge.steps.inputs import adapter_of, at_base, open_base
from loramerge.steps.outputs import sum_name, weighted_shapes
from loramerge.steps.parameters import Context, Doc, Verb
from loramerge.steps.prediction import Prediction, predict_adapter
from loramerge.steps.provenance import Made, Node, base_input, input_of, step_of
from loramerge.steps.writing import BaseParameter, RankParameters, WeightParameters, WriteParameters

__all__ = ["VERB", "Mix", "MixResult", "compute_mix", "mix"]


def _method_names() -> tuple[str, ...]:
    return tuple(known_operators())


@dataclass(frozen=True, kw_only=True)
class Mix(WeightParameters, RankParameters, BaseParameter, WriteParameters):
    """Combine adapters with weights, exactly.

    The sum is taken of what the adapters change (ΔW), so ranks, alphas and dialects may differ, and
    `mix a:0.5` is exactly half of a. Nothing is cut unless a rank option asks for it. Other methods
    than the sum are listed by `loramerge operators`.
    """

    adapters: Annotated[
        tuple[Reference, ...],
        Doc(
            "Adapters with weights: NAME:0.7, NAME:unet=0.8:te=0, NAME:OUTALL, NAME:1,0,0,… or a "
            "pasted <lora:NAME:0.8>.",
            ("ADAPTER",),
            completes="adapters",
        ),
    ]
    method: Annotated[
        str,
        Doc(
            "Operator that combines the changes: `linear` is their weighted sum.",
            choices=_method_names,
        ),
    ] = LINEAR.name
    compat: Annotated[
        Literal["kohya", "kohya-concat", "peft-linear"] | None,
        Doc(
            "Give what another tool's merge of these gives, for old results: merge_lora.py of "
            "sd-scripts, the same with --concat, or PEFT's linear combination."
        ),
    ] = None
    embeddings: Annotated[
        Literal["all", "first", "none"],
        Doc(
            "Textual-inversion embeddings in the files: carry all (two of one name are an error), "
            "let the first adapter win, or leave them out."
        ),
    ] = "all"

    settings: Mapping[str, Any] = field(default_factory=dict)  # the operator's own parameters

    @classmethod
    def held_parameters(cls, *, installed: bool = False) -> tuple[Parameter, ...]:
        """Return the parameters of the known operators, which `settings` holds.

        Raises:
            UsageError: if an operator has a parameter that mix itself has.
        """
        return _held_by(tuple(known_operators(installed=installed).values()))

    @property
    def code(self) -> str | None:
        """The digest of the operator's code, if it is not part of loramerge."""
        return find_operator(self.method).code

    def operation(self) -> Method:
        """Return the operator of `method` with its parameters.

        Raises:
            UsageError: if there is none of this name, or a parameter is not one of it.
        """
        operator = find_operator(self.method)
        own = {one.name for one in operator.own_parameters}
        for name in self.settings:
            if name not in own:
                others = [o.name for o in known_operators().values() if _has(o, name)]
                raise UsageError(
                    f"the method {self.method} has no parameter {name!r}",
                    expected=listed(sorted(own)) or "no parameters",
                    hint=("methods that have it: ", *_methods(others)) if others else None,
                )
        return Method.of(operator, self.settings)

    def check(self) -> None:
        """Refuse parameters that cannot be meant, before anything is opened.

        Raises:
            UsageError: naming what is wrong.
        """
        self.target(), self.float_type()
        if self.rule(1).truncates and self.compat is not None:
            raise UsageError(
                "compat gives the result of another tool as it is, and no criterion cuts it",
                hint="resize the result in a second step",
            )
        if not self.operation().operator.is_sum and self.compat is not None:
            raise UsageError(
                "compat gives the result of another tool, and method that of an operator",
                hint="give one of the two",
            )
        if not self.adapters:
            raise UsageError("mix needs at least one adapter")

    def settled(self) -> Mix:
        """Return the same with the weights of files in place, and no setting that is the default."""
        own = {one.name: one.default for one in find_operator(self.method).own_parameters}
        return replace(
            self,
            adapters=tuple(with_weight_files(self.adapters, self.weights)),
            weights=(),
            settings={n: v for n, v in self.settings.items() if v != own.get(n, MISSING)},
        )


def _has(operator: Operator, name: str) -> bool:
    return any(one.name == name for one in operator.own_parameters)


def _methods(names: Sequence[str]) -> list[str | Setting]:
    return [part for name in names for part in (", ", Setting("method", name))][1:]


# words of every command, and of every step of a recipe
_RESERVED = frozenset(
    {"device", "for", "help", "json", "json_file", "operator", "quiet", "save", "save_recipe", "strip",
     "threads"}
)  # fmt: skip


@cache
def _held_by(operators: tuple[Operator, ...]) -> tuple[Parameter, ...]:
    """Return the parameters of operators, those of one name as one."""
    taken = {one.name for one in fields(Mix)} | _RESERVED
    users: dict[str, list[tuple[Operator, Parameter]]] = {}
    for operator in operators:
        for one in operator.own_parameters:
            if one.name in taken:
                raise UsageError(
                    f"operator {operator.name}: mix itself has a parameter {one.name!r}",
                    hint="give the operator's parameter another name",
                )
            users.setdefault(one.name, []).append((operator, one))
    return tuple(_held(found) for found in users.values())


def _held(users: Sequence[tuple[Operator, Parameter]]) -> Parameter:
    """Return the parameter that several operators have: not given, each has its own default."""
    texts: dict[str, list[str]] = {}
    for operator, one in users:
        default = "required" if one.required else f"default: {one.default}"
        text = f"{one.doc.help.rstrip().removesuffix('.')} [{default}]."
        texts.setdefault(text, []).append(operator.name)
    text = " ".join(f"{', '.join(names)}: {text}" for text, names in texts.items())
    first = users[0][1]
    same = all(one.bounds == first.bounds for _, one in users)
    return replace(
        first,
        optional=True,
        doc=replace(first.doc, help=text),
        bounds=first.bounds if same else (),
        default=None,
        holder="settings",
    )


@dataclass(kw_only=True)
class MixResult(AdapterResult):
    """A mix: the adapter, its errors, and its inputs."""

    inputs: list[dict[str, Any]]
    unknown_keys: dict[str, list[str]]

    def json(self) -> dict[str, Any]:
        return super().json() | {"inputs": self.inputs, "unknown_keys": self.unknown_keys}


Inputs = list[tuple[Adapter, Reference]]


def mix(parameters: Mix, context: Context = Context()) -> MixResult:
    """Mix and write.

    Raises:
        LoramergeError: see `algebra.mix.mix` and `adapter.encode.encode`.
    """
    parameters = parameters.settled()
    parameters.check()
    inputs = _inputs(parameters, context)
    stem = "-".join(filter(None, (sum_name(parameters.adapters), parameters.rank_label())))
    target = target_of(parameters, [adapter for adapter, _ in inputs], stem)
    result = written(_computed(inputs, parameters, context), target, context)
    context.notify(Note("Load this file at strength 1: the weights are already applied."))
    return result


def compute_mix(parameters: Mix, context: Context = Context()) -> MixResult:
    """Mix without writing.

    Raises:
        LoramergeError: see `algebra.mix.mix`.
    """
    parameters = parameters.settled()
    parameters.check()
    return _computed(_inputs(parameters, context), parameters, context)


def _inputs(parameters: Mix, context: Context) -> Inputs:
    return [(adapter_of(reference, context), reference) for reference in parameters.adapters]


def _computed(inputs: Inputs, parameters: Mix, context: Context) -> MixResult:
    adapters, given = _given(inputs, parameters, context)
    weighted = [(a, r.weight) for a, (_, r) in zip(adapters, inputs, strict=True)]
    rule = parameters.rule(whole_size(adapters, parameters) if parameters.max_size else 0)
    if rule.max_size is not None:
        parameters = replace(parameters, max_size=str(rule.max_size))
    made = step_of("mix", parameters, given)
    adapter, combined = _summed(weighted, rule, parameters, made, context)
    if made is not None:
        adapter.made_by(made)
    return MixResult(
        **AdapterResult.figures(adapter, combined),
        inputs=[_described(a, r) for a, r in inputs],
        unknown_keys={
            a.label: list(a.info.account.unknown) for a in adapters if a.info.account.unknown
        },
    )


def _given(
    inputs: Inputs, parameters: Mix, context: Context
) -> tuple[list[Adapter], dict[tuple[str, str], Node | None]]:
    """Return the adapters, at the base if there is one, and what the step is given."""
    given: dict[tuple[str, str], Node | None] = {
        ("adapters", reference.name): input_of(adapter) for adapter, reference in inputs
    }
    base = None
    if parameters.base is not None:
        base = open_base(parameters.base, context)
        given["bases", parameters.base] = base_input(base)
    return [at_base(adapter, base) for adapter, _ in inputs], given


def _summed(
    inputs: Sequence[tuple[Adapter, Weight]],
    rule: RankRule,
    parameters: Mix,
    made: Made | None,
    context: Context,
) -> tuple[Adapter, Combined]:
    if parameters.compat is not None:
        found = mix_like(
            parameters.compat, inputs, embeddings=parameters.embeddings, notify=context.notify
        )
        return found, uncut(found)
    sizes = None
    adapters = [adapter for adapter, _ in inputs]
    target = choose_dialect(parameters.target(), adapters)
    if rule.max_size is not None:
        frame = frame_of(adapters, parameters.embeddings)
        shapes = weighted_shapes(inputs, target)
        sizes = budget(adapters, frame, shapes, parameters, made, context)
    return mix_adapters(
        inputs,
        rule,
        embeddings=parameters.embeddings,
        sizes=sizes,
        target=target,
        method=parameters.operation(),
        device=check_device(context.device),
        precise=parameters.float_type() == "F64",
        threads=context.threads,
        notify=context.notify,
    )


def predict(parameters: Mix, context: Context = Context()) -> Prediction:
    """Predict the result from headers."""
    parameters = parameters.settled()
    inputs = _inputs(parameters, context)
    adapters, given = _given(inputs, parameters, context)
    target = choose_dialect(parameters.target(), adapters)
    weighted = [(a, r.weight) for a, (_, r) in zip(adapters, inputs, strict=True)]
    rule = parameters.rule(whole_size(adapters, parameters))
    if parameters.compat is None:
        require_base_free(weighted, rule)
    method = parameters.operation()
    shadows = [(without_values(adapter, target), weight) for adapter, weight in weighted]
    terms = terms_of(shadows, target, one_weight=not method.operator.is_sum)
    if parameters.compat in ("kohya", "peft-linear"):
        terms = {site: found[:1] for site, found in terms.items()}
    made = step_of("mix", parameters, given)
    frame = frame_of(adapters, parameters.embeddings)
    return predict_adapter(adapters, frame, terms, rule, parameters, made, context, method=method)


VERB = Verb("mix", Mix, "adapter", mix, predict, compute_mix)


def _described(adapter: Adapter, reference: Reference) -> dict[str, Any]:
    return {
        "adapter": reference.label,
        "path": adapter.info.path,
        "weight": reference.written,
        "ranks": adapter.ranks(),
        "trigger_words": trigger_words(adapter.info.metadata),
    }
