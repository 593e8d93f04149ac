"""Recipes of sd-mecha: the models that they name, and the weighted sum that they are, if they are one.

Each line is an instruction, `model "PATH" …`, `literal VALUE …`, `dict …` or `merge "METHOD" …`, whose
arguments are numbers, texts, constants, or `&n`, the result of the n-th instruction. The last one is the
result.

Source: `serialization.py` of ljleb/sd-mecha at 1e7a2bc.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loramerge.errors import CorruptFile

__all__ = ["models_of", "sum_of"]

_ARGUMENT = re.compile(r'(?:(\w+)=)?(?:"((?:[^"\\]|\\.)*)"|(\S+))')
_Sum = dict[str, float]  # model → coefficient
_MOST = 10_000  # instructions


class _Instruction:
    """One instruction: its command, arguments in order, and arguments by name."""

    def __init__(self, line: str) -> None:
        found = _ARGUMENT.findall(line)
        if not found:
            raise CorruptFile("an instruction of mecha_recipe cannot be read", found=line[:80])
        self.command = found[0][2]
        self.arguments: list[str | float] = []
        self.named: dict[str, str | float] = {}
        for name, text, bare in found[1:]:
            value = _value(text, bare)
            if name:
                self.named[name] = value
            else:
                self.arguments.append(value)


def _value(text: str, bare: str) -> str | float:
    """Return an argument: a number, `&n` or another word, or a text."""
    if not bare:
        return re.sub(r"\\(.)", r"\1", text)
    try:
        return float(bare)
    except ValueError:
        return bare


def _instructions(text: str) -> list[_Instruction]:
    lines = [line.strip() for line in text.splitlines()]
    if not lines or not lines[0].startswith("version") or len(lines) > _MOST:
        raise CorruptFile(
            "mecha_recipe in the header cannot be read", expected="version 0.1.0 first"
        )
    return [_Instruction(line) for line in lines[1:] if line and not line.startswith("#")]


def models_of(text: str) -> list[str]:
    """Return the paths of the models that a recipe reads, in order.

    Raises:
        CorruptFile: if it cannot be read.
    """
    paths = [
        str(o.arguments[0]) for o in _instructions(text) if o.command == "model" and o.arguments
    ]
    return list(dict.fromkeys(paths))


def sum_of(text: str) -> tuple[_Sum, str | None]:
    """Return the models of a recipe with their coefficients, or why it is not one, in words.

    Raises:
        CorruptFile: if it cannot be read.
    """
    results: list[Any] = []
    for one in _instructions(text):
        results.append(_result(one, results))
    last = results[-1] if results else "no instructions"
    if isinstance(last, dict):
        return last, None
    return {}, last if isinstance(last, str) else "the result is not a model"


def _result(one: _Instruction, results: Sequence[Any]) -> Any:
    """Return what an instruction gives: a sum, a number, or words for what has no counterpart."""

    def argument(position: int, name: str) -> Any:
        given = one.arguments[position] if position < len(one.arguments) else one.named.get(name)
        if isinstance(given, str) and re.fullmatch(r"&\d+", given):
            index = int(given[1:])
            if index >= len(results):
                raise CorruptFile("mecha_recipe refers to a line that does not come before")
            return results[index]
        return given

    if one.command == "model" and one.arguments:
        return {str(one.arguments[0]): 1.0}
    if one.command == "literal":
        return argument(0, "value")
    if one.command != "merge" or not one.arguments:
        return f"{one.command}: values for parts of a model"
    method = str(one.arguments[0])
    if method not in _METHODS:
        return f"the method {method}"
    combine, usual = _METHODS[method]
    left, right, share = argument(1, "a"), argument(2, "b"), argument(3, "alpha")
    for operand in (left, right):
        if not isinstance(operand, dict):
            return (
                operand if isinstance(operand, str) else f"{method} of something else than models"
            )
    share = usual if share is None else share
    if not isinstance(share, float):
        return share if isinstance(share, str) else f"{method} with weights for parts of a model"
    return combine(left, right, share)


def _added(one: Mapping[str, float], other: Mapping[str, float], a: float, b: float) -> _Sum:
    names = dict.fromkeys((*one, *other))
    return {name: a * one.get(name, 0.0) + b * other.get(name, 0.0) for name in names}


# method → the sum that it is, and its `alpha` where none is given
_METHODS: Mapping[str, tuple[Callable[[_Sum, _Sum, float], _Sum], float]] = {
    "weighted_sum": (lambda a, b, share: _added(a, b, 1 - share, share), 0.5),
    "add_difference": (lambda a, b, share: _added(a, b, 1.0, share), 1.0),
    "subtract": (lambda a, b, _: _added(a, b, 1.0, -1.0), 1.0),
}
