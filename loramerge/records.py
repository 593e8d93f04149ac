"""Frozen dataclasses that cost next to nothing to make.

`dataclass(frozen=True)` writes six functions for each class and compiles them. For the classes that
`inspect` needs, this takes as long as everything else that it imports. Records share six functions.
Their fields are those of dataclasses, so that `fields`, `replace` and `asdict` take them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields
from typing import Any, NamedTuple, NoReturn, TypeVar, cast, dataclass_transform, overload

__all__ = ["record"]

T = TypeVar("T")


@overload
def record(cls: type[T], /) -> type[T]: ...


@overload
def record(*, eq: bool = True, kw_only: bool = False) -> Callable[[type[T]], type[T]]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(
    cls: type[T] | None = None, /, *, eq: bool = True, kw_only: bool = False
) -> type[T] | Callable[[type[T]], type[T]]:
    """Make a class a frozen dataclass; use it where `dataclass(frozen=True)` would stand.

    Args:
        eq: whether instances are equal where their fields are; otherwise each equals itself alone.
        kw_only: whether all fields are given by name.
    """

    def make(cls: type[T]) -> type[T]:
        made: Any = dataclass(init=False, repr=False, eq=False, kw_only=kw_only)(cls)
        made._record = _fields_of(made)
        for name, function in (_SHARED | (_COMPARED if eq else {})).items():
            if name not in cls.__dict__:
                setattr(made, name, function)
        return cast("type[T]", made)

    return make if cls is None else make(cls)


class _Fields(NamedTuple):
    """The fields of a record by name, and what stands for those that are not given."""

    fields: Mapping[str, Field[Any]]
    defaults: Mapping[str, Any]
    factories: Mapping[str, Callable[[], Any]]


def _fields_of(made: Any) -> _Fields:
    found = fields(made)
    return _Fields(
        {one.name: one for one in found},
        {one.name: one.default for one in found if one.default is not MISSING},
        {one.name: one.default_factory for one in found if one.default_factory is not MISSING},
    )


def _init(self: Any, *args: Any, **given: Any) -> None:
    known: _Fields = self._record
    values = self.__dict__
    values.update(known.defaults)
    for name, make in known.factories.items():
        values[name] = make()
    values.update(given)
    if args:
        names = self.__match_args__  # those that may be given by position
        if len(args) > len(names):
            raise TypeError(f"{_name(self)} takes {len(names)} values, not {len(args)}")
        named = dict(zip(names, args, strict=False))
        if twice := given.keys() & named.keys():
            raise TypeError(f"{_name(self)} got two values for {', '.join(sorted(twice))}")
        values.update(named)
    if values.keys() != known.fields.keys():
        wrong = values.keys() ^ known.fields.keys()
        what = "lacks a value for" if wrong <= known.fields.keys() else "has no field"
        raise TypeError(f"{_name(self)} {what} {', '.join(sorted(wrong))}")
    if hasattr(self, "__post_init__"):
        self.__post_init__()


def _name(self: Any) -> str:
    return str(type(self).__qualname__)


def _repr(self: Any) -> str:
    shown = (
        f"{name}={getattr(self, name)!r}" for name, one in self._record.fields.items() if one.repr
    )
    return f"{_name(self)}({', '.join(shown)})"


def _values(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, name) for name, one in self._record.fields.items() if one.compare)


def _eq(self: Any, other: object) -> bool:
    return _values(self) == _values(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_values(self))


def _refuse_setting(self: Any, name: str, value: object) -> NoReturn:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_deleting(self: Any, name: str) -> NoReturn:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


_SHARED: dict[str, Callable[..., Any]] = {
    "__init__": _init,
    "__repr__": _repr,
    "__setattr__": _refuse_setting,
    "__delattr__": _refuse_deleting,
}
_COMPARED: dict[str, Callable[..., Any]] = {"__eq__": _eq, "__hash__": _hash}
