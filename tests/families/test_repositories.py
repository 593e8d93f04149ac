"""Families of which diffusers has no class: against the code that has one, and their nearest relatives.

    LORAMERGE_OMNIGEN2=~/OmniGen2 LORAMERGE_HIDREAM_O1=~/HiDream-O1-Image LORAMERGE_COMFYUI=~/ComfyUI \\
        python -m pytest -n 0 tests/families/test_repositories.py

compares every name and shape with the classes in these checkouts. Without them, all but the layers that
these networks alone have is compared with the installed packages.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.families import FAMILIES, Family
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
from tests.builders.samples import Array, read_safetensors, safetensors_bytes, sparse_safetensors
from tests.families.test_adapters import changes, factors, network, same, write
from tests.families.test_transformers import told

_SCRIPT = Path(__file__).parents[1] / "clients" / "readers" / "networks.py"
_QWEN3_VL = {
    "text_config": {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "head_dim": 128,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 151936,
    },
    "vision_config": {
        "hidden_size": 1152, "intermediate_size": 4304, "depth": 27, "num_heads": 16,
        "patch_size": 16, "num_position_embeddings": 2304, "out_hidden_size": 4096,
        "deepstack_visual_indexes": [8, 16, 24],
    },
    "tie_word_embeddings": False,
}  # fmt: skip
_LUMINA2 = {
    "hidden_size": 2520, "num_layers": 32, "num_attention_heads": 21, "num_kv_heads": 7,
    "axes_dim_rope": (40, 40, 40), "cap_feat_dim": 2048,
}  # fmt: skip
# of each family, the layers that it alone has
OWN = {
    "omnigen2": r"ref_image_|image_index_embedding",
    "hidream-o1": r"model\.(?:t_embedder1|x_embedder|final_layer2)\.",
}


def _shared(name: str) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the network of an installed package that a family is made after."""
    torch: Any = pytest.importorskip("torch")
    library: Any = pytest.importorskip("diffusers" if name == "omnigen2" else "transformers")
    with torch.device("meta"):
        if name == "omnigen2":
            model = library.Lumina2Transformer2DModel(**_LUMINA2)
        else:
            config = library.Qwen3VLConfig(**_QWEN3_VL)
            model = library.Qwen3VLForConditionalGeneration(config)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


@pytest.mark.parametrize("name", OWN)
def test_what_a_family_shares_has_the_names_and_shapes_of_an_installed_class(name: str) -> None:
    found = told(FAMILIES[name].components[0])
    own = {key for key in found if re.match(OWN[name], key)}
    assert {key: shape for key, shape in found.items() if key not in own} == _shared(name)
    assert own


def test_the_third_refiner_of_omnigen_is_like_the_first() -> None:
    found = told(FAMILIES["omnigen2"].components[0])
    third = {k: s for k, s in found.items() if k.startswith("ref_image_refiner")}
    first = {k: s for k, s in found.items() if k.startswith("noise_refiner")}
    assert third == {key.replace("noise", "ref_image"): shape for key, shape in first.items()}


class Checkout(NamedTuple):
    """A network of a program that a variable of the environment names.

    Args:
        program, network: as `readers.networks` calls them.
        others: pattern of the tensors of other networks of the family.
        other_sizes: tensors that have another shape there.
    """

    variable: str
    program: str
    family: str
    network: str = ""
    others: str = "$^"
    other_sizes: frozenset[str] = frozenset()


_OF_LATENTS = r"(?:img_in|final_layer\.linear)\."
CHECKOUTS = (
    Checkout("LORAMERGE_OMNIGEN2", "omnigen2", "omnigen2"),
    Checkout("LORAMERGE_COMFYUI", "comfyui", "omnigen2", "omnigen2"),
    Checkout("LORAMERGE_HIDREAM_O1", "hidream_o1", "hidream-o1"),
    Checkout("LORAMERGE_COMFYUI", "comfyui", "chroma", "chroma-radiance",
             rf"{_OF_LATENTS}|nerf_final_layer_conv"),
    Checkout("LORAMERGE_COMFYUI", "comfyui", "chroma", "chroma-radiance-conv",
             rf"{_OF_LATENTS}|nerf_final_layer\."),
    # it sees no image, and so has fewer channels
    Checkout("LORAMERGE_COMFYUI", "comfyui", "wan", "wan-s2v",
             r".*_img\.|img_emb|vace_|face_adapter|pose_patch", frozenset({"patch_embedding.weight"})),
)  # fmt: skip


