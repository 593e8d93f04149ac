"""A base that no family knows: an adapter of its names and shapes works, whatever stands before them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from loramerge.adapter.load import load
from loramerge.checkpoint import open_checkpoint
from loramerge.checkpoint.naming import renaming
from loramerge.families import FAMILIES
from tests.builders.commands import Runner
from tests.builders.samples import Array, read_safetensors, safetensors_bytes

LAYERS = {
    "patcher": (16, 8),
    "cubes.0.mixer.in_proj": (48, 16),
    "cubes.0.mixer.out_proj": (16, 16),
    "cubes.1.mixer.in_proj": (48, 16),
    "cubes.1.mixer.out_proj": (16, 16),
}
RANK = 4


@pytest.fixture
def runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Runner:
    monkeypatch.chdir(tmp_path)
    return Runner(tmp_path, capsys)


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def weights(head: str = "", seed: int = 0) -> dict[str, Array]:
    found = {
        f"{head}{n}.weight": random(seed).standard_normal(s, "float32") for n, s in LAYERS.items()
    }
    return found | {
        f"{head}cubes.0.norm.scale": np.ones(16, "f4"), f"{head}tokens": np.ones((2, 16), "f4"),
    }  # fmt: skip


def factors(seed: int) -> dict[str, tuple[Array, Array]]:
    return {
        name: (
            random(seed).standard_normal((out, RANK), "float32"),
            random(seed + 1).standard_normal((RANK, inputs), "float32"),
        )
        for name, (out, inputs) in LAYERS.items()
    }


def adapter(folder: Path, name: str, head: str, seed: int = 1, *, flat: bool = False) -> Path:
    """Write an adapter whose names begin with `head`; `flat` spells them as kohya does."""
    ends = ("lora_up.weight", "lora_down.weight") if flat else ("lora_B.weight", "lora_A.weight")
    path = folder / f"{name}.safetensors"
    path.write_bytes(safetensors_bytes({
        f"{head}{layer.replace('.', '_') if flat else layer}.{end}": value
        for layer, both in factors(seed).items()
        for end, value in zip(ends, both, strict=True)
    }))  # fmt: skip
    return path


def single(folder: Path, head: str = "", seed: int = 0, name: str = "base") -> Path:
    path = folder / f"{name}.safetensors"
    path.write_bytes(safetensors_bytes(weights(head, seed)))
    return path


def sharded(folder: Path, seed: int = 0) -> Path:
    place = folder / "base-sharded"
    place.mkdir()
    names, stored = {}, weights(seed=seed)
    for number, keys in enumerate((list(stored)[:3], list(stored)[3:]), 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        (place / shard).write_bytes(safetensors_bytes({key: stored[key] for key in keys}))
        names |= dict.fromkeys(keys, shard)
    index = {"metadata": {}, "weight_map": names}
    (place / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return place


def pipeline(folder: Path, seed: int = 0) -> Path:
    place = folder / "base-folder"
    (place / "transformer").mkdir(parents=True)
    (place / "text_encoder").mkdir()
    (place / "model_index.json").write_text('{"_class_name": "CubesPipeline"}', "utf-8")
    config = {"_class_name": "CubesTransformer3DModel"}
    (place / "transformer" / "config.json").write_text(json.dumps(config), "utf-8")
    file = place / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(safetensors_bytes(weights(seed=seed)))
    other = safetensors_bytes({"speller.0.out_proj.weight": np.ones((4, 4), "f4")})
    (place / "text_encoder" / "model.safetensors").write_bytes(other)
    return place


def read(path: Path) -> dict[str, Array]:
    """The tensors of a checkpoint's network, without what stands before their names."""
    files = [path] if path.is_file() else sorted((path / "transformer").glob("*.safetensors"))
    files = files or sorted(path.glob("*.safetensors"))
    stored = {key: value for file in files for key, value in read_safetensors(file)[0].items()}
    return {
        key.removeprefix("model.").removeprefix("diffusion_model."): stored[key] for key in stored
    }


def require_baked(before: Path, after: Path, scale: float, seed: int = 1) -> None:
    old, new = read(before), read(after)
    assert old.keys() == new.keys()
    for name, value in old.items():
        layer = name.removesuffix(".weight")
        change = scale * np.matmul(*factors(seed)[layer]) if layer in LAYERS else 0.0
        assert np.allclose(new[name], value + change, atol=1e-5), name


