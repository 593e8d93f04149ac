"""Tensors that adapters change, kept in a wider type; and the refusal of bakes that keep too little."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loramerge as lm
from loramerge.cli.main import main
from loramerge.errors import NumericsError, UsageError, spelled
from tests.builders.bases import read_safetensors, write_safetensors
from tests.builders.deltas import adapter, low_rank
from tests.builders.gguf import data_of, values_of
from tests.stream.test_gguf import ROWS, language
from tests.stream.test_gguf import sample as of_language
from tests.stream.test_quantised_comfyui import FORMATS, MODULE, base, read, sample, tensors_of


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("kind", FORMATS)
def test_changed_tensors_lose_their_scales_and_nothing_else(tmp_path: Path, kind: str) -> None:
    path, out, a = base(tmp_path / "base", kind), tmp_path / "out", sample(0.002)
    found = lm.bake(path, [(a, 1.0)], out, keep_touched="bf16")
    assert found.survived is not None and found.survived > 0.9 and found.dtypes == ["bfloat16"]
    before, after = tensors_of(path), tensors_of(out)
    (delta,) = a.deltas.values()
    wanted = read(before, MODULE, kind)[0] + delta.dense()
    written = after[f"{MODULE}.weight"].astype("float64")
    assert np.allclose(written, wanted, rtol=2.0**-8, atol=1e-7)
    own = {name for name in before if name.startswith(MODULE)}
    assert set(after) == set(before) - own | {f"{MODULE}.weight"}
    assert all(after[n].tobytes() == before[n].tobytes() for n in set(before) - own)


def test_layers_in_the_header_and_the_index_follow(tmp_path: Path) -> None:
    path, out = base(tmp_path / "base", "mxfp8"), tmp_path / "out"
    tensors = tensors_of(path)
    (path / "model.safetensors").unlink()
    shard = "model-00001-of-00001.safetensors"
    layers = {"layers": {MODULE: {"format": "mxfp8"}, "other": {"format": "mxfp8"}}}
    write_safetensors(path / shard, tensors, {"_quantization_metadata": json.dumps(layers)})
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(tensors, shard)}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    lm.bake(path, [(sample(0.1), 1.0)], out, keep_touched="bfloat16")
    after, metadata = read_safetensors(out / shard)
    assert json.loads(metadata["_quantization_metadata"])["layers"] == {
        "other": {"format": "mxfp8"}
    }
    written = json.loads((out / "model.safetensors.index.json").read_text())
    assert written["weight_map"] == dict.fromkeys(after, shard)
    assert written["metadata"]["total_size"] == sum(array.nbytes for array in after.values())


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
def test_gguf_keeps_them_in_its_own_order(tmp_path: Path, kind: str) -> None:
    path, out, a = language(tmp_path / "base.gguf", kind), tmp_path / "out.gguf", of_language(0.002)
    lm.bake(path, [(a, 1.0)], out, keep_touched="float16")
    before, after = data_of(path), data_of(out)
    assert list(before) == list(after)
    changed = {name for name in before if before[name] != after[name]}
    assert len(changed) == 4 and {after[name][0] for name in changed} == {"F16"}
    (value,) = (d for s, d in a.deltas.items() if s.modules[0].endswith("v_proj"))
    old, new = (values_of(*d["blk.0.attn_v.weight"][::2]) for d in (before, after))
    wanted = old + value.dense().reshape(-1)
    assert np.abs(new - wanted).max() < 2.0**-10 * np.abs(wanted).max()


def weak(folder: Path) -> tuple[Path, Any]:
    return language(folder / "base.gguf", "Q4_0"), of_language(0.001)


def test_a_bake_that_loses_too_much_is_refused_with_measured_remedies(tmp_path: Path) -> None:
    path, a = weak(tmp_path)
    out = tmp_path / "out.gguf"
    with pytest.raises(NumericsError, match="would be kept") as caught:
        lm.bake(path, [(a, 1.0)], out)
    assert sorted(tmp_path.iterdir()) == [path]
    hint = spelled(caught.value.hint or "")
    assert "rounding='stochastic' keeps" in hint and "keep_touched='bfloat16' keeps" in hint
    assert "allow_loss=True" in hint
    said = re.search(r"storage='Q8_0' keeps (\d+) %, relative error ([\d.]+);", hint)
    assert said is not None
    more = lm.bake(path, [(a, 1.0)], tmp_path / "more.gguf", storage=["Q8_0"], allow_loss=True)
    assert more.survived == pytest.approx(int(said[1]) / 100, rel=0.1)
    assert more.relative_error == pytest.approx(float(said[2]), rel=0.2)
    lost = lm.bake(path, [(a, 1.0)], out, allow_loss=True)
    assert lost.survived is not None and lost.survived < 0.9
    kept = lm.bake(path, [(a, 1.0)], tmp_path / "wide.gguf", keep_touched="bfloat16")
    assert kept.survived is not None and kept.survived > 0.9
    even = lm.bake(path, [(a, 1.0)], tmp_path / "even.gguf", rounding="stochastic")
    assert even.survived is not None and even.survived > 0.9


def test_a_file_that_was_written_before_is_repeated(tmp_path: Path) -> None:
    path, a = weak(tmp_path)
    lm.save(a, tmp_path / "a.safetensors", dialect="kohya")
    out = tmp_path / "out.gguf"
    options = ["--base", str(path), str(tmp_path / "a.safetensors"), "-o", str(out)]
    assert main(["bake", *options]) == 7
    assert not out.exists()
    assert main(["bake", *options, "--allow-loss"]) == 0
    assert main(["run", str(out)]) == 0


def test_one_type_for_all_leaves_none_to_keep(tmp_path: Path) -> None:
    path, a = weak(tmp_path)
    with pytest.raises(UsageError, match="one type for all"):
        lm.bake(path, [(a, 1.0)], tmp_path / "x.gguf", keep_touched="bf16", dtype="float32")


def test_plain_types_that_are_as_wide_stay(tmp_path: Path) -> None:
    path = language(tmp_path / "base.gguf", "F16")
    a = adapter({"model.layers.0.self_attn.v_proj": low_rank(ROWS["attn_v"], 1)})
    lm.bake(path, [(a, 1.0)], tmp_path / "out.gguf", keep_touched="bf16")
    assert data_of(tmp_path / "out.gguf")["blk.0.attn_v.weight"][0] == "F16"
