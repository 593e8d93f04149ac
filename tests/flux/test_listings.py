"""Real adapters of Flux, key by key: nothing unknown, and the same change in every spelling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loramerge.adapter.encode import choose_dialect
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from tests.builders.flux import LISTINGS, SPELLINGS, dense, filled, listing, meaning, worst, write
from tests.builders.samples import read_safetensors

# comfyui keeps no alpha beside the factors, so what kohya says there comes back rounded
WAYS = [
    (name, through)
    for name in LISTINGS
    for through in ("kohya", "comfyui", "onetrainer")
    if (LISTINGS[name], through) != ("kohya", "comfyui")
]


def real(data: Path, folder: Path, name: str) -> Path:
    return write(filled(listing(data, name)), folder / "real.safetensors")


@pytest.mark.parametrize("name", LISTINGS)
def test_every_key_is_known_and_means_what_it_says(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    path = real(shared_data, tmp_path, name)
    adapter = load(path).require_sound()
    account = adapter.info.account
    assert adapter.family is not None and adapter.family.name == "flux1"
    assert adapter.info.dialects == {LISTINGS[name]: len(adapter.deltas)}
    assert not account.unknown and not account.carried and not adapter.info.problems
    assert sorted(account.used) == sorted(read_safetensors(path)[0])
    assert worst(dense(adapter), meaning(read_safetensors(path)[0])) < 1e-12


@pytest.mark.long_tail(keep=4)
@pytest.mark.parametrize("to", SPELLINGS)
@pytest.mark.parametrize("name", LISTINGS)
def test_every_spelling_says_the_same(
    shared_data: Path, tmp_path: Path, name: str, to: str
) -> None:
    path = real(shared_data, tmp_path, name)
    save(load(path), tmp_path / "out.safetensors", to=to)
    tensors, _ = read_safetensors(tmp_path / "out.safetensors")
    again = load(tmp_path / "out.safetensors").require_sound()
    assert not again.info.account.unknown and not again.info.problems
    expected = meaning(read_safetensors(path)[0])
    # where no alpha is kept beside the factors, it goes into up, which is rounded once
    folded = to in ("diffusers", "comfyui") and LISTINGS[name] == "kohya"
    rounded = 1e-3 if folded else 1e-12
    assert worst(meaning(tensors), expected) < rounded
    assert worst(dense(again), expected) < rounded


@pytest.mark.long_tail(keep=3)
@pytest.mark.parametrize(("name", "through"), WAYS)
def test_the_way_back_gives_the_same_bytes(
    shared_data: Path, tmp_path: Path, name: str, through: str
) -> None:
    """Through any dialect that stores what the file does, fused or split."""
    path = real(shared_data, tmp_path, name)
    save(load(path), tmp_path / "there.safetensors", to=through)
    save(load(tmp_path / "there.safetensors"), tmp_path / "back.safetensors", to=LISTINGS[name])
    before, _ = read_safetensors(path)
    after, _ = read_safetensors(tmp_path / "back.safetensors")
    assert before.keys() == after.keys()
    assert all(
        before[key].dtype == after[key].dtype and before[key].tobytes() == after[key].tobytes()
        for key in before
    )


def test_missing_parts_are_rows_of_zeros(shared_data: Path, tmp_path: Path) -> None:
    """Adapters without proj_mlp exist; linear1 then holds three parts, and gives three back."""
    shapes = listing(shared_data, "invoke_flux_lora_diffusers_format")
    kept = {key: shape for key, shape in shapes.items() if "proj_mlp" not in key}
    path = write(filled(kept), tmp_path / "a.safetensors")
    save(load(path), tmp_path / "b.safetensors", to="kohya")
    tensors, _ = read_safetensors(tmp_path / "b.safetensors")
    assert tensors["lora_unet_single_blocks_0_linear1.lora_up.weight"].shape == (224, 96)
    assert not tensors["lora_unet_single_blocks_0_linear1.lora_up.weight"][96:].any()
    assert worst(meaning(tensors), meaning(read_safetensors(path)[0])) < 1e-12
    save(load(tmp_path / "b.safetensors"), tmp_path / "c.safetensors", to="diffusers")
    back, _ = read_safetensors(tmp_path / "c.safetensors")
    assert back.keys() == kept.keys()
    first, _ = read_safetensors(path)
    assert all(np.array_equal(back[key], first[key]) for key in back)


def test_block_diagonal_files_of_trainers_are_split_at_their_own_rank(tmp_path: Path) -> None:
    """sd-scripts trains q, k and v apart and saves alpha as it was, over three times the rank."""
    rng = np.random.default_rng(0)
    up = np.zeros((96, 6), "float32")
    for i in range(3):
        up[32 * i : 32 * i + 32, 2 * i : 2 * i + 2] = rng.standard_normal((32, 2))
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {
        f"{stem}.lora_up.weight": up,
        f"{stem}.lora_down.weight": rng.standard_normal((6, 32)).astype("float32"),
        f"{stem}.alpha": np.array(3.0, "float32"),
    }
    path = write(tensors, tmp_path / "a.safetensors")
    save(load(path), tmp_path / "b.safetensors", to="onetrainer")
    split, _ = read_safetensors(tmp_path / "b.safetensors")
    head = "lora_transformer_transformer_blocks_0_attn_to_"
    assert {split[f"{head}{x}.lora_down.weight"].shape for x in "qkv"} == {(2, 32)}
    assert {float(split[f"{head}{x}.alpha"]) for x in "qkv"} == {1.0}
    assert worst(meaning(split), meaning(tensors)) < 1e-12
    wrong = split | {f"{head}{x}.alpha": np.array(3.0) for x in "qkv"}  # alpha / r, not alpha / 3r
    assert worst(meaning(wrong), meaning(tensors)) > 0.5
    save(load(tmp_path / "b.safetensors"), tmp_path / "c.safetensors", to="kohya")
    back, _ = read_safetensors(tmp_path / "c.safetensors")
    assert back.keys() == tensors.keys()
    assert all(back[key].tobytes() == tensors[key].tobytes() for key in back)


@pytest.mark.parametrize("wrong", ["q and v", "halves"])
def test_rows_in_another_order_would_be_seen(tmp_path: Path, wrong: str) -> None:
    rng = np.random.default_rng(1)
    stem, rows = {
        "q and v": ("lora_unet_double_blocks_3_txt_attn_qkv", 96),
        "halves": ("lora_unet_final_layer_adaLN_modulation_1", 64),
    }[wrong]
    tensors = {
        f"{stem}.lora_up.weight": rng.standard_normal((rows, 4)).astype("float32"),
        f"{stem}.lora_down.weight": rng.standard_normal((4, 32)).astype("float32"),
    }
    save(
        load(write(tensors, tmp_path / "a.safetensors")), tmp_path / "b.safetensors", to="diffusers"
    )
    right, _ = read_safetensors(tmp_path / "b.safetensors")
    assert worst(meaning(right), meaning(tensors)) < 1e-12
    if wrong == "halves":
        key = "transformer.norm_out.linear.lora_B.weight"
        changed = {**right, key: tensors[f"{stem}.lora_up.weight"]}
    else:
        q, v = (f"transformer.transformer_blocks.3.attn.add_{x}_proj.lora_B.weight" for x in "qv")
        changed = {**right, q: right[v], v: right[q]}
    assert worst(meaning(changed), meaning(tensors)) > 0.5
    save(load(tmp_path / "b.safetensors"), tmp_path / "c.safetensors", to="kohya")
    back, _ = read_safetensors(tmp_path / "c.safetensors")
    assert np.array_equal(back[f"{stem}.lora_up.weight"], tensors[f"{stem}.lora_up.weight"])


XLABS = {
    "double_blocks.0.processor.qkv_lora1": ("double_blocks.0.img_attn.qkv", 96),
    "double_blocks.0.processor.qkv_lora2": ("double_blocks.0.txt_attn.qkv", 96),
    "double_blocks.18.processor.proj_lora1": ("double_blocks.18.img_attn.proj", 32),
    "double_blocks.18.processor.proj_lora2": ("double_blocks.18.txt_attn.proj", 32),
    "single_blocks.37.processor.qkv_lora": ("single_blocks.37.linear1", 96),
    "single_blocks.0.processor.proj_lora": ("single_blocks.0.linear2", 32),
}
ONETRAINER = {
    "clip_l.text_model.encoder.layers.0.mlp.fc1": "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    "t5.encoder.block.2.layer.1.DenseReluDense.wo":
        "text_encoder_2.encoder.block.2.layer.1.DenseReluDense.wo",
    "transformer.double_blocks.0.img_attn.qkv.1": "transformer.transformer_blocks.0.attn.to_k",
    "transformer.single_blocks.2.linear1.3": "transformer.single_transformer_blocks.2.proj_mlp",
    "transformer.single_blocks.2.linear2": "transformer.single_transformer_blocks.2.proj_out",
    "transformer.img_in.proj": "transformer.x_embedder",
}  # fmt: skip


def test_xlabs_holds_the_first_rows_of_linear1(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    tensors = {}
    for stem, (_, rows) in XLABS.items():
        tensors[f"{stem}.down.weight"] = rng.standard_normal((4, 32)).astype("float32")
        tensors[f"{stem}.up.weight"] = rng.standard_normal((rows, 4)).astype("float32")
    path = write(tensors, tmp_path / "a.safetensors")
    adapter = load(path).require_sound()
    assert adapter.info.dialects == {"xlabs": 6} and not adapter.info.account.unknown
    save(adapter, tmp_path / "b.safetensors", to="comfyui")
    native, _ = read_safetensors(tmp_path / "b.safetensors")
    for stem, (name, rows) in XLABS.items():
        up = native[f"diffusion_model.{name}.lora_B.weight"]
        assert np.array_equal(up[:rows], tensors[f"{stem}.up.weight"]) and not up[rows:].any()
    save(load(tmp_path / "b.safetensors"), tmp_path / "c.safetensors", to="xlabs")
    back, _ = read_safetensors(tmp_path / "c.safetensors")
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[key], tensors[key]) for key in back)


def test_onetrainer_numbers_the_parts_of_fused_layers(tmp_path: Path) -> None:
    tensors = {}
    for i, stem in enumerate(ONETRAINER):
        rows = 128 if stem.endswith(".3") else 32
        tensors[f"{stem}.lora_down.weight"] = np.full((2, 32), 1.0 + i, "float32")
        tensors[f"{stem}.lora_up.weight"] = np.ones((rows, 2), "float32")
    adapter = load(write(tensors, tmp_path / "a.safetensors")).require_sound()
    assert (
        adapter.info.dialects == {"onetrainer": len(ONETRAINER)}
        and not adapter.info.account.unknown
    )
    assert [s.name for s in adapter.deltas] == list(ONETRAINER.values())


def test_control_adapters_of_bfl_are_recognised_whole(tmp_path: Path) -> None:
    """Biases of up are a kind of their own; norms are replaced."""
    tensors = {
        "double_blocks.0.img_attn.qkv.lora_A.weight": np.ones((4, 32), "float32"),
        "double_blocks.0.img_attn.qkv.lora_B.weight": np.ones((96, 4), "float32"),
        "double_blocks.0.img_attn.qkv.lora_B.bias": np.ones(96, "float32"),
        "double_blocks.0.img_attn.norm.key_norm.scale": np.ones(128, "float32"),
        "img_in.lora_A.weight": np.ones((4, 32), "float32"),
        "img_in.lora_B.weight": np.ones((32, 4), "float32"),
    }
    adapter = load(write(tensors, tmp_path / "a.safetensors"))
    assert adapter.info.dialects == {"bare": 3} and not adapter.info.account.unknown
    kinds = {site.name.rpartition(".")[2]: delta.kind for site, delta in adapter.deltas.items()}
    assert kinds["norm_k"] == "set" and kinds["x_embedder"] == "lora"


def test_a_mangled_export_means_what_its_sibling_does(tmp_path: Path) -> None:
    flat = "lora_unet_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    dotted = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    up, down = np.ones((320, 4), "float32"), np.full((4, 768), 0.5, "float32")
    mangled = {f"{flat}_lora_down.weight": down, f"{flat}_lora_up.weight": up}
    plain = {f"{dotted}.lora.down.weight": down, f"{dotted}.lora.up.weight": up}
    first = load(write(mangled, tmp_path / "a.safetensors")).require_sound()
    second = load(write(plain, tmp_path / "b.safetensors")).require_sound()
    assert not first.info.account.unknown and list(first.deltas) == list(second.deltas)
    save(first, tmp_path / "c.safetensors")
    assert read_safetensors(tmp_path / "c.safetensors")[0].keys() == mangled.keys()


def test_a_module_spelled_fused_and_split_is_an_error(tmp_path: Path) -> None:
    tensors = {
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": np.ones((2, 32), "float32"),
        "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": np.ones((96, 2), "float32"),
        "transformer.transformer_blocks.0.attn.to_k.lora_A.weight": np.ones((2, 32), "float32"),
        "transformer.transformer_blocks.0.attn.to_k.lora_B.weight": np.ones((32, 2), "float32"),
    }
    adapter = load(write(tensors, tmp_path / "a.safetensors"))
    assert [p.code for p in adapter.info.problems] == ["spelled-twice", "missing-partner"]


@pytest.mark.parametrize(
    ("program", "dialect"),
    [("comfyui", "comfyui"), ("a1111", "kohya"), ("forge", "kohya"), ("kohya", "kohya"),
     ("diffusers", "diffusers"), ("invokeai", "kohya")],
)  # fmt: skip
def test_programs_read_flux_in_dialects_of_their_own(
    shared_data: Path, tmp_path: Path, program: str, dialect: str
) -> None:
    adapter = load(real(shared_data, tmp_path, "invoke_flux_lora_diffusers_format"))
    assert choose_dialect(program, [adapter]).name == dialect
    opaque = {"diffusion_model.layers.0.x.lora_A.weight": np.ones((1, 2), "float32"),
              "diffusion_model.layers.0.x.lora_B.weight": np.ones((2, 1), "float32")}  # fmt: skip
    other = load(write(opaque, tmp_path / "other.safetensors"))
    assert other.info.dialects == {"comfyui": 1}
    assert choose_dialect("comfyui", [other]).name == "comfyui"
    save(other, tmp_path / "again.safetensors", to="comfyui")
    assert read_safetensors(tmp_path / "again.safetensors")[0].keys() == opaque.keys()
