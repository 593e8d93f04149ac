"""The method parameter of verbs that merge: an operator with its own parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Annotated, Any, Self

from loramerge.algebra.method import Method
from loramerge.algebra.operator import Operator
from loramerge.algebra.operators import OPERATORS, find_operator
from loramerge.algebra.operators.linear import OPERATOR as LINEAR
from loramerge.algebra.rules import rules_content
from loramerge.algebra.scale import checked_scale
from loramerge.errors import Setting, UsageError, listed
from loramerge.parameters import Doc, Parameter

__all__ = ["AdapterMethodParameters", "CheckpointMethodParameters", "MethodParameters"]

# words of every command, and of every step of a recipe
_RESERVED = frozenset(
    {"device", "for", "help", "json", "json_file", "operator", "quiet", "save", "save_recipe", "strip",
     "threads"}
)  # fmt: skip


def _method_names() -> tuple[str, ...]:
    return tuple(one.name for one in OPERATORS.known())


def _names_for_checkpoints() -> tuple[str, ...]:
    return tuple(one.name for one in _for_checkpoints(OPERATORS.known()))


def _for_checkpoints(operators: Iterable[Operator]) -> Iterator[Operator]:
    """Yield the operators that need no low-rank factors."""
    return (one for one in operators if not one.needs_factors)


@dataclass(frozen=True, kw_only=True)
class MethodParameters:
    """The operator that merges, and values of its own parameters."""

    method: Annotated[
        str,
        Doc(
            "Merge operator: `linear` is the weighted sum; `loramerge operators` lists all. Its own "
            "parameters take one value, or several for parts of the network: `0.5:te=0.9:*attn*=0.2`.",
            metavar="NAME",
            choices=_method_names,
        ),
    ] = LINEAR.name
    scale: Annotated[
        str | None,
        Doc(
            "Final scale of every module: `literal` keeps the method's result, `norm-match` "
            "scales it to the mean norm of the weighted changes, `1/sqrt` divides it by √n, a "
            "number multiplies it [default: the method's own].",
            metavar="RULE",
            number=float,
        ),
    ] = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # the operator's own parameters

    @classmethod
    def held_parameters(cls, *, installed: bool = False) -> tuple[Parameter, ...]:
        """Return the parameters of the known operators, whose values `settings` holds.

        Args:
            installed: look for operators of installed packages first.

        Raises:
            UsageError: if an operator has a parameter that the verb itself has, or two operators
                have parameters of one name and several types.
        """
        if installed:
            OPERATORS.look_for_others()
        return _held_by(tuple(cls.operators()), frozenset(cls.__dataclass_fields__))

    @classmethod
    def operators(cls) -> Iterable[Operator]:
        """Return the known operators that the verb can use."""
        return OPERATORS.known()

    @property
    def code(self) -> str | None:
        """The digest of the operator's code, None if it is part of loramerge."""
        return find_operator(self.method).code

    def operation(self) -> Method:
        """Return the operator with its parameters.

        Raises:
            UsageError: if there is no such operator, or a setting is not one of its parameters.
        """
        operator = find_operator(self.method)
        scale = None if self.scale is None else checked_scale(self.scale)
        for name in self.settings:
            if not operator.has(name):
                own = [one.name for one in operator.own_parameters]
                others = [one.name for one in self.operators() if one.has(name)]
                raise UsageError(
                    f"the method {self.method} has no parameter {name!r}",
                    expected=listed(own) or "no parameters",
                    hint=("methods that have it: ", *_methods(others)) if others else None,
                )
        return Method.of(operator, self.settings, scale)

    def with_own_settings(self) -> Self:
        """Return the same without the settings and the scale that are the operator's defaults."""
        own = {one.name: one for one in find_operator(self.method).own_parameters}
        settings = {
            name: rules_content(value, own[name])
            if isinstance(value, Mapping) and name in own
            else value
            for name, value in self.settings.items()
        }
        kept = {
            name: value
            for name, value in settings.items()
            if name not in own or value != own[name].default
        }
        scale = None if self.scale == find_operator(self.method).scale else self.scale
        return replace(self, settings=kept, scale=scale)


