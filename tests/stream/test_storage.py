"""Checkpoints stored in another form, with adapters and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loramerge as lm
from loramerge.checkpoint.quantisable import is_quantisable
from loramerge.checkpoint.storages import encodings
from loramerge.cli.main import main
from loramerge.errors import FormatError, UsageError
from loramerge.families import FAMILIES
from tests.builders.bases import folder, read_safetensors, single, unet_alone, write_safetensors
from tests.builders.flux import lora_of, native_weights
from tests.builders.gguf import data_of, quantised, values_of
from tests.stream.test_gguf import language, sample

Array = np.ndarray[Any, Any]
WIDTH = 32
# largest error, as a share of the largest weight of what shares a scale
FINEST = {"Q8_0": 1 / 254, "int8": 1 / 254, "int8-rotated": 1 / 80, "float8-scaled": 1 / 28,
          "mxfp8": 1 / 14, "float8_e4m3": 1 / 14, "nvfp4": 1 / 5, "Q4_0": 1 / 8,
          "float16": 2.0**-11, "bfloat16": 2.0**-8}  # fmt: skip


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flux") / "flux.safetensors"
    write_safetensors(
        path, {k: (v * 0.05).astype("float32") for k, v in native_weights(WIDTH).items()}
    )
    return path


def adapter_of(path: Path, size: float = 0.05) -> Path:
    names = {
        f"{block}": (rows * WIDTH, WIDTH)
        for block, rows in (("double_blocks_0_img_attn_qkv", 3), ("single_blocks_3_linear1", 7))
    }
    tensors = lora_of(names, 2, spelled="lora_unet_{}.lora_{}.weight")
    write_safetensors(
        path, {name: (array * size).astype("float32") for name, array in tensors.items()}
    )
    return path


def inside(name: str) -> bool:
    return "blocks." in name and name.endswith(".weight")


@pytest.mark.long_tail(keep=0)
@pytest.mark.parametrize("kind", FINEST)
def test_matrices_of_the_blocks_get_the_form_and_come_back(
    tmp_path: Path, flux: Path, kind: str
) -> None:
    suffix = encodings()[kind].suffix or ".safetensors"
    out, back = tmp_path / f"out{suffix}", tmp_path / "back.safetensors"
    found = lm.bake(flux, [], out, storage=kind)
    assert found.modules == 0 and found.storage is not None
    lm.bake(out, [], back, storage="float32")
    before, after = read_safetensors(flux)[0], read_safetensors(back)[0]
    assert set(before) == set(after)
    for name, array in before.items():
        error = np.abs(after[name] - array).max()
        if not inside(name) and kind not in ("float16", "bfloat16"):
            assert error <= 2.0**-11 * np.abs(array).max() * (suffix == ".gguf"), name
            continue
        assert error <= 1.15 * FINEST[kind] * np.abs(array).max(), name
        assert error > 0 or not inside(name), name


@pytest.mark.slow
def test_blocks_of_gguf_are_those_of_its_rule(tmp_path: Path, flux: Path) -> None:
    out = tmp_path / "out.gguf"
    lm.bake(flux, [], out, storage="Q8_0")
    before, after = read_safetensors(flux)[0], data_of(out)
    for name, (kind, shape, raw) in after.items():
        array = before[name]
        assert shape == array.shape
        small = array.ndim == 1 or array.size <= 1024
        assert kind == ("Q8_0" if inside(name) else "F32" if small else "F16")
        assert raw == quantised(array, kind)


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("kind", ["Q8_0", "float8-scaled", "nvfp4", "bfloat16"])
def test_an_adapter_is_added_before_rounding(tmp_path: Path, flux: Path, kind: str) -> None:
    suffix = encodings()[kind].suffix or ".safetensors"
    lora = adapter_of(tmp_path / "lora.safetensors")
    lm.bake(flux, [(lora, 1.0)], tmp_path / "sum.safetensors", strip=True)
    at_once, later = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    found = lm.bake(flux, [(lora, 1.0)], at_once, storage=kind, strip=True)
    lm.bake(tmp_path / "sum.safetensors", [], later, storage=kind, strip=True)
    assert at_once.read_bytes() == later.read_bytes()
    assert found.survived == pytest.approx(1, abs=0.1) and len(found.touched) == found.modules == 7


@pytest.mark.slow
def test_patterns_give_other_forms(tmp_path: Path, flux: Path) -> None:
    out = tmp_path / "out.gguf"
    storage = ["Q4_0", "*img_mlp*=Q8_0", "single_blocks.0.*weight=bfloat16"]
    lm.bake(flux, [], out, storage=storage)
    kinds = {name: kind for name, (kind, _, _) in data_of(out).items() if inside(name)}
    assert kinds["double_blocks.4.img_mlp.0.weight"] == "Q8_0"
    assert kinds["double_blocks.4.txt_mlp.0.weight"] == "Q4_0"
    assert kinds["single_blocks.0.linear1.weight"] == "BF16"
    with pytest.raises(UsageError, match="no tensor has such a name"):
        lm.bake(flux, [], tmp_path / "x.gguf", storage=["Q8_0", "nothing*=Q4_0"])


def test_scales_and_marks_are_those_of_comfyui(tmp_path: Path, flux: Path) -> None:
    out = tmp_path / "out.safetensors"
    lm.bake(flux, [], out, storage=["float8-scaled", "*img_mod*=int8-rotated"])
    tensors = read_safetensors(out)[0]
    stem = "double_blocks.0.img_attn.qkv"
    assert bytes(tensors[f"{stem}.comfy_quant"]).strip() == b'{"format": "float8_e4m3fn"}'
    assert tensors[f"{stem}.weight_scale"].shape == ()
    assert b'"convrot_groupsize": 16' in bytes(tensors["double_blocks.0.img_mod.lin.comfy_quant"])
    assert "img_in.comfy_quant" not in tensors


@pytest.mark.slow
def test_the_output_repeats(tmp_path: Path, flux: Path) -> None:
    lora, out = adapter_of(tmp_path / "lora.safetensors"), tmp_path / "out.gguf"
    options = ["bake", "-b", str(flux), str(lora), "--storage", "Q8_0", "--storage", "*mlp*=Q4_0"]
    assert main([*options, "-o", str(out)]) == 0
    assert main(["run", str(out), "--input", f"flux={flux}"]) == 0


REFUSALS: dict[str, tuple[Any, list[str], str]] = {
    "unknown": (lambda path: single(path, "sd21").path, ["q9"], "not a storage"),
    "two": (lambda path: single(path, "sd21").path, ["Q8_0", "Q4_0"], "two storages"),
    "two files": (lambda path: single(path, "sd21").path, ["Q8_0", "*=nvfp4"], "no file holds"),
    "folder": (lambda path: folder(path.with_suffix(""), "sd21").path, ["int8"], "single files"),
    "more": (lambda path: single(path, "sd21").path, ["Q8_0"], "the denoiser alone"),
    "diffusers": (lambda path: unet_alone(path, "sd21", "", "F32").path, ["Q8_0"], ""),
    "language": (
        lambda path: language(path.with_suffix(".gguf"), "Q8_0"), ["float8-scaled"], "as GGUF",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_say_why_and_write_nothing(tmp_path: Path, case: str) -> None:
    make, storage, message = REFUSALS[case]
    base, out = make(tmp_path / "base.safetensors"), tmp_path / "out"
    if not message:
        assert lm.bake(base, [], out.with_suffix(".gguf"), storage=storage).storage
        return
    suffix = "" if case == "folder" else ".safetensors"
    with pytest.raises((FormatError, UsageError), match=message):
        lm.bake(
            base, [], out.with_suffix(".gguf" if "Q8_0" in storage else suffix), storage=storage
        )
    assert not list(tmp_path.glob("out*"))


def test_language_models_follow_llama_cpp(tmp_path: Path) -> None:
    path, out = language(tmp_path / "base.gguf", "F16"), tmp_path / "out.gguf"
    lm.bake(path, [(sample(), 1.0)], out, storage="Q4_K")
    before, after = data_of(path), data_of(out)
    assert after["token_embd.weight"][0] == "Q6_K"  # it is the last layer, too
    assert after["output_norm.weight"] == before["output_norm.weight"]
    assert {v[0] for name, v in after.items() if "blk." in name} == {"Q4_K"}
    kind, _, raw = after["blk.0.ffn_gate.weight"]
    rest = values_of(kind, raw) - values_of(*before["blk.0.ffn_gate.weight"][::2])
    assert np.abs(rest).max() < 0.02


# of tools/lcpp.patch in ComfyUI-GGUF: parts of the names of matrices that stay wide
_EMBEDDERS = ("t_embedder.", "x_embedder.", "final_layer.")
_STABLE = ("time_embed.", "label_emb.", "!input_blocks.0.0.weight", "!out.2.weight")
_FLUX = ("txt_in.", "img_in.", "time_in.", "vector_in.", "guidance_in.", "final_layer.")
WIDE = {
    "flux": _FLUX, "hyvid": _FLUX, "sd1": _STABLE, "sdxl": _STABLE,
    "sd3": (*_EMBEDDERS, "context_embedder.", "y_embedder."),
    "aura": ("t_embedder.", "init_x_linear.", "modF.1.", "cond_seq_linear.", "!final_linear.weight"),
    "ltxv": ("adaln_single.", "caption_projection.", "patchify_proj.", "proj_out."),
    "wan": ("patch_embedding.", "text_embedding.", "time_projection.", "time_embedding.", "img_emb.",
            "head."),
    "hidream": (*_EMBEDDERS, "p_embedder.", ".ff_i.gate.weight", "caption_projection."),
    "cosmos": (*_EMBEDDERS, "p_embedder.", "t_embedding_norm.", "pos_embedder."),
    "lumina2": (*_EMBEDDERS, "cap_embedder.", "context_refiner.", "noise_refiner."),
}  # fmt: skip
# layers of models that are younger than its lists, which would quantise what others keep
YOUNGER = ("distilled_guidance_layer.", "stream_modulation", "face_adapter.", "nerf_image_embedder.",
           "nerf_final_layer", "casual_audio_encoder.", "audio_injector.")  # fmt: skip


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("name", [f.name for f in FAMILIES.values() if f.gguf in WIDE])
def test_what_stays_wide_is_what_comfyui_gguf_keeps(name: str) -> None:
    family = FAMILIES[name]
    (network,) = (c for c in family.components if c.name in ("unet", "transformer"))
    spelling = next(s for s in family.spellings[network.name] if s.layout != "diffusers")
    checkpoint: Any = type("Opened", (), {"candidates": (family,)})
    convolutions = family.gguf.startswith("sd")
    for module, parameter, slot in spelling.slots(network):
        stored = slot.tensor.removeprefix(spelling.prefix)
        layers = ("linear", "conv") if convolutions else ("linear",)
        if parameter != "weight" or module.layer not in layers or module.path.startswith(YOUNGER):
            continue
        if "stream_modulation" in module.path:
            continue
        kept = any(
            stored == part[1:] if part[0] == "!" else part in stored for part in WIDE[family.gguf]
        )
        held = [(f"{network.name}.{module.path}", "weight")]
        ours = is_quantisable(checkpoint, held, [], convolutions=convolutions)
        assert ours != kept, stored


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32"])
def test_norms_and_biases_of_gguf_stay_float32(tmp_path: Path, kind: str) -> None:
    """Llama.cpp computes with no other type of them, whether the form or the type is asked for."""
    types = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
    out, again = tmp_path / "out.gguf", tmp_path / "again.gguf"
    lm.bake(language(tmp_path / "base.gguf", "Q8_0"), [], out, storage=kind)
    lm.bake(out, [], again, dtype=kind)
    assert out.read_bytes()[-64:] == again.read_bytes()[-64:]
    for path in (out, again):
        found = {name: (one[0], len(one[1])) for name, one in data_of(path).items()}
        assert found["output_norm.weight"] == ("F32", 1)
        assert {form for form, axes in found.values() if axes > 1} == {types[kind]}


def test_small_tensors_of_a_new_gguf_file_of_floats_are_float32(tmp_path: Path, flux: Path) -> None:
    lm.bake(flux, [], tmp_path / "out.gguf", storage="bfloat16")
    found = data_of(tmp_path / "out.gguf")
    assert {form for form, shape, _ in found.values() if len(shape) < 2} == {"F32"}
    assert found["single_blocks.3.linear1.weight"][0] == "BF16"