def original(family: Family) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of the original single file."""
    found: dict[str, tuple[int, ...]] = {}
    (spelling, *_) = family.spellings["transformer"]
    for module, parameter, slot in spelling.slots(family.components[0]):
        rows, *rest = module.shape if parameter == "weight" else module.shape[:1]
        found[slot.tensor] = (found.get(slot.tensor, (0,))[0] + rows, *rest)
    return found


@pytest.mark.peers
@pytest.mark.parametrize("case", CHECKOUTS, ids=lambda case: f"{case.program}-{case.network}")
def test_the_network_has_the_names_and_shapes_of_the_class_in_a_checkout(
    case: Checkout, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    checkout = os.environ.get(case.variable, "")
    if not checkout:
        pytest.skip(f"{case.variable} names no checkout")
    report = tmp_path / "shapes.json"
    done = subprocess.run(
        [sys.executable, str(_SCRIPT), case.program, checkout, case.network, str(report)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = {key: tuple(shape) for key, shape in json.loads(report.read_text("utf-8")).items()}
    found = original(FAMILIES[case.family])
    assert {key for key in found if not re.match(case.others, key)} == theirs.keys()
    assert {key for key in theirs if found[key] != theirs[key]} == case.other_sizes


# --- adapters in the words of each trainer -----------------------------------------------------

_REFINERS = ("noise_refiner.1", "context_refiner.0", "ref_image_refiner.1", "layers.31")
_ATTENTION = {
    "to_q": (2520, 2520),
    "to_k": (840, 2520),
    "to_v": (840, 2520),
    "to_out.0": (2520, 2520),
}
OMNIGEN2 = {f"{b}.attn.{x}": shape for b in _REFINERS for x, shape in _ATTENTION.items()}
_DECODER = {
    "language_model.layers.35.self_attn.q_proj": (4096, 4096),
    "language_model.layers.35.self_attn.k_proj": (1024, 4096),
    "language_model.layers.0.mlp.up_proj": (12288, 4096),
}
_PIXELS = {
    "x_embedder.proj1": (1024, 3072),
    "final_layer2.linear": (3072, 4096),
    "t_embedder1.mlp.2": (4096, 4096),
}
_VISION = {"visual.blocks.26.attn.qkv": (3456, 1152), "visual.merger.linear_fc2": (4096, 4608)}
_KOHYA = (".lora_up.weight", ".lora_down.weight")
_PEFT = (".lora_B.weight", ".lora_A.weight")
_NAMED = (".lora_B.default.weight", ".lora_A.default.weight")


class Written(NamedTuple):
    """An adapter as a program writes it.

    Args:
        head: what stands before the names.
        words: of the two factors.
        flat: underscores stand for dots.
    """

    family: str
    by: str
    names: Mapping[str, tuple[int, int]]
    head: str
    words: tuple[str, str]
    dialect: str
    flat: bool = False


_RADIANCE = {
    "nerf_image_embedder.embedder.0": (64, 67),
    "nerf_blocks.3.param_generator": (49152, 3072),
    "double_blocks.18.img_attn.proj": (3072, 3072),
}
_S2V = {
    "audio_injector.injector.11.q": (5120, 5120),
    "audio_injector.injector_adain_layers.0.linear": (10240, 5120),
    "casual_audio_encoder.encoder.final_linear": (5120, 5120),
    "blocks.39.cross_attn.o": (5120, 5120),
}
# original name → diffusers' where it is another
_RENAMED = {
    "double_blocks.18.img_attn.proj": "transformer_blocks.18.attn.to_out.0",
    "blocks.39.cross_attn.o": "blocks.39.attn2.to_out.0",
}
WRITTEN = (
    Written("chroma", "ai-toolkit", _RADIANCE, "diffusion_model.", _PEFT, "comfyui"),
    Written("wan", "ComfyUI's kohya", _S2V, "lora_unet_", _KOHYA, "kohya", flat=True),
    Written("omnigen2", "its train.py", OMNIGEN2, "transformer.", _PEFT, "diffusers"),
    Written("omnigen2", "UMO", OMNIGEN2, "", _NAMED, "bare"),
    Written("omnigen2", "diffusion-pipe", OMNIGEN2, "diffusion_model.", _PEFT, "comfyui"),
    Written("omnigen2", "PEFT", OMNIGEN2, "base_model.model.", _PEFT, "peft"),
    Written("omnigen2", "kohya", OMNIGEN2, "lora_unet_", _KOHYA, "kohya", flat=True),
    Written("hidream-o1", "musubi-tuner, t2i", _DECODER | _PIXELS, "lora_unet_model_", _KOHYA, "kohya",
            flat=True),
    Written("hidream-o1", "musubi-tuner, i2i", _DECODER | _PIXELS | _VISION, "lora_unet_model_",
            _KOHYA, "kohya", flat=True),
    Written("hidream-o1", "ComfyUI's kohya", _DECODER, "lora_unet_", _KOHYA, "kohya", flat=True),
    Written("hidream-o1", "ai-toolkit", _DECODER | _PIXELS, "diffusion_model.", _PEFT, "comfyui"),
    Written("hidream-o1", "ai-toolkit of old", _DECODER, "diffusion_model.model.", _PEFT, "comfyui"),
    Written("hidream-o1", "DiffSynth-Studio", _DECODER, "model.", _NAMED, "bare"),
    Written("hidream-o1", "PEFT", _DECODER | _PIXELS, "base_model.model.model.", _PEFT, "peft"),
)  # fmt: skip


def adapter_of(written: Written) -> dict[str, Array]:
    """The tensors of an adapter, of seeded values."""
    stems = {
        written.head + (name.replace(".", "_") if written.flat else name): shape
        for name, shape in written.names.items()
    }
    up, down = written.words
    return factors(stems, up=up, down=down)


def meant(written: Written, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Module → ΔW times a random matrix, taken from the tensors by their places."""
    wrapper = "model." if written.family == "hidream-o1" else ""
    values = list(tensors.values())
    found = {}
    for name, down, up in zip(written.names, values[::2], values[1::2], strict=True):
        probe = np.random.default_rng(0).standard_normal((down.shape[1], 3))
        found[f"transformer.{wrapper}{_RENAMED.get(name, name)}"] = up @ (down @ probe)
    return found


