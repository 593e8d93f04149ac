"""inspect: what a file is."""

from __future__ import annotations

import hashlib
import os
import shutil

import numpy as np
import pytest

from tests.builders.world import ADAPTED, rewrite, write_folder

# what interface.md promises, in its order, and what stands beside it
PROMISED = (
    "path", "size", "dialect", "family", "trained_on", "kinds", "modules", "components", "ranks",
    "alphas", "dtypes", "embeddings", "unknown_keys", "tags", "loads_in", "metadata", "hashes",
    "checked", "findings",
)  # fmt: skip
BESIDE = {
    "what", "family_reason", "nearest_keys", "trigger_words", "norm", "table", "base", "error",
    "loads_otherwise", "merged", "usual_weight", "mean_norm", "usual_norm",
}  # fmt: skip


def _codes(entry):
    return {finding["code"] for finding in entry["findings"]}


def test_keys_are_always_there(run, shared_data):
    (run.folder / "bad.safetensors").write_bytes(b"nothing")
    shutil.copytree(shared_data / "adapters" / "peft_gpt2", run.folder / "peft")
    result = run("inspect", "a", "b", "base", "peft", "bad", "--json")
    assert result.code == 3
    for entry in result.json:
        assert set(entry) == {*PROMISED, *BESIDE}
    for entry in run.ok("inspect", "a", "--deep", "--hash", "--modules", "--json").json:
        assert set(entry) == {*PROMISED, *BESIDE}