HEADS = {
    "bare": "", "comfyui": "diffusion_model.", "whole": "model.diffusion_model.",
    "diffusers": "transformer.", "unet": "unet.", "peft": "base_model.model.",
    "kohya": "lora_unet_", "onetrainer": "lora_transformer_",
}  # fmt: skip


@pytest.mark.long_tail(keep=3)
@pytest.mark.parametrize("make", [single, sharded, pipeline])
@pytest.mark.parametrize("dialect", HEADS)
def test_every_spelling_bakes_into_every_form(
    runner: Runner, dialect: str, make: Callable[[Path], Path]
) -> None:
    base = make(runner.folder)
    head = HEADS[dialect]
    adapter(runner.folder, "mine", head, flat=head.startswith("lora_"))
    out = runner.folder / ("out" if base.is_dir() else "out.safetensors")
    done = runner.ok("bake", "--base", base, "mine.safetensors:0.5", "-o", out, "--json").json
    assert done["family"] == "unknown" and done["modules"] == len(LAYERS)
    (note,) = done["notes"]
    assert "family of the base is unknown" in note and "5 of 5 modules" in note
    require_baked(base, out, 0.5)


@pytest.mark.parametrize("head", ["model.diffusion_model.", "net.", "transformer."])
def test_the_names_of_the_base_may_have_a_beginning_too(runner: Runner, head: str) -> None:
    base = single(runner.folder, head)
    adapter(runner.folder, "mine", "lora_unet_", flat=True)
    runner.ok("bake", "--base", base, "mine.safetensors", "-o", "out.safetensors")
    before, after = (read_safetensors(p)[0] for p in (base, runner.folder / "out.safetensors"))
    key = f"{head}cubes.1.mixer.in_proj.weight"
    want = before[key] + np.matmul(*factors(1)["cubes.1.mixer.in_proj"])
    assert before.keys() == after.keys() and np.allclose(after[key], want, atol=1e-5)


def test_names_and_shapes_have_to_agree(runner: Runner) -> None:
    base = single(runner.folder)
    path = adapter(runner.folder, "mine", "diffusion_model.")
    arrays, _ = read_safetensors(path)
    path.write_bytes(safetensors_bytes({k.replace("cubes", "balls"): v for k, v in arrays.items()}))
    failed = runner("bake", "--base", base, path, "-o", "out.safetensors")
    assert failed.code == 5 and "lacks 4 modules" in failed.err
    key = "diffusion_model.patcher.lora_A.weight"
    path.write_bytes(safetensors_bytes(arrays | {key: np.ones((RANK, 9), "f4")}))
    failed = runner("bake", "--base", base, path, "-o", "out.safetensors")
    assert failed.code == 5 and "shape" in failed.err
    assert not (runner.folder / "out.safetensors").exists()


def test_an_adapter_is_no_base(runner: Runner) -> None:
    path = adapter(runner.folder, "mine", "diffusion_model.")
    failed = runner("bake", "--base", path, path, "-o", "out.safetensors")
    assert failed.code == 4 and "this is an adapter" in failed.err
    failed = runner("mix", single(runner.folder), path, "-o", "out.safetensors")
    assert failed.code == 4 and "this is a checkpoint" in failed.err


def test_inspect_says_what_was_matched(runner: Runner) -> None:
    base = single(runner.folder, "model.diffusion_model.")
    path = adapter(runner.folder, "mine", "diffusion_model.")
    (found,) = runner.ok("inspect", path, "--base", base, "--json").json
    assert found["base"]["family"] == "unknown" and found["base"]["works"]
    assert "5 of 5 modules fit" in found["base"]["reason"] and "by name" in found["base"]["reason"]
    (found,) = runner.ok("inspect", base, "--json").json
    assert found["family"] is None and found["what"] == "checkpoint"
    assert found["components"] == {"transformer": 7}


def test_checkpoints_merge_whatever_stands_before_their_names(runner: Runner) -> None:
    one = single(runner.folder, "model.diffusion_model.", seed=0, name="one")
    two = single(runner.folder, seed=3, name="two")
    adapter(runner.folder, "mine", "transformer.")
    models = (f"{one}:0.25", f"{two}:0.75", "mine.safetensors:0.5")
    found = runner.ok("merge", *models, "-o", "out.safetensors", "--json").json
    assert found["family"] == "unknown" and any("unknown" in note for note in found["notes"])
    old, other, new = read(one), read(two), read(runner.folder / "out.safetensors")
    for name, value in new.items():
        layer = name.removesuffix(".weight")
        change = 0.5 * np.matmul(*factors(1)[layer]) if layer in LAYERS else 0.0
        assert np.allclose(value, 0.25 * old[name] + 0.75 * other[name] + change, atol=1e-5), name