@pytest.mark.parametrize("written", WRITTEN, ids=lambda one: f"{one.family}-{one.by}")
def test_adapters_are_read_whole_and_written_for_others_with_the_same_change(
    tmp_path: Path, written: Written
) -> None:
    tensors = adapter_of(written)
    expected = meant(written, tensors)
    adapter = load(write(tensors, tmp_path / "a.safetensors")).require_sound()
    assert not adapter.info.account.unknown
    assert adapter.family is not None and adapter.family.name == written.family
    assert adapter.info.dialects == {written.dialect: len(written.names)}
    for dialect in ("kohya", "comfyui", "bare", "onetrainer", "lycoris"):
        save(adapter, tmp_path / f"{dialect}.safetensors", to=dialect)
        again = load(tmp_path / f"{dialect}.safetensors").require_sound()
        assert again.family is adapter.family and not again.info.account.unknown, dialect
        save(again, tmp_path / f"from {dialect}.safetensors", to="diffusers")
        found = read_safetensors(tmp_path / f"from {dialect}.safetensors")[0]
        assert same(changes(found, probed=True), expected), dialect


def test_keys_are_written_as_trainers_write_them(tmp_path: Path) -> None:
    """musubi-tuner reads no others, and ComfyUI's network has no `model.`."""
    by = {one.by: one for one in WRITTEN if one.family == "hidream-o1"}
    for mine, target in ((by["musubi-tuner, t2i"], "comfyui"), (by["ai-toolkit"], "kohya")):
        adapter = load(write(adapter_of(mine), tmp_path / f"for {target}.safetensors"))
        save(adapter, tmp_path / f"{target}.safetensors", to=target)
        found = read_safetensors(tmp_path / f"{target}.safetensors")[0]
        theirs = by["ai-toolkit" if target == "comfyui" else "musubi-tuner, t2i"]
        assert {key for key in found if not key.endswith(".alpha")} == adapter_of(theirs).keys()


def test_a_convolution_of_three_axes_is_read_and_written(tmp_path: Path) -> None:
    """As musubi-tuner trains it where `conv_dim` is given."""
    random = np.random.default_rng(1)
    stem = "lora_unet_model_visual_patch_embed_proj"
    tensors = {
        f"{stem}.lora_down.weight": random.standard_normal((2, 3, 2, 16, 16), dtype="float32"),
        f"{stem}.lora_up.weight": random.standard_normal((1152, 2, 1, 1, 1), dtype="float32"),
        f"{stem}.alpha": np.array(1.0, "float32"),
    }
    adapter = load(write(tensors, tmp_path / "a.safetensors")).require_sound()
    assert adapter.family is not None and adapter.family.name == "hidream-o1"
    save(adapter, tmp_path / "b.safetensors", to="comfyui")
    found = read_safetensors(tmp_path / "b.safetensors")[0]
    up, down = (found[f"diffusion_model.visual.patch_embed.proj.lora_{x}.weight"] for x in "BA")
    expected = (
        0.5
        * tensors[f"{stem}.lora_up.weight"].reshape(1152, 2)
        @ tensors[f"{stem}.lora_down.weight"].reshape(2, -1)
    )
    assert np.allclose(up.reshape(1152, 2) @ down.reshape(2, -1), expected, atol=1e-5)


