"""The table of PEFT's configuration fields has every field of the PEFT that is installed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from loramerge.adapter.formats.peft_fields import FIELDS, configuration_problems
from loramerge.adapter.formats.peft_types import REFUSED
from tests.adapter.test_peft_fields import REFUSED as NAMED

pytestmark = pytest.mark.peers
peft: Any = pytest.importorskip("peft")
mapping: Any = pytest.importorskip("peft.mapping")

CONFIGS = {kind.value: made for kind, made in mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}


EARLIER = {"BONE"}  # types that PEFT has renamed


@pytest.mark.parametrize("kind", sorted(FIELDS.keys() - EARLIER))
def test_every_field_has_its_meaning(kind: str) -> None:
    known = {field.name for field in dataclasses.fields(CONFIGS[kind])}
    assert known <= FIELDS[kind].keys()


def test_defaults_mean_what_is_computed() -> None:
    for kind in FIELDS.keys() - EARLIER:
        needed = {"total_step": 1} if kind == "ADALORA" else {}
        written = CONFIGS[kind](**needed).to_dict() | {"peft_type": kind}
        assert not list(configuration_problems(written)), kind


def test_every_type_of_peft_is_read_or_refused() -> None:
    kinds = {kind.value for kind in peft.PeftType}
    missing = kinds - FIELDS.keys() - REFUSED.keys()
    assert not missing, f"PEFT {peft.__version__} has types that no kind reads: {sorted(missing)}"
    assert FIELDS.keys() | REFUSED.keys() == kinds | EARLIER and not FIELDS.keys() & REFUSED.keys()


# what PEFT notes about an adapter or its use, and no tensor's meaning depends on
_NOTES = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "megatron_config",  # of layers split among cards; PEFT takes it only where Megatron is
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
}


def test_every_field_of_a_lora_is_compared_with_peft_or_refused() -> None:
    """A field is in a case that PEFT computes too, or in one that is refused by its name."""
    from tests.peers.test_peft_language_models import CASES

    known = {field.name for field in dataclasses.fields(CONFIGS["LORA"])}
    compared = {name for case in CASES.values() for name in case.config} | {"r", "lora_alpha"}
    named = {name for name, _ in NAMED.values()}
    assert not known - compared - named - _NOTES
    means = FIELDS["LORA"]
    for name in known & named:
        assert means[name].use == "refused", name
    for name in known & compared - named:
        assert means[name].use in ("used", "harmless"), name