@pytest.mark.parametrize("make", [single, sharded, pipeline])
def test_what_is_extracted_bakes_back(runner: Runner, make: Callable[[Path], Path]) -> None:
    base = make(runner.folder)
    adapter(runner.folder, "mine", "diffusion_model.")
    end = "" if base.is_dir() else ".safetensors"
    runner.ok("bake", "--base", base, "mine.safetensors", "-o", f"tuned{end}")
    runner.ok("extract", "--tuned", f"tuned{end}", "--base", base, "--rank", "4",
              "-o", "back.safetensors")  # fmt: skip
    stems = {
        key.rpartition(".lora_")[0]
        for key in read_safetensors(runner.folder / "back.safetensors")[0]
    }
    head = "transformer." if make is pipeline else "diffusion_model."
    assert stems == {f"{head}{layer}" for layer in LAYERS}
    runner.ok("bake", "--base", base, "back.safetensors", "-o", f"again{end}")
    require_baked(base, runner.folder / f"again{end}", 1.0)


def test_a_change_that_depends_on_the_base_is_computed_with_it(runner: Runner) -> None:
    base = single(runner.folder, "model.diffusion_model.")
    path = adapter(runner.folder, "mine", "diffusion_model.")
    arrays, _ = read_safetensors(path)
    layer = "cubes.0.mixer.out_proj"
    magnitude = {f"diffusion_model.{layer}.dora_scale": np.full((16, 1), 2.0, "f4")}
    path.write_bytes(safetensors_bytes(arrays | magnitude))
    runner.ok("mix", f"{path}:0.5", "--base", base, "--rank", "16", "-o", "mixed.safetensors")
    mixed, _ = read_safetensors(runner.folder / "mixed.safetensors")
    weight = read(base)[f"{layer}.weight"].astype("f8")
    changed = weight + np.matmul(*factors(1)[layer])
    want = 0.5 * (2.0 * changed / np.linalg.norm(changed, axis=1, keepdims=True) - weight)
    up, down = (mixed[f"diffusion_model.{layer}.lora_{x}.weight"] for x in "BA")
    alpha = float(mixed.get(f"diffusion_model.{layer}.alpha", len(down))) / len(down)
    assert np.allclose(alpha * up.astype("f8") @ down, want, atol=1e-4)


def test_names_that_could_mean_two_modules_are_not_guessed() -> None:
    found = renaming(["blocks_0_q", "x"], ["a.x", "blocks.0.q", "blocks.0_q"])
    assert found("blocks_0_q") == "blocks_0_q"
    both = renaming(["transformer.blocks_0_q", "unet.blocks.0.q", "y"], ["net.blocks.0.q", "y"])
    assert both("transformer.blocks_0_q") == "transformer.blocks_0_q"
    assert both("unet.blocks.0.q") == "unet.blocks.0.q"


def test_facts_beside_a_weight_are_no_parameters(tmp_path: Path) -> None:
    stored = weights() | {
        "patcher.weight_scale": np.ones(1, "f4"),
        "patcher.comfy_quant": np.ones(3, "u1"),
    }
    path = tmp_path / "base.safetensors"
    path.write_bytes(safetensors_bytes(stored))
    found = {module for module, _ in open_checkpoint(path).slots}
    assert found == {f"transformer.{name}" for name in (*LAYERS, "cubes.0.norm", "tokens")}


def test_names_that_a_family_has_too_are_taken_as_they_are(runner: Runner) -> None:
    """An adapter of a few layers may look like one of a known family; the base says that it is not."""
    module = dict(FAMILIES["tiny"].modules())
    names = [n for n in module if n.endswith(("attn1.to_q", "attn1.to_v"))]
    stored: dict[str, Array] = {"extra.0.proj.weight": np.ones((8, 8), "f4")}
    keys: dict[str, Array] = {}
    for name in names:
        out, inputs = module[name].shape
        stored[f"{name.removeprefix('unet.')}.weight"] = np.zeros((out, inputs), "f4")
        keys[f"{name}.lora_B.weight"] = np.ones((out, 1), "f4")
        keys[f"{name}.lora_A.weight"] = np.ones((1, inputs), "f4")
    base, path = runner.folder / "base.safetensors", runner.folder / "mine.safetensors"
    base.write_bytes(safetensors_bytes(stored))
    path.write_bytes(safetensors_bytes(keys))
    assert load(path).info.detection.name == "tiny"
    done = runner.ok("bake", "--base", base, path, "-o", "out.safetensors", "--json").json
    assert done["family"] == "unknown" and done["modules"] == len(names)
    after, _ = read_safetensors(runner.folder / "out.safetensors")
    assert all((value == 1).all() for value in after.values())
    renamed = {key.replace("to_q", "to_z"): value for key, value in stored.items()}
    base.write_bytes(safetensors_bytes(renamed))
    failed = runner("bake", "--base", base, path, "-o", "other.safetensors")
    assert failed.code == 5 and "lacks" in failed.err


