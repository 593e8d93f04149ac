"""Records behave as frozen dataclasses do."""

import copy
import pickle
from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import ClassVar

import pytest

from loramerge.records import record


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
