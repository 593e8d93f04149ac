"""Of a folder that is given, verbs take the adapters; what else lies there is named once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import LoramergeError
from loramerge.library.shipped import shipped
from loramerge.steps import in_folders
from tests.builders.samples import safetensors_bytes

VERBS = {
    "resize": ("--rank", "2"),
    "convert": ("--to", "diffusers"),
    "heal": (),
}
OTHERS = {
    "upscaler": ["model.0.weight", "model.0.bias"],
    "embedding": ["emb_params"],
    "vae": ["encoder.conv_in.weight", "decoder.conv_out.bias"],
}


def _written(path: Path, keys: list[str]) -> None:
    tensor = np.ones((4, 4), np.float32)
    path.write_bytes(safetensors_bytes(dict.fromkeys(keys, tensor)))


def _folder() -> Path:
    """Return a folder with adapters of each form, checkpoints, other files, and a broken adapter."""
    folder = Path("loras")
    (folder / "sub").mkdir(parents=True)
    shutil.copy(shipped("zuzu"), folder / "zuzu.safetensors")
    lm.save("polka", folder / "sub/peft", dialect="peft")
    pipeline = folder / "pipeline"
    pipeline.mkdir()
    lm.save("polka", pipeline / "pytorch_lora_weights.safetensors", dialect="diffusers")
    shutil.copytree(shipped("tiny"), folder / "sub/model")
    shutil.copy(
        shipped("tiny") / "vae/diffusion_pytorch_model.safetensors", folder / "v.safetensors"
    )
    for name, keys in OTHERS.items():
        _written(folder / f"{name}.safetensors", keys)
    whole = shipped("zuzu").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    _written(folder / "half.safetensors", ["lora_unet_x.lora_up.weight"])
    return folder


_LEFT_OUT = {"model", "v.safetensors", *(f"{name}.safetensors" for name in OTHERS)}
_BROKEN = {"cut.safetensors", "half.safetensors"}
_ADAPTERS = {"zuzu.safetensors", "peft", "pytorch_lora_weights.safetensors"}


def _require_sorted(found):
    """Require that adapters are taken, broken ones are errors, and all others are left out."""
    assert {Path(path).name for path in found["not_adapters"]} == _LEFT_OUT
    files = {Path(file["path"]).name: file["status"] for file in found["files"]}
    assert {name for name, status in files.items() if status == "failed"} == _BROKEN
    assert files.keys() - _BROKEN == _ADAPTERS


@pytest.mark.parametrize("verb", VERBS)
def test_of_a_folder_the_adapters_are_taken(run, verb):
    folder = _folder()
    command = (verb, folder, *VERBS[verb], "--out-dir", "out")
    done = run(*command, "--json")
    assert done.code == 3  # of the first file that failed
    _require_sorted(done.json)
    for name in _BROKEN:
        (folder / name).unlink()
    shown = run.ok(*command, "--force")
    line = "4 files and 1 folder are not adapters and were left out: "
    assert shown.out.count(line) == 1 and "failed" not in shown.out + shown.err
    assert "warning" not in shown.err


@pytest.mark.parametrize(
    "wrong",
    [
        lambda path: False,  # tries everything
        lambda path: not path.name.startswith("zuzu"),  # takes folders for something else
        lambda path: _refused(path),  # leaves out what is broken, without a word of an error
    ],
)
def test_a_wrong_sorting_is_found(run, monkeypatch, wrong):
    monkeypatch.setattr(in_folders, "_is_other", wrong)
    found = run("resize", _folder(), "--rank", "2", "--out-dir", "out", "--json").json
    with pytest.raises(AssertionError):
        _require_sorted(found)


def _refused(path: Path) -> bool:
    try:
        lm.resize(str(path), rank=1)
    except LoramergeError:
        return True
    return False


def test_a_file_that_is_named_is_always_taken(run):
    folder = _folder()
    run.refused(4, "resize", folder / "v.safetensors", "--rank", "2", says="this is a checkpoint")
    found = run(
        "resize", folder / "v.safetensors", folder, "--rank", "2", "--out-dir", "o", "--json"
    )
    statuses = {Path(file["path"]).name: file["status"] for file in found.json["files"]}
    assert statuses["v.safetensors"] == "failed"
    assert "v.safetensors" not in {Path(p).name for p in found.json["not_adapters"]}


def test_a_folder_without_adapters_is_an_error(run):
    folder = Path("others")
    folder.mkdir()
    for name, keys in OTHERS.items():
        _written(folder / f"{name}.safetensors", keys)
    says = ("others: the folder holds no adapters", "upscaler.safetensors")
    run.refused(3, "resize", folder, "--rank", "2", "--out-dir", "o", says=says)
    run.refused(3, "resize", folder, "b", "--rank", "2", "--out-dir", "o", says=says)
    run.refused(3, "resize", folder, "--curve", says=says)
    run.refused(3, "heal", shipped("tiny"), says="found: a checkpoint")


def test_the_only_adapter_of_a_folder_needs_no_folder_for_its_result(run):
    folder = Path("one")
    folder.mkdir()
    shutil.copy("b.safetensors", folder)
    _written(folder / "upscaler.safetensors", OTHERS["upscaler"])
    shown = run.ok("resize", folder, "--rank", "2").out
    assert "b-r2.safetensors" in shown
    left_out = "1 file is not an adapter and was left out: upscaler.safetensors"
    assert left_out in shown and left_out in run.ok("heal", folder).out
    assert "rank" in run.ok("resize", folder, "--curve").out


@pytest.mark.parametrize("form", ["peft", "diffusers"])
def test_a_folder_that_is_one_adapter_stays_one(run, form):
    folder = Path("mine")
    if form == "peft":
        lm.save("polka", folder, dialect="peft")
    else:
        folder.mkdir()
        lm.save("polka", folder / "pytorch_lora_weights.safetensors", dialect="diffusers")
    found = run.ok("resize", folder, "--rank", "2", "-o", "x", "--to", "peft", "--json").json
    assert found["outputs"] == ["x"] and found["not_adapters"] == [] and len(found["files"]) == 1
