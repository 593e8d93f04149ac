"""The registry of merge operators: those of this package, of plugins, and the user's own.

Operators come from four places: the files of this package, the entry points `loramerge.operators` of
installed packages, `register` and the decorator `operator` in Python, and files named on the command
line. Nothing here imports numpy, so help can list the operators with their parameters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType
from typing import Any

from loramerge.algebra.operator import NoParameters, Operator, Space
from loramerge.algebra.statistics import ColumnProducts, Magnitude, Norm, Pool, Statistic, Variance
from loramerge.discovery import Registry
from loramerge.errors import LoramergeError, MissingFile, Setting, UsageError, listed, suggestion

__all__ = [
    "OPERATORS",
    "ColumnProducts",
    "Magnitude",
    "NoParameters",
    "Norm",
    "Operator",
    "Pool",
    "Variance",
    "find_operator",
    "load_file",
    "operator",
    "register",
]

OPERATORS: Registry[Operator] = Registry(
    "loramerge.operators", "OPERATOR", {__name__: str(Path(__file__).parent)}
)


def find_operator(name: str) -> Operator:
    """Return the operator of a name.

    Raises:
        UsageError: if there is none, naming the nearest.
    """
    try:
        return OPERATORS[name]
    except KeyError:
        names = list(OPERATORS)
    raise UsageError(
        f"{name!r} is not a known method",
        expected=listed(names, 40),
        hint=suggestion(name, names)
        or ("choose one of these, or one of your own: ", Setting("operator", "FILE.py")),
    )


def register(one: Operator) -> Operator:
    """Register an operator in this process; it replaces an earlier one of the same name.

    Raises:
        UsageError: if an operator of loramerge has this name.
    """
    if any(one.name == shipped.name for shipped in OPERATORS.shipped()):
        raise UsageError(f"loramerge has an operator {one.name!r}", hint="choose another name")
    return OPERATORS.add(one)


class _Fresh(SourceFileLoader):
    """Reads a user's file anew each time, and leaves no bytecode beside it."""

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


def load_file(path: str | Path) -> tuple[Operator, ...]:
    """Run a Python file and register the operators that it defines.

    Raises:
        MissingFile: if there is no such file.
        UsageError: if it fails, or defines no operator.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingFile("there is no such file of operators", file=file)
    name = f"loramerge_operator_{file.stem}"
    spec = spec_from_file_location(name, file, loader=_Fresh(name, str(file)))
    if spec is None or spec.loader is None:
        raise UsageError("a file of operators must be a Python file", file=file, expected="NAME.py")
    module = module_from_spec(spec)
    sys.modules[name] = module  # annotations of its dataclasses are looked up there
    try:
        spec.loader.exec_module(module)
    except LoramergeError as error:
        error.file = error.file or str(file)
        raise
    except Exception as error:
        raise UsageError(
            "the file of operators cannot be run",
            file=file,
            found=f"{type(error).__name__}: {error}",
        ) from error
    found = tuple(one for one in vars(module).values() if isinstance(one, Operator))
    if not found:
        raise UsageError(
            "the file defines no operator",
            file=file,
            expected="a function decorated with @lm.operator, or an lm.Operator",
        )
    return tuple(register(one) for one in found)


def operator(
    *,
    space: Space,
    name: str | None = None,
    parameters: type[Any] = NoParameters,
    rank_bound: Callable[..., int] | None = None,
    statistics: Callable[[Any], Mapping[str, Statistic]] | None = None,
    pool: Pool | None = None,
    alone: bool = False,
    formula: str = "",
    source: str = "",
    laws: tuple[str, ...] = (),
    scale: str = "literal",
    correct: Callable[..., Any] | None = None,
    of_weights: bool = False,
    inputs: tuple[int, int | None] = (1, None),
    order: int = 100,
) -> Callable[[Callable[[Any, Any], Any]], Operator]:
    """Turn a function into a registered operator; see `algebra.operator.Operator`.

    The first paragraph of its docstring is the title, the rest says when to use it. A file of this
    package is registered by being there.

    Args:
        name: by default the function's, with hyphens.

    Raises:
        UsageError: if the definition is not valid.
    """

    def decorate(merge: Callable[[Any, Any], Any]) -> Operator:
        title, _, when = (merge.__doc__ or "").strip().partition("\n\n")
        one = Operator(
            name=name or merge.__name__.strip("_").replace("_", "-"),
            space=space,
            merge=merge,
            title=" ".join(title.split()) or "A user's operator.",
            parameters=parameters,
            rank_bound=rank_bound,
            statistics=statistics,
            pool=pool,
            alone=alone,
            formula=formula,
            when=" ".join(when.split()),
            source=source,
            laws=laws,
            scale=scale,
            correct=correct,
            of_weights=of_weights,
            inputs=inputs,
            order=order,
        )
        return one if merge.__module__.startswith(f"{__name__}.") else register(one)

    return decorate