def _names_that_correct() -> tuple[str, ...]:
    return tuple(one.name for one in OPERATORS.known() if one.correct is not None)


@dataclass(frozen=True, kw_only=True)
class AdapterMethodParameters(MethodParameters):
    """The operator that merges adapters, values of its own parameters, and a correction."""

    correction: Annotated[
        str | None,
        Doc(
            "Correct the result of the method, before its final scale: `svc` lowers directions that "
            "several adapters share.",
            metavar="NAME",
            choices=_names_that_correct,
        ),
    ] = None

    @property
    def code(self) -> str | None:
        """The digest of the code of operator and correction, None if both are part of loramerge."""
        names = (self.method, self.correction)
        found = [find_operator(name).code for name in names if name is not None]
        return ":".join(filter(None, found)) or None

    def operation(self) -> Method:
        """Return the operator with its parameters and the correction.

        Raises:
            UsageError: see `MethodParameters.operation`, or if no operator corrects by this name.
        """
        method = super().operation()
        if self.correction is None:
            return method
        correction = find_operator(self.correction)
        if correction.correct is None:
            raise UsageError(
                f"the method {correction.name} cannot correct the result of another",
                expected=listed(list(_names_that_correct())),
            )
        return replace(method, correction=correction)


@dataclass(frozen=True, kw_only=True)
class CheckpointMethodParameters(MethodParameters):
    """The operator that merges checkpoints, and values of its own parameters."""

    method: Annotated[
        str,
        Doc(
            "Operator that combines them: `linear` is the weighted sum, `loramerge operators` explains "
            "all. Its own parameters take one value, or several for parts of the network: "
            "`0.5:te=0.9:*attn*=0.2`.",
            metavar="NAME",
            choices=_names_for_checkpoints,
        ),
    ] = LINEAR.name
    scale: Annotated[
        str | None,
        Doc(
            "Final scale of every tensor: `literal` leaves what the method gives, `norm-match` brings "
            "it to the mean norm of the weighted changes, `1/sqrt` divides by √n, a number multiplies "
            "[default: the method's own].",
            metavar="RULE",
            number=float,
        ),
    ] = None

    @classmethod
    def operators(cls) -> Iterable[Operator]:
        """Return the known operators that need no low-rank factors."""
        return _for_checkpoints(OPERATORS.known())


def _methods(names: Sequence[str]) -> list[str | Setting]:
    return [part for name in names for part in (", ", Setting("method", name))][1:]


@cache
def _held_by(operators: tuple[Operator, ...], taken: frozenset[str]) -> tuple[Parameter, ...]:
    """Return the parameters of operators, those of one name as one."""
    users: dict[str, list[tuple[Operator, Parameter]]] = {}
    for operator in operators:
        for one in operator.own_parameters:
            if one.name in taken | _RESERVED:
                raise UsageError(
                    f"operator {operator.name}: the verb itself has a parameter {one.name!r}",
                    hint="give the operator's parameter another name",
                )
            users.setdefault(one.name, []).append((operator, one))
    return tuple(_held(found) for found in users.values())


def _held(users: Sequence[tuple[Operator, Parameter]]) -> Parameter:
    """Return the parameter that operators share; where it is not given, each has its own default."""
    first = users[0][1]
    texts: dict[str, list[str]] = {}
    for operator, one in users:
        if (one.kind, one.many) != (first.kind, first.many):
            raise UsageError(
                f"the operators {users[0][0].name} and {operator.name} have a parameter "
                f"{one.name!r} of two types",
                expected=first.kind,
                found=one.kind,
            )
        default = "required" if one.required else f"default: {one.default}"
        text = f"{one.doc.help.rstrip().removesuffix('.')} [{default}]."
        texts.setdefault(text, []).append(operator.name)
    same = all(one.bounds == first.bounds for _, one in users)
    return replace(
        first,
        optional=True,
        doc=replace(
            first.doc,
            help=" ".join(f"{', '.join(names)}: {text}" for text, names in texts.items()),
        ),
        bounds=first.bounds if same else (),
        default=None,
        holder="settings",
    )