def test_names_that_no_program_reads_are_those_of_the_family(tmp_path: Path) -> None:
    """musubi-tuner's `convert_lora` writes dots for the underscores in names of layers."""
    names = {
        f"diffusion_model.model.{name.replace('_', '.').replace('self.attn', 'self_attn')}": shape
        for name, shape in (_DECODER | _PIXELS | _VISION).items()
    }
    found = load(write(_lora(names), tmp_path / "a.safetensors"))
    assert found.family is not None and found.family.name == "hidream-o1"
    assert "7 of them in other names" in found.info.detection.reason


# --- what tells them from their relatives ------------------------------------------------------


def _lora(stems: Mapping[str, tuple[int, int]]) -> dict[str, Array]:
    return factors(stems, up=".lora_B.weight", down=".lora_A.weight")


def test_an_adapter_of_qwen3_vl_is_of_no_family(tmp_path: Path) -> None:
    """PEFT writes it as it would one of HiDream O1, of which only a layer for pixels tells."""
    names = {f"base_model.model.model.{name}": shape for name, shape in _DECODER.items()}
    assert load(write(_lora(names), tmp_path / "a.safetensors")).family is None
    more = names | {"base_model.model.model.x_embedder.proj1": (1024, 3072)}
    found = load(write(_lora(more), tmp_path / "b.safetensors")).family
    assert found is FAMILIES["hidream-o1"]
    encoder = {f"text_encoder.model.{name}": shape for name, shape in _DECODER.items()}
    assert load(write(_lora(encoder), tmp_path / "c.safetensors")).family is None


@pytest.mark.parametrize(
    "more",
    [
        {},
        {
            "language_model.layers.3.mlp.up_proj": (12288, 4096),
            "visual.blocks.0.attn.proj": (1152, 1152),
        },
    ],
)
def test_an_adapter_without_pixels_may_be_one_of_qwen3_vl(
    tmp_path: Path, more: Mapping[str, tuple[int, int]]
) -> None:
    """It is taken for HiDream's where a program for pictures wrote it, and the result says so."""
    names = {"language_model.layers.3.self_attn.v_proj": (1024, 4096), **more}
    stems = {f"model.{name}": shape for name, shape in names.items()}
    found = load(write(_lora(stems), tmp_path / "a.safetensors"))
    assert found.family is FAMILIES["hidream-o1"]
    assert found.info.detection.twins == ("Qwen3-VL 8B",)
    assert "what it changes of Qwen3-VL 8B has the same names" in found.info.detection.reason
    pixels = stems | {"model.x_embedder.proj1": (1024, 3072)}
    assert not load(write(_lora(pixels), tmp_path / "b.safetensors")).info.detection.twins


@pytest.mark.parametrize(
    ("width", "keys", "family"),
    [(2520, 840, "omnigen2"), (2304, 768, "lumina2"), (3360, 840, None)],
)
def test_the_width_tells_omnigen_from_lumina_and_from_others(
    tmp_path: Path, width: int, keys: int, family: str | None
) -> None:
    """A network of the same names and a third width is neither."""
    stems = {
        f"transformer.layers.{i}.attn.to_{x}": (rows, width)
        for i in range(3)
        for x, rows in (("q", width), ("k", keys), ("v", keys))
    }
    found = load(write(_lora(stems), tmp_path / "a.safetensors"))
    assert (found.family and found.family.name) == family
    assert len(found.deltas) == len(stems)


_O1 = "Qwen3VLForConditionalGeneration"


