"""The table of PEFT's configuration fields has every field of the PEFT that is installed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from loramerge.adapter.formats.peft import _NO_WEIGHTS
from loramerge.adapter.formats.peft_fields import FIELDS, configuration_problems

pytestmark = pytest.mark.peers
peft: Any = pytest.importorskip("peft")
mapping: Any = pytest.importorskip("peft.mapping")

CONFIGS = {kind.value: made for kind, made in mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}


@pytest.mark.parametrize("kind", FIELDS)
def test_every_field_has_its_meaning(kind: str) -> None:
    known = {field.name for field in dataclasses.fields(CONFIGS[kind])}
    assert known <= FIELDS[kind].keys()


def test_defaults_mean_what_is_computed() -> None:
    for kind in FIELDS:
        written = CONFIGS[kind]().to_dict() | {"peft_type": kind}
        assert not list(configuration_problems(written)), kind


def test_types_without_weights_are_types_of_peft() -> None:
    assert CONFIGS.keys() >= _NO_WEIGHTS and not _NO_WEIGHTS & FIELDS.keys()
