"""Every well-formed group of tensors is a module, also where its family or no family knows it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from loramerge.adapter import Delta
from loramerge.adapter.load import load
from loramerge.errors import NotExpressible
from tests.builders.samples import Array, relative, safetensors_bytes
from tests.dialects.test_classes_of_diffusers import CLASSES

Shapes = Mapping[str, tuple[int, int]]
_PEFT = (".lora_A.weight", ".lora_B.weight")
_KOHYA = (".lora_down.weight", ".lora_up.weight")


def tensors_of(stems: Shapes, ends: tuple[str, str] = _PEFT, seed: int = 0) -> dict[str, Array]:
    """Factors of rank 1 for stems and shapes."""
    random = np.random.default_rng(seed)
    made = {}
    for stem, (rows, columns) in stems.items():
        made[stem + ends[0]] = random.standard_normal((1, columns)).astype("float16")
        made[stem + ends[1]] = random.standard_normal((rows, 1)).astype("float16")
    return made


def write(path: Path, tensors: Mapping[str, Array]) -> Path:
    path.write_bytes(safetensors_bytes(tensors))
    return path


def _blocks(head: str, count: int, leaves: Shapes) -> dict[str, tuple[int, int]]:
    return {f"{head}{i}.{leaf}": shape for i in range(count) for leaf, shape in leaves.items()}


VACE = {
    **_blocks("diffusion_model.blocks.", 3, {"self_attn.q": (5120, 5120)}),
    **_blocks("diffusion_model.vace_blocks.", 1, {"self_attn.q": (5120, 5120)}),
}
CHROMA = {
    **_blocks("diffusion_model.single_blocks.", 4, {"linear1": (21504, 3072)}),
    **_blocks("diffusion_model.distilled_guidance_layer.layers.", 1, {"in_layer": (5120, 5120)}),
}
RADIANCE = CHROMA | _blocks("diffusion_model.nerf_blocks.", 1, {"param_generator": (49152, 3072)})
S2V = {
    **_blocks("diffusion_model.blocks.", 3, {"self_attn.q": (5120, 5120)}),
    **_blocks("diffusion_model.audio_injector.injector.", 1, {"q": (5120, 5120)}),
}
# layers that no class has
FUTURE_WAN = VACE | _blocks("diffusion_model.touch_injector.injector.", 1, {"q": (5120, 5120)})
FUTURE_CHROMA = CHROMA | _blocks("diffusion_model.touch_blocks.", 1, {"generator": (49152, 3072)})
ANIMA = {
    **{f"lora_unet_blocks_{i}_self_attn_q_proj": (2048, 2048) for i in range(2)},
    **{f"lora_te_layers_{i}_self_attn_q_proj": (2048, 1024) for i in range(2)},
}
IDEOGRAM = _blocks(
    "diffusion_model.layers.", 3, {"attention.qkv": (13824, 4608), "attention.o": (4608, 4608)}
)
_AURAFLOW = CLASSES["AuraFlowTransformer2DModel"]
AURAFLOW = {f"transformer.{path}": shape for path, shape in _AURAFLOW.items()}
CASES: dict[str, tuple[str | None, dict[str, tuple[int, int]], tuple[str, str]]] = {
    "vace": ("wan", VACE, _PEFT),
    "chroma": ("chroma", CHROMA, _PEFT),
    "radiance": ("chroma", RADIANCE, _PEFT),
    "s2v": ("wan", S2V, _PEFT),
    "future wan": ("wan", FUTURE_WAN, _PEFT),
    "future chroma": ("chroma", FUTURE_CHROMA, _PEFT),
    "anima": ("anima", ANIMA, _KOHYA),
    "ideogram": ("ideogram4", IDEOGRAM, _PEFT),
    "auraflow": ("auraflow", AURAFLOW, _PEFT),
}


def _applied(delta: Delta) -> Array:
    """ΔW · x of a vector x; a whole ΔW of these sizes is hundreds of megabytes."""
    up, down = delta.factors("float64")
    return up @ (down @ np.random.default_rng(0).standard_normal(down.shape[1]))


@pytest.mark.parametrize("case", CASES)
def test_all_modules_are_read_and_written_again(case: str, tmp_path: Path) -> None:
    import loramerge as lm

    family, stems, ends = CASES[case]
    tensors = tensors_of(stems, ends)
    adapter = load(write(tmp_path / "a.safetensors", tensors))
    assert adapter.info.detection.name == family
    assert len(adapter) == len(stems)
    assert not adapter.info.account.unknown
    half = lm.resize(lm.mix([(adapter, 0.5)]), rank=1)
    lm.save(half, tmp_path / "half.safetensors")
    found = load(tmp_path / "half.safetensors")
    assert {key for key in found.info.order if not key.endswith(".alpha")} == tensors.keys()
    for name in adapter:
        assert relative(_applied(found[name]), 0.5 * _applied(adapter[name])) < 2e-3


@pytest.mark.parametrize("case", ["future wan", "future chroma"])
def test_modules_that_the_family_lacks_are_not_written_in_another_dialect(
    case: str, tmp_path: Path
) -> None:
    import loramerge as lm

    family, stems, ends = CASES[case]
    adapter = load(write(tmp_path / "a.safetensors", tensors_of(stems, ends)))
    with pytest.raises(NotExpressible, match="only be written in the dialect of the file"):
        lm.save(adapter, tmp_path / "b.safetensors", dialect="diffusers")
    assert any(p.code == "unknown-module" for p in adapter.info.problems)
    assert family in str(next(p.message for p in adapter.info.problems))


KREA = {"comfyui": "diffusion_model.blocks.{}.attn.wq", "kohya": "lora_unet_blocks_{}_attn_wq"}


def _krea(dialect: str, numbers: range, folder: Path, *, alpha: bool = False) -> Path:
    stems = {KREA[dialect].format(i): (160, 160) for i in numbers}
    ends = _PEFT if dialect == "comfyui" else _KOHYA
    tensors = tensors_of(stems, ends, seed=len(dialect))
    if alpha:
        tensors |= {f"{stem}.alpha": np.array(1.0, "float32") for stem in stems}
    return write(folder / f"{dialect}.safetensors", tensors)


@pytest.mark.parametrize("alpha", [True, False])
@pytest.mark.parametrize("target", ["comfyui", "kohya", None])
def test_one_module_of_no_family_in_two_dialects_is_one(
    target: str | None, alpha: bool, tmp_path: Path
) -> None:
    import loramerge as lm

    a = load(_krea("comfyui", range(3), tmp_path))
    b = load(_krea("kohya", range(3), tmp_path, alpha=alpha))
    mixed = lm.mix([(a, 0.5), (b, 0.25)])
    assert len(mixed) == 3
    lm.save(mixed, tmp_path / "c.safetensors", dialect=target)
    found = load(tmp_path / "c.safetensors")
    assert found.info.dialects.keys() <= KREA.keys()
    stems = {key.partition(".lora")[0].partition(".alpha")[0] for key in found.info.order}
    spelled = KREA[found.info.dialect or ""]
    assert stems == {spelled.format(i) for i in range(3)}
    for one, other, whole in zip(a, b, found, strict=True):
        wanted = 0.5 * a[one].dense() + 0.25 * b[other].dense()
        assert relative(found[whole].dense(), wanted) < 2e-3


def test_a_dialect_that_lacks_a_module_of_no_family_is_refused(tmp_path: Path) -> None:
    import loramerge as lm

    a = load(_krea("comfyui", range(3), tmp_path))
    b = load(_krea("kohya", range(4), tmp_path))
    mixed = lm.mix([(a, 1.0), (b, 1.0)])
    assert len(mixed) == 4
    with pytest.raises(NotExpressible):
        lm.save(mixed, tmp_path / "c.safetensors", dialect="comfyui")
    lm.save(mixed, tmp_path / "c.safetensors")  # in the dialect that has words for all
    assert load(tmp_path / "c.safetensors").info.dialect == "kohya"


@pytest.mark.parametrize("head", ["", "model.diffusion_model."])
@pytest.mark.parametrize("flat", [False, True])
def test_a_module_that_the_family_lacks_is_baked_by_its_name(
    head: str, flat: bool, tmp_path: Path
) -> None:
    import loramerge as lm
    from tests.builders.bases import read_safetensors, write_safetensors
    from tests.families.test_modulation import wan_base

    base = wan_base()
    base |= {"vace_blocks.0.self_attn.q.weight": np.ones((16, 16), "float32")}
    write_safetensors(tmp_path / "base.safetensors", {head + key: t for key, t in base.items()})
    blocks = (*(f"blocks.{i}" for i in range(4)), "vace_blocks.0")
    names = [f"{block}.self_attn.q" for block in blocks]
    stems = [
        "lora_unet_" + name.replace(".", "_") if flat else f"diffusion_model.{name}"
        for name in names
    ]
    tensors = tensors_of(dict.fromkeys(stems, (16, 16)), _KOHYA if flat else _PEFT)
    adapter = load(write(tmp_path / "a.safetensors", tensors))
    lm.bake(tmp_path / "base.safetensors", [(adapter, 0.5)], tmp_path / "baked.safetensors")
    baked, _ = read_safetensors(tmp_path / "baked.safetensors")
    for name, delta in zip(names, adapter.values(), strict=True):
        change = baked[f"{head}{name}.weight"] - base[f"{name}.weight"]
        assert relative(change, 0.5 * delta.dense()) < 1e-6


def test_the_keys_of_a_second_transformer_are_kept(tmp_path: Path) -> None:
    import loramerge as lm

    stems = {
        f"{network}.blocks.{i}.attn1.to_q": (16, 16)
        for network in ("transformer", "transformer_2")
        for i in range(2)
    }
    adapter = load(write(tmp_path / "a.safetensors", tensors_of(stems)))
    assert adapter.info.detection.name == "wan"
    assert sorted(adapter) == sorted(stems)
    assert adapter.info.dialects == {"diffusers": 4}
    mixed = lm.mix([(adapter, 0.5)])
    lm.save(mixed, tmp_path / "mixed.safetensors")
    assert sorted(load(tmp_path / "mixed.safetensors")) == sorted(stems)
    with pytest.raises(NotExpressible, match="kohya files cannot store"):
        lm.save(mixed, tmp_path / "kohya.safetensors", dialect="kohya")


def test_modules_without_a_prefix_stay_beside_those_of_a_dialect(tmp_path: Path) -> None:
    """Nothing but the ends of their keys says a dialect, and not which one."""
    import loramerge as lm

    stems = {f"transformer.transformer_blocks.{i}.attn.to_q": (192, 192) for i in range(3)}
    stems |= {"image_proj.proj": (192, 192), "text_encoder_9.layers.0.q": (192, 192)}
    tensors = tensors_of(stems)
    adapter = load(write(tmp_path / "a.safetensors", tensors)).require_sound()
    assert len(adapter) == len(stems)
    for name, made in {
        "half": lm.mix([(adapter, 0.5)]),
        "small": lm.resize(lm.mix([(adapter, 1.0), (adapter, 0.5)]), rank=1),
    }.items():
        lm.save(made, tmp_path / f"{name}.safetensors")
        found = load(tmp_path / f"{name}.safetensors")
        assert set(found.info.order) == tensors.keys() and set(found) == set(adapter)
    with pytest.raises(NotExpressible, match="kohya files cannot store"):
        lm.save(adapter, tmp_path / "k.safetensors", dialect="kohya")
