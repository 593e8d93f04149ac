"""The strength that is usual in a family: as measured, said with how many, and found where it is not."""

from __future__ import annotations

import shutil

import pytest

import loramerge as lm
from benchmarks.usual_strength import line, measured, usual_by_family
from loramerge.algebra.health import LIMITS
from loramerge.algebra.health.strength import strength_findings
from loramerge.families import FAMILIES
from loramerge.families.usual import Usual
from loramerge.library.shipped import shipped
from loramerge.verbs.inspect import Inspect, inspect


def _found(*files, base=None):
    return inspect(Inspect(files=tuple(map(str, files)), deep=True, base=base)).files


def test_the_range_of_sd15_is_that_of_the_real_adapters(shared_data):
    found = measured(_found(shared_data / "adapters"), base=False)
    assert usual_by_family(found, base=False) == {"sd15": FAMILIES["sd15"].usual_norm}
    (left_out,) = (one for one in found if one.left_out)
    assert left_out.file.path.endswith("peft_gpt2") and "no family" in left_out.left_out


def test_the_range_of_tiny_is_that_of_the_shipped_adapters():
    found = measured(_found(shipped("zuzu"), shipped("polka"), base="tiny"), base=True)
    usual = usual_by_family(found, base=True)
    assert usual == {"tiny": FAMILIES["tiny"].usual_change}
    assert line(usual["tiny"], base=True) == "    usual_change=Usual(0.31, 0.33, 2),"


def test_only_adapters_as_trained_count_and_each_once(tmp_path):
    for name in ("zuzu", "polka"):
        shutil.copy(shipped(name), tmp_path / f"{name}.safetensors")
    lm.save(
        lm.load(tmp_path / "zuzu.safetensors"), tmp_path / "zz.safetensors", dialect="diffusers"
    )
    lm.save(lm.mix(["zuzu:3"]), tmp_path / "loud.safetensors")
    found = measured(_found(tmp_path), base=False)
    reasons = {one.file.path.rpartition("/")[2]: one.left_out for one in found}
    assert "made it of others" in reasons["loud.safetensors"]
    assert [name for name, why in reasons.items() if not why] == [
        "polka.safetensors", "zuzu.safetensors",
    ]  # fmt: skip
    (usual,) = usual_by_family(found, base=False).values()
    assert usual == Usual(1.9, 2.1, 2)
    every = [
        one._replace(left_out="") for one in found
    ]  # as a script that counts all would have it
    assert usual_by_family(every, base=False)["tiny"] != usual


def test_a_single_adapter_is_in_its_own_range():
    usual = Usual(0.5, 0.5, 1)
    assert usual.words("{:g}".format, "sdxl") == "0.5 to 0.5 for sdxl (from 1 adapter)"


@pytest.mark.parametrize(
    ("name", "factor", "codes"),
    [
        ("lora_disney", 1, set()), ("analog_svd_rank4", 1, set()), ("hf_timoha", 1, set()),
        ("lora_disney", 8, {"stronger-than-usual"}), ("analog_svd_rank4", 0.1, {"weaker-than-usual"}),
        ("hf_timoha", 8, {"stronger-than-usual"}), ("hf_catundchat", 8, set()),
    ],
)  # fmt: skip
def test_extremes_are_found_without_a_base(shared_data, name, factor, codes):
    adapter = factor * lm.load(shared_data / "adapters" / f"{name}.safetensors")
    found = lm.inspect(adapter, deep=True)
    problems = [one for one in found.findings if one.code.endswith("than-usual")]
    assert {one.code for one in problems} == codes
    assert all("(from 4 adapters)" in one.message for one in problems)
    for one in problems:  # at the weight that the remedy names, it is within the range
        weight = float(one.remedy.split()[2])
        low, high, _ = FAMILIES["sd15"].usual_norm
        assert low * 0.95 <= weight * found.mean_norm <= high * 1.05


def test_the_base_decides_where_both_are_known():
    stronger = LIMITS["stronger-than-usual"].value
    assert not list(strength_findings("tiny", norm=99.0, change=0.33))
    assert list(strength_findings("tiny", norm=2.0, change=0.33 * stronger * 1.01))
    (large,) = strength_findings("sd15", norm=1.0, change=1.01)
    assert "images usually break down" in large.message
    (loud,) = strength_findings("sd15", norm=99.0, change=0.9)
    assert "from 4 adapters" in loud.message


def test_of_other_families_and_of_nothing_nothing_is_said():
    for family in ("sdxl", "flux1", None, "no family"):
        assert not list(strength_findings(family, norm=1e9))
    assert not list(strength_findings("sd15", norm=0.0)) + list(strength_findings("sd15"))
