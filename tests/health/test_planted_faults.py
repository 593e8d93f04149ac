"""Every planted fault is found and named, and a sound adapter has none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loramerge.adapter.load import load
from loramerge.algebra.health import examine
from tests.health.faults import FAULTS
from tests.health.patients import GENERATED, REAL, SHIPPED, patient, written
from tests.tail import first

CASES = 200
NAMES = (*GENERATED, *SHIPPED, *REAL)
# a fault that only several ranks can have
OF_RANKS = ("a spike", "a dead rank", "collapsed spectra", "ranks that differ", "alphas saved as 1")
# what else follows from a fault, beside its own code, on the same module or the whole file
FOLLOWS = {
    "never trained": {"untrained", "untrained-as-usual"},
    "a missing partner": {"layer-lost"},
    "ranks that differ": {"layer-lost"},
    "a wrong alpha": {"alpha-large", "qkv-imbalance"},
    "joined factors": {"collapsed"},  # of one rank
    "float16 overflow": {"loud-module", "spike", "qkv-imbalance"},
    "uneven attention": {"faint-module"},
    "a faint module": {"qkv-imbalance"},
    "strength times 8": {"qkv-imbalance", "spike"},
    "a spike": {"qkv-imbalance", "loud-module"},
    "alpha far above the rank": {"alpha-odd", "qkv-imbalance"},
}


def _case(number: int) -> tuple[str, str]:
    fault = list(FAULTS)[number % len(FAULTS)]
    name = NAMES[(number + number // len(FAULTS)) % len(NAMES)]
    if name == "lora_disney" and fault in OF_RANKS:
        name = "analog_svd_rank4"
    return fault, name


def test_the_cases_are_many_and_of_all_sorts():
    cases = {(number, *_case(number)) for number in range(CASES)}
    assert len(cases) == CASES and {fault for _, fault, _ in cases} == set(FAULTS)
    assert {name for _, _, name in cases} == set(NAMES)


@pytest.mark.parametrize("number", first(len(FAULTS), range(CASES)))
def test_a_planted_fault_is_found_and_named(number, tmp_path, tmp_path_factory, request):
    fault, name = _case(number)
    real = request.getfixturevalue("shared_data") if name in REAL else tmp_path
    one = patient(name, real / "adapters", tmp_path_factory.getbasetemp())
    code, module = FAULTS[fault](one, np.random.default_rng(number))
    adapter = load(written(one, tmp_path / "a.safetensors"))
    found = [*adapter.info.problems, *examine(adapter).problems]
    hits = [problem for problem in found if problem.code == code]
    assert hits, (fault, name, module, [(p.code, p.module, p.message) for p in found])
    assert module is None or any(module in (p.module or "") for p in hits), (module, hits)
    for problem in hits:
        assert (
            problem.message and problem.remedy and problem.severity in ("error", "warning", "note")
        )
    others = {problem.code for problem in found} - {code} - FOLLOWS.get(fault, set())
    assert others == set(), (fault, name, module, [(p.code, p.module, p.message) for p in found])


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_found_in_a_sound_adapter(name, tmp_path, tmp_path_factory, request):
    real = request.getfixturevalue("shared_data") if name in REAL else tmp_path
    one = patient(name, real / "adapters", tmp_path_factory.getbasetemp())
    adapter = load(written(one, tmp_path / "a.safetensors"))
    assert [*adapter.info.problems, *examine(adapter, spectra=True).problems] == []


def test_real_adapters_are_sound_as_they_are(shared_data: Path):
    paths = sorted((shared_data / "adapters").iterdir())
    assert len(paths) == 5
    for path in paths:
        adapter = load(path)
        assert [*adapter.info.problems, *examine(adapter).problems] == [], path.name