def test_values(run):
    (found,) = run.ok("inspect", "a.safetensors", "--json").json
    expected = {
        "path": "a.safetensors", "size": (run.folder / "a.safetensors").stat().st_size,
        "what": "adapter", "dialect": "kohya", "family": "sd21", "trained_on": "sd_v2",
        "kinds": {"lora": 64}, "modules": 64, "components": {"unet": 64}, "ranks": {"4": 64},
        "alphas": {"4": 64}, "dtypes": {"float16": 128}, "embeddings": [], "unknown_keys": [],
        "tags": [["flat", 24], ["outdoors", 7]], "hashes": None, "checked": "header",
        "findings": [], "norm": None, "table": None, "base": None, "error": None,
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    assert "ComfyUI" in found["loads_in"] and found["metadata"]["ss_output_name"] == "flat"
    shown = run.ok("inspect", "a").out
    for words in ("kohya", "sd21", "64", "flat ×24", "--deep reads the weights", "sd_v2"):
        assert words in shown


def test_json_is_a_list_and_stdout_holds_nothing_else(run):
    result = run("inspect", "a", "b", "--json", "--json-file", "found.json")
    assert [entry["path"] for entry in result.json] == ["a.safetensors", "b.safetensors"]
    assert (run.folder / "found.json").read_text("utf-8") == result.out


def _spoiled(run, change, *options):
    rewrite(run.folder / "a.safetensors", run.folder / "spoiled.safetensors", change)
    return run("inspect", "spoiled", *options, "--json")


def _first(arrays, end):
    return next(key for key in arrays if key.endswith(end))


def test_nan_is_found(run):
    def spoil(arrays, metadata):
        arrays[_first(arrays, ".lora_up.weight")][0, 1] = np.nan

    assert _spoiled(run, spoil).json[0]["findings"] == []  # the header does not tell
    (found,) = _spoiled(run, spoil, "--deep").json
    assert found["checked"] == "weights" and _codes(found) == {"not-finite"}
    assert set(found["findings"][0]) == {"severity", "code", "module", "message", "remedy"}
    assert found["findings"][0]["module"].startswith("unet.")
    result = _spoiled(run, spoil, "--check")
    assert result.code == 5 and result.json


def test_untrained_modules_are_found(run):
    def zero(arrays, metadata):
        arrays[_first(arrays, ".lora_up.weight")][:] = 0

    (found,) = _spoiled(run, zero, "--deep").json
    assert (
        _codes(found) == {"untrained"} and "up is exactly zero" in found["findings"][0]["message"]
    )
    assert _spoiled(run, zero, "--check").code == 0  # a warning is no error

    def all_zero(arrays, metadata):
        for key in arrays:
            if key.endswith(".lora_up.weight"):
                arrays[key][:] = 0

    result = _spoiled(run, all_zero, "--check")
    assert result.code == 5 and "no-effect" in _codes(result.json[0])


def test_alpha_zero_and_missing_partners_are_found(run):
    def alpha(arrays, metadata):
        arrays[_first(arrays, ".alpha")] = np.zeros((), "float32")

    assert _codes(_spoiled(run, alpha).json[0]) == {"alpha-zero"}

    def partner(arrays, metadata):
        del arrays[_first(arrays, ".lora_up.weight")]

    (found,) = _spoiled(run, partner).json
    assert _codes(found) == {"missing-partner"} and len(found["unknown_keys"]) >= 1
    assert _spoiled(run, partner, "--check").code == 5
    run.refused(5, "mix", "spoiled", "-o", "out.safetensors", says="spoiled.safetensors")


def test_unknown_keys_come_with_the_nearest(run):
    def misspell(arrays, metadata):
        key = _first(arrays, "_to_q.lora_up.weight")
        arrays[key.replace("to_q", "to_qq")] = arrays[key]

    (found,) = _spoiled(run, misspell).json
    (key,) = found["unknown_keys"]
    assert "to_qq" in key and "to_q" in found["nearest_keys"][key]
    assert "nearest known" in run.ok("inspect", "spoiled").out


def test_files_in_which_nothing_is_known(run):
    rewrite(run.folder / "a.safetensors", run.folder / "none.safetensors", lambda a, m: a.clear())
    (found,) = run.ok("inspect", "none", "--json").json
    assert found["what"] == "unknown" and _codes(found) == {"nothing-known"}
    assert run("inspect", "none", "--check").code == 5


@pytest.mark.parametrize("option", ["--deep", "--modules", "--spectrum", "--check", "--base"])
def test_options_that_read_the_weights(run, option):
    options = (option, "base.safetensors") if option == "--base" else (option,)
    (found,) = run.ok("inspect", "a", *options, "--json").json
    assert found["checked"] == "weights" and found["norm"] > 0
    if option in ("--modules", "--spectrum"):
        assert len(found["table"]) == ADAPTED["unet"]
        assert ("effective_rank" in found["table"][0]) == (option == "--spectrum")
    run.ok("inspect", "a", *options)


def test_the_verdict_on_a_base(run, shared_data):
    (found,) = run.ok("inspect", "b", "--base", "base.safetensors", "--json").json
    assert found["base"]["works"] is True and found["base"]["matched"] == 64 + 23
    assert 0.9 < found["base"]["survives"] <= 1.001 and found["base"]["change"] > 0
    assert "works (sd21): 87 of 87" in run.ok("inspect", "b", "--base", "base").out
    shutil.copy(shared_data / "adapters" / "analog_svd_rank4.safetensors", run.folder)
    result = run.ok("inspect", "analog_svd_rank4", "--base", "base.safetensors", "--json")
    assert result.json[0]["base"]["works"] is False and "famil" in result.json[0]["base"]["reason"]
    run.refused(3, "inspect", "a", "--base", "nothing", says="nothing")
    run.refused(4, "inspect", "a", "--base", "b.safetensors", says="b.safetensors")


def test_hashes(run):
    (found,) = run.ok("inspect", "a", "--hash", "--json").json
    digest = hashlib.sha256((run.folder / "a.safetensors").read_bytes()).hexdigest()
    assert found["hashes"]["sha256"] == digest and found["hashes"]["autov2"] == digest[:10]
    assert found["checked"] == "header"
    rewrite(run.folder / "a.safetensors", run.folder / "same.safetensors", lambda a, m: m.clear())
    (same,) = run.ok("inspect", "same", "--hash", "--json").json
    assert same["hashes"]["sha256"] != digest
    assert same["hashes"]["tensors_sha256"] == found["hashes"]["tensors_sha256"]


def test_metadata(run):
    assert "ss_tag_frequency" not in run.ok("inspect", "a").out
    assert "ss_tag_frequency" in run.ok("inspect", "a", "--metadata").out


def test_checkpoints_are_shown_as_such(run):
    run.ok("base", "add", "mine", "base.safetensors")
    write_folder(run.folder / "base.safetensors", run.folder / "folder")
    for name in ("base.safetensors", "folder", "mine"):
        (found,) = run.ok("inspect", name, "--json").json
        assert found["what"] == "checkpoint" and found["family"] == "sd21"
        assert found["components"]["unet"] > 300 and found["findings"] == []
        assert "checkpoint" in run.ok("inspect", name).out


def test_peft_folders(run, shared_data):
    shutil.copytree(shared_data / "adapters" / "peft_gpt2", run.folder / "p" / "gpt2")
    for name in ("p/gpt2", "p", "p/gpt2/", os.path.join("p", "gpt2")):
        (found,) = run.ok("inspect", name, "--json").json
        assert (
            found["dialect"] == "peft" and found["ranks"] == {"8": 36} and found["family"] is None
        )
    run.ok("mix", "b", "--to", "peft", "-o", "both")
    (found,) = run.ok("inspect", "both", "--json").json  # a folder per component is one adapter
    assert set(found["components"]) == {"unet", "text_encoder"}


def test_real_files(run, shared_data):
    expected = {
        "analog_svd_rank4": ("lora_diffusion", "sd15", {"4": 192}),
        "lora_disney": ("lora_diffusion", "sd15", {"1": 192}),
        "hf_timoha": ("diffusers-legacy", "sd15", {"4": 128}),
        "hf_catundchat": ("diffusers-legacy", "sd15", {"4": 128}),
    }
    for name, values in expected.items():
        path = shared_data / "adapters" / f"{name}.safetensors"
        (found,) = run.ok("inspect", path, "--deep", "--json").json
        assert (found["dialect"], found["family"], found["ranks"]) == values
        assert found["unknown_keys"] == [] and found["findings"] == []


def test_several_files_go_on_after_a_failure(run):
    (run.folder / "bad.safetensors").write_bytes(b"\x10" + bytes(30))
    result = run("inspect", "a", "bad", "b")
    assert result.code == 3 and "bad.safetensors" in result.err
    assert "cannot be read" in result.out and "zuzu" in result.out
    run.refused(3, "inspect", "bad", says="bad.safetensors")


def test_a_checkpoint_says_what_is_in_it(run):
    """Whatever file of a folder has the recipe: a bake writes it into those that it changed."""
    run.ok("mix", "zuzu", "polka:0.5", "-o", "both.safetensors")
    run.ok("bake", "--base", "tiny", "both:0.8", "-o", "baked")
    run.ok("unbake", "baked", "--lora", "both:0.8", "-o", "without")
    run.ok("bake", "--base", "base.safetensors", "a:0.7", "-o", "single.safetensors")
    both = "both.safetensors (mix of zuzu.safetensors, polka.safetensors × 0.5) × 0.8"
    said = {
        "baked": f"bake of {both} into tiny",
        "without": f"unbake of {both} from baked (bake of {both} into tiny)",
        "single.safetensors": "bake of a.safetensors × 0.7 into base.safetensors",
    }
    for name, words in said.items():
        (found,) = run.ok("inspect", name, "--json").json
        assert found["what"] == "checkpoint" and found["merged"] == words
        shown = run.ok("inspect", name).out
        assert " ".join(words.split()) in " ".join(shown.split())
        assert f"`loramerge verify {name}` checks it" in shown
        run.ok("verify", name)
    assert "loramerge verify" not in run.ok("inspect", "base.safetensors").out
