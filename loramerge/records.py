"""Frozen dataclasses and named tuples that cost next to nothing to make.

`dataclass(frozen=True)` writes six functions for each class and compiles them, and
`typing.NamedTuple` compiles every annotation. For the classes that `inspect` needs, this takes longer
than everything else that it imports. Records share six functions, and what `dataclasses` itself must
know of their fields is made when it asks: `fields`, `replace` and `asdict` take them as any dataclass.
"""

from __future__ import annotations

import threading
from collections import namedtuple
from collections.abc import Callable
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    NoReturn,
    TypeVar,
    cast,
    dataclass_transform,
    overload,
)

__all__ = ["NamedTuple", "record", "replaced", "row_maker"]

T = TypeVar("T")


@overload
def record(cls: type[T], /) -> type[T]: ...


@overload
def record(
    *, eq: bool = True, kw_only: bool = False, frozen: bool = True, repr: bool = True
) -> Callable[[type[T]], type[T]]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(
    cls: type[T] | None = None,
    /,
    *,
    eq: bool = True,
    kw_only: bool = False,
    frozen: bool = True,
    repr: bool = True,
) -> type[T] | Callable[[type[T]], type[T]]:
    """Make a class a frozen dataclass; use it where `dataclass(frozen=True)` would stand.

    Args:
        eq: whether instances are equal where their fields are; otherwise each equals itself alone.
        kw_only: whether all fields are given by name.
        frozen: whether fields keep their values. Others cannot be compared by them (`eq=False`).
        repr: whether `repr` shows the fields; otherwise that of a base stands.
    """

    def make(cls: type[T]) -> type[T]:
        made: Any = cls
        made._record = _fields_of(cls, kw_only=kw_only)
        made.__match_args__ = made._record.positional  # type: ignore[misc]
        for name in ("__dataclass_fields__", "__dataclass_params__"):
            setattr(made, name, _Late(made, name))
        chosen = ((frozen, _FROZEN), (repr, _SHOWN), (eq, _COMPARED))
        shared = _SHARED | {n: f for wanted, some in chosen if wanted for n, f in some.items()}
        for name, function in shared.items():
            if name not in cls.__dict__:
                setattr(made, name, function)
        return cls

    return make if cls is None else make(cls)


class _Fields:
    """The fields of a class, as making, showing and comparing its records need them.

    Args:
        kw_only: see `record`.
        defaults: name → value of those that need not be given; `factories`: → what makes it.
        given: name → field, of those of the class itself that are more than a default.
        positional: those that may be given by position, in order.
    """

    def __init__(self, *, kw_only: bool) -> None:
        self.kw_only = kw_only
        self.all: dict[str, Field[Any] | None] = {}
        self.defaults: dict[str, Any] = {}
        self.factories: dict[str, Callable[[], Any]] = {}
        self.given: dict[str, Field[Any]] = {}
        self.positional: tuple[str, ...] = ()

    def add(self, name: str, default: Any) -> None:
        """Add a field, whose default may be a `Field`; one of the same name is replaced in place."""
        found = default if isinstance(default, Field) else None
        self.all[name] = found
        self.defaults.pop(name, None)
        self.factories.pop(name, None)
        if found is not None:
            default = found.default
            if found.default_factory is not MISSING:
                self.factories[name] = found.default_factory
        if default is not MISSING:
            self.defaults[name] = default

    def shown(self) -> list[str]:
        """Return the fields that `repr` shows."""
        return [name for name, one in self.all.items() if one is None or one.repr]

    def compared(self) -> list[str]:
        """Return the fields that make two records equal."""
        return [name for name, one in self.all.items() if one is None or one.compare]


def _fields_of(cls: Any, *, kw_only: bool) -> _Fields:
    """Return the fields of a class and its bases; those that are `Field`s become plain defaults."""
    found = _Fields(kw_only=kw_only)
    by_name: dict[str, bool] = {}  # whether it is given by name alone
    for base in reversed(cls.__mro__[1:]):
        if "__dataclass_fields__" in base.__dict__:
            for one in fields(base):
                found.add(one.name, one)
                by_name[one.name] = bool(one.kw_only)
    for name, annotation in cls.__annotations__.items():
        if _is_of_class(annotation):
            continue
        default = cls.__dict__.get(name, MISSING)
        found.add(name, default)
        by_name[name] = kw_only
        if isinstance(default, Field):
            by_name[name] = kw_only or default.kw_only is True
            found.given[name] = default
            if default.default is MISSING:
                delattr(cls, name)
            else:
                setattr(cls, name, default.default)
    found.positional = tuple(name for name in found.all if not by_name[name])
    return found