def test_layers_that_the_family_of_the_base_lacks_are_found_by_name(run: Runner) -> None:
    stored, _ = read_safetensors(run.folder / "base.safetensors")
    layer = "model.diffusion_model.pixels.0.first"
    stored[f"{layer}.weight"] = np.zeros((6, 4), "f4")
    (run.folder / "more.safetensors").write_bytes(safetensors_bytes(stored))

    def mine(inputs: int) -> str:
        keys = {f"diffusion_model.pixels.0.first.lora_{x}.weight": np.ones(s, "f4")
                for x, s in (("B", (6, 1)), ("A", (1, inputs)))}  # fmt: skip
        (run.folder / "mine.safetensors").write_bytes(safetensors_bytes(keys))
        return "mine.safetensors"

    done = run.ok(
        "bake", "--base", "more.safetensors", mine(4), "-o", "out.safetensors", "--json"
    ).json
    assert any("family of the adapter is unknown" in note for note in done["notes"])
    after, _ = read_safetensors(run.folder / "out.safetensors")
    assert (after[f"{layer}.weight"] == 1).all()
    run.refused(4, "bake", "--base", "more.safetensors", mine(5), "-o", "no.safetensors",
                says="different families")  # fmt: skip


def test_a_language_model_that_draws_is_named_alike_in_all_words() -> None:
    """HiDream O1: its own file, ComfyUI's, and adapters of musubi-tuner, ComfyUI and PEFT."""
    layers = [f"language_model.layers.{i}.self_attn.{x}_proj" for i in range(2) for x in "qkv"]
    others = ["visual.blocks.0.attn.qkv", "x_embedder.proj1", "final_layer2.linear"]
    for head in ("model.", "transformer."):
        base = [f"{head}{name}" for name in (*layers, *others)]
        for spelled in (
            [f"transformer.{name}" for name in layers],
            [f"model.{name}" for name in layers],
            [f"unet.{name.replace('.', '_')}" for name in layers],
        ):
            assert [renaming(spelled, base)(name) for name in spelled] == [
                f"{head}{name}" for name in layers
            ]


def test_matrices_inside_blocks_can_be_stored_anew(runner: Runner) -> None:
    """As of families that are known: norms, tables, convolutions and what is outside stay wide."""
    values = random(0)
    shapes = {
        "mix.weight": (32, 32),
        "norm.weight": (32,),
        "conv.weight": (32, 32, 3),
        "scale_shift_table": (6, 32),
    }
    tensors = {f"net.cube_blocks.{i}.{n}": values.standard_normal(s, "f4")
               for i in (0, 1) for n, s in shapes.items()}  # fmt: skip
    tensors["net.last.weight"] = values.standard_normal((32, 32), "f4")
    (runner.folder / "base.safetensors").write_bytes(safetensors_bytes(tensors))
    for storage in ("float8_e4m3", "float8-scaled", "int8", "mxfp8"):
        out = f"{storage}.safetensors"
        result = runner.ok("bake", "-b", "base.safetensors", "--storage", storage, "-o", out)
        assert f"2 tensors as {storage}" in result.out
        (found,) = runner.ok("inspect", out, "--json").json
        assert found["what"] == "checkpoint"
    says = "of families that it has a name for"
    runner.refused(
        4, "bake", "-b", "base.safetensors", "--storage", "Q8_0", "-o", "x.gguf", says=says
    )


def test_a_storage_that_no_tensor_gets_is_told(runner: Runner) -> None:
    Path("base.safetensors").write_bytes(safetensors_bytes(weights()))
    result = runner.ok("bake", "-b", "base.safetensors", "--storage", "int8", "-o", "x.safetensors")
    assert "no tensor gets the storage int8" in result.err
