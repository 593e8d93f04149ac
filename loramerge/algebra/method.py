"""A merge operator with values of its parameters, a correction and a final scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from loramerge.adapter import Adapter, Site
from loramerge.algebra.operator import Operator
from loramerge.algebra.per_module import PerModule, shown_number
from loramerge.algebra.rules import rules_of
from loramerge.algebra.scale import checked_scale
from loramerge.algebra.unmatched import unmatched
from loramerge.errors import Setting, UsageError, listed
from loramerge.families import Family
from loramerge.parameters import checked

__all__ = ["Method"]

Chosen = Mapping[str, Callable[[Site], Any]]


@dataclass(frozen=True)
class Method:
    """An operator with values of its parameters.

    Args:
        parameters: values for modules that no rule names.
        scale: the final scale, see `algebra.scale`.
        correction: operator whose `correct` follows, before the final scale.
        rules: parameter → its values per module.
        pooled: what the operator knows of all modules together, see `Operator.pool`.
        chosen: parameter → function of a site that gives its value, None where no rule names it; made
            of the rules by `on` and `among`.
    """

    operator: Operator
    parameters: Any
    scale: str | float = "literal"
    correction: Operator | None = None
    rules: Mapping[str, PerModule[Any]] = field(default_factory=dict)
    chosen: Chosen = field(default_factory=dict)
    pooled: Any = None

    @property
    def is_sum(self) -> bool:
        """True if the result is the plain weighted sum."""
        return self.operator.is_sum and self.scale == "literal" and self.correction is None

    def require_count(self, adapters: int) -> None:
        """Refuse a number of adapters that the operator is not defined for.

        Raises:
            UsageError: naming how many it takes.
        """
        least, most = self.operator.inputs
        if adapters < least or (most is not None and adapters > most):
            takes = f"{least}" if least == most else f"at least {least}"
            raise UsageError(
                f"the method {self.operator.name} is not defined for this number of adapters",
                expected=takes if most in (None, least) else f"{least} to {most}",
                found=adapters,
            )

    # ---- values per module

    def on(self, adapter: Adapter) -> Method:
        """Return the method for the modules of an adapter, which has those of all inputs.

        Raises:
            UsageError: if a rule names blocks that its family lacks.
        """
        return self._choosing({name: rule.on(adapter) for name, rule in self.rules.items()})

    def among(self, modules: Iterable[str], family: Family | None, label: str) -> Method:
        """Return the method for the modules of a checkpoint; see `PerModule.among`."""
        known = tuple(modules)
        return self._choosing(
            {name: rule.among(known, family, label) for name, rule in self.rules.items()}
        )

    def _choosing(self, chosen: Chosen) -> Method:
        return replace(self, chosen=chosen) if self.rules else self

    def at(self, site: Site) -> Method:
        """Return the method at one site: with one value of each parameter.

        Raises:
            UsageError: if the site joins modules for which the rules have several values.
        """
        if not self.chosen:
            return self
        values = {}
        for name, choose in self.chosen.items():
            found = {choose(Site((module,), site.parameter)) for module in site.modules}
            if len(found) > 1:
                raise UsageError(
                    f"these modules are stored as one, but their values of {name} differ",
                    module=site.name,
                    hint=("give them one value, or write a dialect that stores them apart: ",
                          Setting("to", "diffusers")),
                )  # fmt: skip
            (value,) = found
            if value is not None:
                values[name] = value
        parameters = replace(self.parameters, **values)
        return replace(self, parameters=parameters, rules={}, chosen={})

    def described(self, sites: Iterable[Site]) -> Iterator[str]:
        """Yield in how many modules each parameter with rules has which value.

        Args:
            sites: of the modules whose rules were chosen by `on` or `among`.
        """
        known = tuple(sites)
        at = [self.at(site).parameters for site in known] if self.rules else []
        for name, rule in self.rules.items():
            counts: dict[Any, int] = {}
            for parameters in at:
                value = getattr(parameters, name)
                counts[value] = counts.get(value, 0) + 1
            parts = [f"{_shown(value)} in {count}" for value, count in counts.items()]
            modules = "module" if len(known) == 1 else "modules"
            yield f"{name}: {listed(parts, 12)} of {len(known)} {modules}"
            for idle in unmatched(rule, known):
                yield f"{name}: {idle} matches no module"

    @classmethod
    def of(
        cls,
        operator: Operator,
        values: Mapping[str, Any] | None = None,
        scale: str | float | None = None,
        correction: Operator | None = None,
    ) -> Method:
        """Return an operator with values by name; the others have their defaults.

        Args:
            values: a value for all modules, or a mapping of rules; see `algebra.rules`.
            scale: the final scale; None is the operator's own.
            correction: operator that corrects the result; it must have `correct`.

        Raises:
            UsageError: if a value is missing, not known, or not allowed.
        """
        final = operator.scale if scale is None else checked_scale(scale)
        own = {one.name: one for one in operator.own_parameters}
        given: dict[str, Any] = {}
        rules: dict[str, PerModule[Any]] = {}
        for name, value in (values or {}).items():
            if name not in own:
                raise UsageError(
                    f"the method {operator.name} has no parameter {name!r}",
                    expected=listed(list(own)) or "no parameters",
                )
            one = own[name]
            if one.many:
                given[name] = tuple(checked(one, part) for part in value)
            elif isinstance(value, Mapping):
                rules[name] = rules_of(value, one)
                if rules[name].default is not None:
                    given[name] = rules[name].default
            else:
                given[name] = checked(one, value)
        missing = [name for name, one in own.items() if one.required and name not in given]
        if missing:
            raise UsageError(
                f"the method {operator.name} needs a value for {missing[0]!r}",
                hint="add a default for the other modules" if missing[0] in rules else None,
            )
        return cls(operator, operator.parameters(**given), final, correction, rules)


def _shown(value: Any) -> str:
    return shown_number(value) if isinstance(value, (int, float)) else str(value)
