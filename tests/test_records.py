"""Records behave as frozen dataclasses do, and named tuples as those of `typing`."""

import ast
import copy
import pickle
import typing
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import pytest

import loramerge
from loramerge.records import NamedTuple, record, replaced, row_maker


def _body():
    class Layer:
        """A layer of a made-up network."""

        sort: ClassVar[str] = "linear"

        name: str
        size: int = 2
        parts: list[str] = field(default_factory=list)
        hidden: str = field(default="h", repr=False, compare=False)

        @cached_property
        def doubled(self):
            return 2 * self.size

    return Layer


Record = record(_body())
Twin = dataclass(frozen=True)(_body())


@record(eq=False)
class Lone:
    """Compared by identity."""

    size: int = 1


@record(kw_only=True)
class Named:
    """Given by name alone."""

    size: int

    def __post_init__(self):
        if self.size < 0:
            raise ValueError("negative")


CALLS = {
    "by position": (("a", 3, ["p"], "x"), {}),
    "by name": ((), {"size": 3, "name": "a"}),
    "defaults": (("a",), {}),
    "mixed": (("a",), {"parts": ["q"]}),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_record_holds_what_a_frozen_dataclass_holds(call):
    args, given = CALLS[call]
    made, twin = Record(*args, **given), Twin(*args, **given)
    assert asdict(made) == asdict(twin)
    assert repr(made) == repr(twin)
    assert [one.name for one in fields(made)] == [one.name for one in fields(twin)]
    assert asdict(replace(made, size=9)) == asdict(replace(twin, size=9))
    assert made.doubled == twin.doubled
    assert copy.copy(made) == made


WRONG = {
    "too many": (("a", 1, [], "x", 5), {}),
    "twice": (("a",), {"name": "b"}),
    "none": ((), {}),
    "foreign": (("a",), {"colour": "red"}),
}


@pytest.mark.parametrize("call", WRONG)
def test_wrong_calls_are_refused_as_a_dataclass_refuses_them(call):
    args, given = WRONG[call]
    for cls in (Record, Twin):
        with pytest.raises(TypeError):
            cls(*args, **given)


def test_fields_cannot_be_set_or_deleted():
    made = Record("a")
    with pytest.raises(FrozenInstanceError):
        made.size = 3
    with pytest.raises(FrozenInstanceError):
        made.colour = "red"
    with pytest.raises(FrozenInstanceError):
        del made.size
    assert made.size == 2


def test_equal_fields_make_equal_records_unless_they_are_compared_by_identity():
    assert Record("a", parts=[]) == Record("a", hidden="other")
    assert Record("a") != Record("b")
    assert Record("a") != Twin("a")
    assert hash(Named(size=1)) == hash(Named(size=1))
    assert Lone() != Lone()
    with pytest.raises(TypeError):
        hash(Record("a"))  # a list


def test_defaults_are_made_anew():
    one, other = Record("a"), Record("a")
    one.parts.append("p")
    assert other.parts == []


def test_records_given_by_name_alone():
    assert Named(size=1).size == 1
    with pytest.raises(TypeError):
        Named(1)
    with pytest.raises(ValueError, match="negative"):
        Named(size=-1)


def test_records_survive_pickling():
    assert pickle.loads(pickle.dumps(Named(size=4))) == Named(size=4)


def test_a_record_keeps_the_functions_of_its_own():
    @record(eq=False)
    class Shown:
        size: int = 1

        def __repr__(self):
            return "shown"

    assert repr(Shown()) == "shown"


@record(eq=False, frozen=False)
class Loose:
    """One whose fields may be set."""

    size: int
    parts: list[str] = field(default_factory=list)
    note: str = field(default="n", kw_only=True)


def test_a_record_may_be_mutable():
    made = Loose(1)
    made.size = 2
    assert asdict(made) == {"size": 2, "parts": [], "note": "n"}
    with pytest.raises(TypeError):
        Loose(1, [], "by position")


def test_the_repr_of_a_base_may_stand():
    class Base:
        def __repr__(self):
            return "base"

    @record(repr=False)
    class Quiet(Base):
        size: int = 1

    assert repr(Quiet()) == "base"


@record
class Derived(Named):
    """One with fields of its own after those of its base."""

    name: str = "d"
    size: int = 7


def test_a_record_has_the_fields_of_its_bases():
    @dataclass(frozen=True, kw_only=True)
    class Base:
        size: int

    @dataclass(frozen=True)
    class Twin(Base):
        name: str = "d"
        size: int = 7

    assert asdict(Derived(3, "x")) == asdict(Twin(3, "x")) == {"size": 3, "name": "x"}
    assert [one.name for one in fields(Derived)] == [one.name for one in fields(Twin)]
    assert is_dataclass(Derived)


def test_replaced_is_what_dataclasses_replace():
    made = Record("a", parts=["p"])
    assert replaced(made, size=9) == replace(made, size=9)
    with pytest.raises(TypeError):
        replaced(made, colour="red")
    with pytest.raises(ValueError, match="negative"):
        replaced(Named(size=1), size=-1)


def test_fields_are_made_once_whoever_asks_at_the_same_time():
    cls = record(_body())
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: fields(cls), range(64)))
    assert all(one == found[0] for one in found)
    assert [one.repr for one in found[0]] == [True, True, True, False]
    assert cls.hidden == "h"
    assert not hasattr(cls, "parts")


