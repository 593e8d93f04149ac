"""Merges that other programs recorded in checkpoints: in words, and as recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loramerge.errors import CorruptFile
from loramerge.steps.lineage import lineage_of
from tests.builders.bases import read_safetensors, single, write_safetensors
from tests.builders.commands import Runner

A, B, C = "aa" * 32, "bb" * 32, "cc" * 32
MODELS = {
    digest: {"name": f"{name}.safetensors"} for digest, name in ((A, "a"), (B, "b"), (C, "c"))
}


def header(**recipe: Any) -> dict[str, str]:
    return {"sd_merge_recipe": json.dumps(recipe), "sd_merge_models": json.dumps(MODELS)}


def webui(method: str = "Weighted sum", *, half: bool = True, **more: Any) -> dict[str, str]:
    return header(type="webui", primary_model_hash=A, secondary_model_hash=B, multiplier=0.3,
                  interp_method=method, save_as_half=half, bake_in_vae="None", **more)  # fmt: skip


def supermerger(mode: str, **more: Any) -> dict[str, str]:
    recipe = {
        "type": "sd-webui-supermerger", "model_a": A, "model_b": B, "model_c": C, "mode": mode,
        "base_alpha": 0.4, "base_beta": 0.5, "mbw": False, "calcmode": "normal", **more,
    }  # fmt: skip
    return header(**recipe)


MECHA = """version 0.1.0
dict a=0.5
model "a.safetensors" model_config="sdxl-sgm" merge_space="weight"
model "b.safetensors" model_config="sdxl-sgm" merge_space="weight"
model "c.safetensors" model_config="sdxl-sgm" merge_space="weight"
merge "subtract" &2 &3
merge "add_difference" &1 &4 alpha=0.5
merge "weighted_sum" &5 &2 0.2"""


def sums(metadata: dict[str, str]) -> tuple[tuple[str, ...], tuple[Any, ...], str | None]:
    found = lineage_of(metadata)
    assert found is not None and not found.problems, found
    return found.models, found.weights, found.base


def test_weighted_sums_and_differences() -> None:
    names = ("a.safetensors", "b.safetensors")
    assert sums(webui()) == (names, (0.7, 0.3), None)
    added = webui("Add difference", tertiary_model_hash=C)
    assert sums(added) == (names, (1.0, 0.3), "c.safetensors")
    assert sums(supermerger("Weight sum")) == (
        names, (None, 0.4), None,
    )  # fmt: skip
    assert sums(supermerger("Add difference"))[2] == "c.safetensors"
    assert sums(supermerger("Triple sum"))[1] == (None, 0.4, 0.5)
    assert sums(supermerger("sum Twice"))[1] == (None, 0.2, 0.5)


def test_weights_of_blocks() -> None:
    metadata = supermerger("Weight sum", mbw=True, weights_alpha=[0.1] * 25)
    assert sums(metadata)[1] == (None, (0.4, *[0.1] * 25))
    metadata = supermerger("sum Twice", mbw=True, weights_alpha=[0.1] * 25,
                           weights_beta=",".join(["1"] * 25))  # fmt: skip
    assert sums(metadata)[1][1] == pytest.approx((0.2, *[0.0] * 25))


def test_a_graph_of_sd_mecha_is_a_sum() -> None:
    models, weights, _ = sums({"mecha_recipe": MECHA})
    found = dict(zip(models, weights, strict=True))
    wanted = {"a.safetensors": 0.8, "b.safetensors": 0.6, "c.safetensors": -0.4}
    assert found == pytest.approx(wanted)
    other = lineage_of({"mecha_recipe": MECHA.replace("subtract", "perpendicular_component")})
    assert other is not None and "perpendicular_component" in other.problems[0]
    assert len(other.models) == 3


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        (supermerger("Weight sum", calcmode="cosineA"), "cosineA"),
        (supermerger("Weight sum", elemental_merge="IN01:attn:0.5"), "elemental_merge"),
        (supermerger("Weight sum", Exclude=["IN00"]), "Exclude"),
        (webui(discard_weights="ema"), "discard_weights"),
        (webui("No interpolation"), "interp_method"),
        (header(type="merge-model-chattiori"), "chattiori"),
    ],
)
def test_what_has_no_counterpart(metadata: dict[str, str], says: str) -> None:
    found = lineage_of(metadata)
    assert found is not None
    assert says in "; ".join(found.problems)
    assert found.words


@pytest.mark.parametrize(
    "metadata",
    [
        {"sd_merge_recipe": "{"},
        {"sd_merge_recipe": "[]"},
        webui() | {"sd_merge_models": "3"},
        header(type="webui", multiplier="x"),
        {"mecha_recipe": "model"},
        {"mecha_recipe": 'version 0.1.0\nmerge "weighted_sum" &7 &8'},
    ],
)
def test_broken_metadata(metadata: dict[str, str]) -> None:
    with pytest.raises(CorruptFile):
        lineage_of(metadata)


def test_other_headers_have_none() -> None:
    assert lineage_of({"format": "pt"}) is None


def test_the_recipe_merges_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Runner(tmp_path, capsys)
    for seed, name in enumerate("ab"):
        single(tmp_path / f"{name}.safetensors", "sd15", "F16", seed=seed)
    tensors, _ = read_safetensors(tmp_path / "a.safetensors")
    write_safetensors(tmp_path / "old.safetensors", tensors, webui(half=False))
    assert "A1111's checkpoint merger, weighted sum" in run.ok("inspect", "old.safetensors").out
    run.ok("recipes", "--from-merge", "old.safetensors", "-o", "again.yaml")
    run.ok("run", "-q", "again.yaml")
    run.ok("merge", "a.safetensors:0.7", "b.safetensors:0.3", "-o", "wanted.safetensors")
    again, wanted = (
        read_safetensors(tmp_path / f"{n}.safetensors")[0] for n in ("merged", "wanted")
    )
    assert all((again[name] == value).all() for name, value in wanted.items())
    run.refused(4, "recipes", "--from-merge", "a.safetensors", says="does not say")
    run.refused(2, "recipes", "x", "--from-merge", "old.safetensors", says="give one of")