def _bases() -> Iterator[tuple[str, dict[str, tuple[int, ...]], bool, str]]:
    """Yield what it is, names and shapes, whether it lies beside a configuration, and the family."""
    whole = told(FAMILIES["hidream-o1"].components[0])
    alone = {key: shape for key, shape in whole.items() if not re.match(OWN["hidream-o1"], key)}
    drawing = {key: shape for key, shape in whole.items() if key != "lm_head.weight"}
    yield "the published folder", whole, True, "hidream-o1"
    yield "ComfyUI's file", drawing, False, "hidream-o1"
    for head in ("model.diffusion_model.", "diffusion_model.", ""):
        saved = {head + key.removeprefix("model."): shape for key, shape in drawing.items()}
        yield f"saved by ComfyUI {head}", saved, False, "hidream-o1"
    yield "Qwen3-VL", alone, True, "transformers"
    yield "Qwen3-VL in one file", alone, False, "unknown"
    omnigen = told(FAMILIES["omnigen2"].components[0])
    yield "OmniGen 2", omnigen, False, "omnigen2"
    yield (
        "OmniGen 2, in ComfyUI",
        {f"model.diffusion_model.{k}": s for k, s in omnigen.items()},
        False,
        "omnigen2",
    )
    for family, title, others in (
        ("chroma", "Chroma Radiance", rf"{_OF_LATENTS}|nerf_final_layer_conv"),
        ("wan", "Wan S2V", r".*_img\.|img_emb|vace_|face_adapter|pose_patch"),
    ):
        shapes = original(FAMILIES[family]).items()
        yield title, {k: s for k, s in shapes if not re.match(others, k)}, False, family
    lumina = told(FAMILIES["lumina2"].components[0])
    yield "Lumina 2", lumina, False, "lumina2"


def test_checkpoints_are_told_by_their_layers_for_pixels_and_their_widths(tmp_path: Path) -> None:
    for name, shapes, configured, family in _bases():
        folder = tmp_path / re.sub(r"\W+", "-", name)
        folder.mkdir()
        sparse_safetensors(folder / "model.safetensors", shapes)
        if configured:
            says = {"model_type": "qwen3_vl", "architectures": [_O1]}
            (folder / "config.json").write_text(json.dumps(says), "utf-8")
        found = open_checkpoint(folder if configured else folder / "model.safetensors")
        assert found.family_name == family, name
        tensors = {place.name for places in found.slots.values() for place in places}
        assert tensors == shapes.keys(), name


def test_the_published_folder_is_baked_with_its_configuration(tmp_path: Path) -> None:
    """A folder of transformers whose network draws: W + ΔW/2 in it, and nothing else changed."""
    family = FAMILIES["hidream-o1"]
    net = network(family)
    folder = tmp_path / "o1"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(safetensors_bytes(net))
    says = json.dumps({"model_type": "qwen3_vl", "architectures": [_O1]})
    (folder / "config.json").write_text(says, "utf-8")
    stems = {f"diffusion_model.{name}": (4, 3) for name in _DECODER | _PIXELS | _VISION}
    adapter = load(write(_lora(stems), tmp_path / "a.safetensors"))
    plan = plan_bake(open_checkpoint(folder), [(adapter.require_sound(), Weight(0.5))])
    bake(plan, tmp_path / "out")
    found = read_safetensors(tmp_path / "out" / "model.safetensors")[0]
    expected = dict(net)
    for stem, change in changes(_lora(stems)).items():
        key = stem.replace("diffusion_model.", "model.") + ".weight"
        expected[key] = (net[key].astype("float64") + 0.5 * change).astype("float32")
    assert found.keys() == net.keys()
    assert all(np.allclose(found[key], expected[key], atol=1e-6) for key in expected)
    assert sum(not np.array_equal(found[key], net[key]) for key in net) == len(stems)
    assert json.loads((tmp_path / "out" / "config.json").read_text("utf-8")) == json.loads(says)


def test_an_adapter_taken_for_hidreams_bakes_into_qwen3_vl_by_its_names(tmp_path: Path) -> None:
    net = network(FAMILIES["hidream-o1"])
    alone = {key: value for key, value in net.items() if not re.match(OWN["hidream-o1"], key)}
    folder = tmp_path / "qwen3-vl"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(safetensors_bytes(alone))
    says = {"model_type": "qwen3_vl", "architectures": [_O1]}
    (folder / "config.json").write_text(json.dumps(says), "utf-8")
    stems = {f"model.{name}": (4, 3) for name in _DECODER}
    adapter = load(write(_lora(stems), tmp_path / "a.safetensors"))
    assert adapter.family is FAMILIES["hidream-o1"]
    bake(plan_bake(open_checkpoint(folder), [(adapter, Weight(1))]), tmp_path / "out")
    found = read_safetensors(tmp_path / "out" / "model.safetensors")[0]
    for stem, change in changes(_lora(stems)).items():
        key = f"{stem}.weight"
        assert np.allclose(found.pop(key), alone[key] + change, atol=1e-6)
    assert all(np.array_equal(found[key], alone[key]) for key in found)
