"""Signatures are those of the verbs, for type checkers and for `help` alike."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path

import pytest

import loramerge as lm
from loramerge import api, signatures
from tests.signatures.signatures import FUNCTIONS, text

UPDATE = bool(os.environ.get("LORAMERGE_UPDATE_DOCS"))


def test_the_file_is_current():
    path = Path(signatures.__file__)
    if UPDATE:
        path.write_text(text(), "utf-8", newline="\n")
    assert path.read_text("utf-8") == text(), (
        "LORAMERGE_UPDATE_DOCS=1 python -m pytest tests/signatures writes it anew"
    )


def test_train_is_the_function_also_where_the_package_of_that_name_is_loaded():
    pytest.importorskip("torch")
    import loramerge.train

    for function in (api.train, loramerge.train):
        assert inspect.signature(function).parameters["steps"].default == 1000
        assert "\n    steps: " in (function.__doc__ or "")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_help_lists_every_parameter(name):
    function = getattr(lm, name)
    shown = inspect.signature(function).parameters
    typed = getattr(signatures, f"{name.capitalize()}Parameters").__annotations__
    assert typed.keys() <= shown.keys()
    assert not any(one.kind is one.VAR_KEYWORD for one in shown.values())
    assert all(f"\n    {word}: " in function.__doc__ for word in typed)


@pytest.mark.parametrize("name", lm.library.__all__)
def test_functions_of_the_library_are_typed_and_described(name):
    function = getattr(lm.library, name)
    shown = inspect.signature(function)
    assert shown.return_annotation is not shown.empty
    own = {one.name: one for one in shown.parameters.values()}
    assert all(one.annotation is not one.empty for one in own.values())
    text = function.__doc__ or ""
    for word in own.keys() - {
        "name",
        "text",
        "threads",
        "notify",
    }:  # which mean the same everywhere
        assert re.search(rf"^ +(\w+, )*{word}(, \w+)*: ", text, re.MULTILINE), word


def test_defaults_are_shown():
    shown = inspect.signature(lm.mix).parameters
    assert shown["rank"].default is None and shown["method"].default == "linear"
    assert inspect.signature(lm.train).parameters["steps"].default == 1000
