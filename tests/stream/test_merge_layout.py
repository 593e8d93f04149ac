"""Merges in the layout of another checkpoint than the first input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.checkpoint.files import find_files
from loramerge.errors import FormatError, UsageError
from loramerge.stream.ingredients import Blended
from loramerge.stream.merge import merge
from loramerge.stream.merge_plan import plan_merge
from tests.builders import small_models
from tests.builders.bases import folder, read_safetensors, single
from tests.builders.commands import Runner

SHARE = 0.25


def merged(output: Path, a: Path, b: Path, layout: Path, **options: Any) -> list[Blended]:
    models = [(open_checkpoint(a), Weight()), (open_checkpoint(b), Weight(SHARE))]
    if "vae" in options:
        options["vae"] = find_files(options["vae"])
    plan = plan_merge(models, layout=open_checkpoint(layout), **options)
    return merge(plan, output, threads=1)


@pytest.mark.parametrize("to", ["folder", "single"])
def test_single_files_and_folders(to: str, tmp_path: Path) -> None:
    a = single(tmp_path / "a.safetensors", "sd15", "F32", seed=1)
    b = folder(tmp_path / "b", "sd15", "F32", seed=2)
    first, second, out = (a, b, tmp_path / "o") if to == "folder" else (
        b, a, tmp_path / "o.safetensors",
    )  # fmt: skip
    with pytest.raises(FormatError, match="VAE cannot be brought into this layout"):
        merged(out, first.path, second.path, second.path)
    assert not out.exists()
    found = merged(out, first.path, second.path, second.path, vae=second.path)
    x, y = first.weights, second.weights
    want = {key: (1 - SHARE) * x[key].astype("f8") + SHARE * y[key] for key in x}
    held = {k: v.astype("f4") for k, v in want.items()}
    for name, tensors in second.tensors(held).items():
        got, _ = read_safetensors(second.file(out, name))
        for tensor, value in tensors.items():
            if not tensor.startswith("model_ema."):
                np.testing.assert_allclose(got[tensor], value, rtol=1e-5, atol=1e-6)
    assert out.is_dir() == (to == "folder")
    # changes are measured from the first input, not from the layout
    key = "unet.conv_in.weight"
    (one,) = (o.survival for o in found if o.survival.module == "unet.conv_in" and o.survival.tensor
              .endswith("weight"))  # fmt: skip
    assert one.base == pytest.approx(float((x[key].astype("f8") ** 2).sum()), rel=1e-5)


def test_shards_of_a_third(tmp_path: Path) -> None:
    models = [small_models.weights(seed, "F16") for seed in range(3)]
    a, b = (small_models.write(tmp_path / f"{n}", models[n]) for n in range(2))
    parts = small_models.write(tmp_path / "parts", models[2], shards=3)
    merged(tmp_path / "out", a, b, parts)
    got = small_models.read(tmp_path / "out")
    for name, value in got.items():
        x, y = (model[name].astype("f8") for model in models[:2])
        np.testing.assert_allclose(value, (1 - SHARE) * x + SHARE * y, rtol=2e-3, atol=1e-6)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 3


def test_what_the_layout_does_not_hold(tmp_path: Path) -> None:
    full = small_models.weights(0)
    less = {name: value for name, value in full.items() if not name.endswith("bias")}
    a, b = (small_models.write(tmp_path / name, full) for name in "ab")
    c = small_models.write(tmp_path / "c", less)
    with pytest.raises(FormatError, match="do not hold the same tensors"):
        merged(tmp_path / "out", a, b, c)
    with pytest.raises(FormatError, match="do not hold the same tensors"):
        merged(tmp_path / "out", c, c, a)
    with pytest.raises(UsageError, match="another layout"):
        merged(tmp_path / "out", a, b, a, union="first")


def test_a_command_and_its_repetition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Runner(tmp_path, capsys)
    for number, name in enumerate("ab"):
        small_models.write(tmp_path / name, small_models.weights(number))
    small_models.write(tmp_path / "c", small_models.weights(7), shards=2)
    found = run.ok("merge", "a:0.75", "b:0.25", "--layout", "c", "-o", "out", "--json").json
    assert found["reference"] == "a"
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 2
    assert "same file" in run.ok("run", "out").out
    run.ok("merge", "a:0.75", "b:0.25", "--layout", "c", "-o", "two", "--save-recipe", "r.yaml")
    assert "layout: c" in Path("r.yaml").read_text("utf-8")
    assert "will run" in run.ok("plan", "r.yaml").out