def _is_of_class(annotation: Any) -> bool:
    """Return whether an annotation, which may be a text, is that of a variable of the class."""
    if isinstance(annotation, str):
        return annotation.startswith(("ClassVar", "typing.ClassVar"))
    return getattr(annotation, "__origin__", annotation) is ClassVar


class _Late:
    """An attribute by which `dataclasses` knows its classes: made when it is first asked for."""

    def __init__(self, cls: Any, name: str) -> None:
        self._cls, self._name = cls, name

    def __get__(self, instance: object, owner: type) -> Any:
        cls = self._cls
        with _LOCK:
            if isinstance(cls.__dict__["__dataclass_fields__"], _Late):
                for name, one in cls._record.given.items():
                    setattr(cls, name, one)
                dataclass(init=False, repr=False, eq=False, kw_only=cls._record.kw_only)(cls)
        return cls.__dict__[self._name]


_LOCK = threading.RLock()  # a class may have to be made while one that is derived from it is


def _init(self: Any, *args: Any, **given: Any) -> None:
    known: _Fields = self._record
    values = self.__dict__
    names = known.positional
    if not given and len(args) == len(known.all) == len(names):
        values.update(zip(names, args))  # noqa: B905 - they are as many
    else:
        values.update(known.defaults)
        for name, make in known.factories.items():
            if name not in given:
                values[name] = make()
        values.update(given)
        if args:
            if len(args) > len(names):
                raise TypeError(f"{_name(self)} takes {len(names)} values, not {len(args)}")
            named = dict(zip(names, args, strict=False))
            if twice := given.keys() & named.keys():
                raise TypeError(f"{_name(self)} got two values for {', '.join(sorted(twice))}")
            values.update(named)
        if values.keys() != known.all.keys():
            wrong = values.keys() ^ known.all.keys()
            what = "lacks a value for" if wrong <= known.all.keys() else "has no field"
            raise TypeError(f"{_name(self)} {what} {', '.join(sorted(wrong))}")
    if hasattr(self, "__post_init__"):
        self.__post_init__()


def _name(self: Any) -> str:
    return str(type(self).__qualname__)


def _repr(self: Any) -> str:
    shown = (f"{name}={getattr(self, name)!r}" for name in self._record.shown())
    return f"{_name(self)}({', '.join(shown)})"


def _values(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, name) for name in self._record.compared())


def _eq(self: Any, other: object) -> bool:
    return _values(self) == _values(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_values(self))


def _refuse_setting(self: Any, name: str, value: object) -> NoReturn:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_deleting(self: Any, name: str) -> NoReturn:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def replaced(one: T, **changes: Any) -> T:
    """Return a record with other values of some fields, as `dataclasses.replace` does."""
    known: _Fields = one._record  # type: ignore[attr-defined]
    same = {name: getattr(one, name) for name in known.all if name not in changes}
    return type(one)(**same, **changes)


_SHARED: dict[str, Callable[..., Any]] = {"__init__": _init}
_SHOWN: dict[str, Callable[..., Any]] = {"__repr__": _repr}
_FROZEN: dict[str, Callable[..., Any]] = {
    "__setattr__": _refuse_setting,
    "__delattr__": _refuse_deleting,
}
_COMPARED: dict[str, Callable[..., Any]] = {"__eq__": _eq, "__hash__": _hash}


# --- named tuples


def row_maker(cls: type[T]) -> Callable[[tuple[Any, ...]], T]:
    """Return a function that makes a named tuple of a tuple of all its fields.

    It takes half the time of a call of the class, which tells where thousands are made.
    """
    return cast("Callable[[tuple[Any, ...]], T]", partial(tuple.__new__, cls))


if TYPE_CHECKING:
    from typing import NamedTuple
else:

    class _OfNamedTuples(type):
        """Makes the class of a named tuple of a body with annotations."""

        def __new__(
            meta: type, name: str, bases: tuple[type, ...], body: dict[str, Any]
        ) -> type[Any]:
            if not bases:
                return type.__new__(meta, name, bases, body)
            names = body.get("__annotations__", {})
            defaults = [body[one] for one in names if one in body]
            made = namedtuple(name, names, defaults=defaults, module=body["__module__"])
            for key, value in body.items():
                if key not in names:
                    setattr(made, key, value)
            return made

    class NamedTuple(metaclass=_OfNamedTuples):
        """Base of named tuples, written as those of `typing` are; annotations stay texts."""
