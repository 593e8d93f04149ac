"""The proof of a written file sees every tensor and every number that a kind depends on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loramerge.adapter import Adapter
from loramerge.adapter import encode as saving
from loramerge.adapter.delta import Delta
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.algebra.proof import prove
from loramerge.cli.main import main
from loramerge.errors import NumericsError
from tests.builders.kinds import METADATA, Array, samples
from tests.builders.samples import read_safetensors, safetensors_bytes

SAMPLES = samples()
# alpha says nothing where no half is factored, beside a `.scale`, and as a constraint of 0
IDLE = ("lokr-full-full", "scale", "oft", "oft-rescaled", "boft", "boft-rescaled")


def written(tensors: dict[str, Array], path: Path) -> Adapter:
    path.write_bytes(safetensors_bytes(tensors, METADATA))
    return load(path)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_tensor_and_number_counts(name: str, tmp_path: Path) -> None:
    layer, sample = SAMPLES[name]
    keys = sample.keys(layer)
    asked = written(keys, tmp_path / "a.safetensors")
    proof = prove(asked, written(keys, tmp_path / "b.safetensors"))
    assert proof.same == proof.sites == 1
    kind = name.rpartition("-")[0]
    for key, value in keys.items():
        idle = key.endswith(".alpha") and kind in IDLE
        if value.dtype != np.float32 or idle:
            continue
        if key.endswith(".alpha"):
            wrong = {key: 3 * value}  # what a writer makes of it that drops or divides it
        else:
            wrong = {key: value.copy()}
            wrong[key].reshape(-1)[0] += 0.01 + 0.01 * np.abs(value).max()
        with pytest.raises(NumericsError, match="differs from the result"):
            prove(asked, written(keys | wrong, tmp_path / "c.safetensors"))
    if kind == "lokr-full-full":
        without = {k: v for k, v in keys.items() if not k.endswith(".alpha")}
        prove(asked, written(without, tmp_path / "d.safetensors"))


@pytest.mark.parametrize("name", SAMPLES)
def test_another_strength_is_seen(name: str, tmp_path: Path) -> None:
    layer, sample = SAMPLES[name]
    back = written(sample.keys(layer), tmp_path / "a.safetensors")
    for factor in (0.5, 1.001, -1.0):
        asked = back.with_deltas({s: d.scaled(factor) for s, d in back.deltas.items()})
        with pytest.raises(NumericsError, match="differs from the result"):
            prove(asked, back)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("name", SAMPLES)
def test_one_rounding_is_allowed_and_two_types_are_not(
    name: str, dtype: str, tmp_path: Path
) -> None:
    layer, sample = SAMPLES[name]
    asked = written(sample.keys(layer), tmp_path / "a.safetensors")
    save(asked, tmp_path / "b.safetensors", to="kohya", dtype=dtype)
    proof = prove(asked, load(tmp_path / "b.safetensors"))
    assert 0 < proof.largest <= proof.allowed
    save(asked, tmp_path / "c.safetensors", to="kohya", dtype="BF16")
    arrays, _ = read_safetensors(tmp_path / "c.safetensors")
    widened = {k: np.array(a, "float32") if a.dtype.itemsize == 2 else a for k, a in arrays.items()}
    with pytest.raises(NumericsError, match="differs from the result"):
        prove(asked, written(widened, tmp_path / "d.safetensors"))


@pytest.mark.parametrize("layer", ["linear", "conv3x3"])
def test_a_writer_that_drops_the_alpha_of_a_loha_leaves_no_file(
    layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, sample = SAMPLES[f"loha-{layer}"]
    path = tmp_path / "a.safetensors"
    written(sample.keys(layer), path)
    output = tmp_path / "o.safetensors"
    assert main(["convert", str(path), "--to", "kohya", "-o", str(output)]) == 0
    output.unlink()
    real = saving.roles_of

    def without_alpha(delta: Delta, *rest: object) -> object:
        return {r: t for r, t in real(delta, *rest).items() if r != "alpha"}  # type: ignore[arg-type]

    monkeypatch.setattr(saving, "roles_of", without_alpha)
    assert main(["convert", str(path), "--to", "kohya", "-o", str(output)]) == 7
    assert "not kept" in capsys.readouterr().err and not output.exists()


@pytest.mark.parametrize("name", ["dora-out-linear", "dora-out-conv3x3"])
def test_a_dora_is_proven_in_dialects_that_fold_alpha_or_spell_the_magnitudes_otherwise(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer, sample = SAMPLES[name]
    path = tmp_path / "a.safetensors"
    written(sample.keys(layer), path)
    for to, output in (("diffusers", "d.safetensors"), ("peft", "p")):
        assert main(["convert", str(path), "--to", to, "-o", str(tmp_path / output)]) == 0
        assert "read back" in capsys.readouterr().out
        (delta,) = load(tmp_path / output).deltas.values()
        base = np.random.default_rng(0).standard_normal(sample.shape)
        off = delta.dense(base) - sample.change(base)
        assert np.abs(off).max() < 1e-5