def _records_of_the_package():
    """Yield every record, by its decorator in the source."""
    root = Path(loramerge.__file__).parent
    for file in sorted(root.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if "@record" not in text or file.name == "records.py":
            continue
        module = ".".join(("loramerge", *file.relative_to(root).with_suffix("").parts))
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and any(
                "record" in ast.unparse(one).partition("(")[0] for one in node.decorator_list
            ):
                yield module.removesuffix(".__init__"), node.name


def test_the_fields_of_every_record_are_those_of_dataclasses():
    found = list(_records_of_the_package())
    assert len(found) > 70
    for module, name in found:
        try:
            cls = getattr(import_module(module), name)
        except ModuleNotFoundError as error:  # of an extra that is not installed
            assert not (error.name or "").startswith("loramerge")
            continue
        ours = cls._record
        theirs = {one.name: one for one in fields(cls)}
        assert list(ours.all) == list(theirs), cls
        assert ours.positional == tuple(n for n, one in theirs.items() if not one.kw_only), cls
        factories = {n: one.default_factory for n, one in theirs.items()}
        for given, known in (
            (ours.defaults, {n: one.default for n, one in theirs.items()}),
            (ours.factories, factories),
        ):
            missing = {n for n, value in known.items() if type(value).__name__ == "_MISSING_TYPE"}
            assert given == {n: known[n] for n in known if n not in missing}, cls


class _Place(NamedTuple):
    """A place."""

    row: int
    names: tuple[str, ...] = ()

    @property
    def next(self) -> int:
        return self.row + 1

    @classmethod
    def first(cls) -> "_Place":
        return cls(0)


class _TwinPlace(typing.NamedTuple):
    """A place."""

    row: int
    names: tuple[str, ...] = ()

    @property
    def next(self) -> int:
        return self.row + 1


def test_a_named_tuple_is_one_of_typing():
    made, twin = _Place(3), _TwinPlace(3)
    assert made == twin == (3, ())
    assert repr(made) == repr(twin).replace("_TwinPlace", "_Place")
    assert made.next == twin.next == 4
    assert (_Place.first(), made._replace(row=0)) == (_Place(0), _Place(0))
    assert pickle.loads(pickle.dumps(made)) == made
    assert isinstance(pickle.loads(pickle.dumps(made)), _Place)
    for name in ("_fields", "_field_defaults", "__match_args__", "__doc__", "__slots__"):
        assert getattr(_Place, name) == getattr(_TwinPlace, name), name
    assert _Place.__module__ == __name__
    assert typing.get_type_hints(_Place) == typing.get_type_hints(_TwinPlace)
    with pytest.raises(TypeError):
        _Place()
    with pytest.raises(AttributeError):
        made.row = 4


def test_rows_made_of_all_fields_are_the_same():
    assert row_maker(_Place)((3, ("a",))) == _Place(3, ("a",))
    assert type(row_maker(_Place)((3, ()))) is _Place
