"""Adapters of diffusion transformers: read as diffusers reads them, and baked alike everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter.load import load
from loramerge.adapter.row_order import stacked
from loramerge.adapter.save import save
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.dialects import DIALECTS, stem_table
from loramerge.dialects.detection import Detection
from loramerge.errors import ShapeError
from loramerge.families import FAMILIES, Family, Spelling, parameters
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
from tests.builders.flux import listing
from tests.builders.samples import Array, read_safetensors, safetensors_bytes
from tests.tail import first, tail

Tensors = dict[str, Array]


def write(tensors: Tensors, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(safetensors_bytes(tensors, {}))
    return path


def factors(stems: Mapping[str, tuple[int, int]], *, up: str, down: str) -> Tensors:
    """Seeded factors of rank 2 for stems of given heights and widths."""
    random = np.random.default_rng(7)
    found: Tensors = {}
    for stem, (rows, columns) in stems.items():
        found[stem + down] = random.standard_normal((2, columns), dtype="float32")
        found[stem + up] = random.standard_normal((rows, 2), dtype="float32")
    return found


def changes(tensors: Mapping[str, Array], *, probed: bool = False) -> Tensors:
    """ΔW by module, of keys in diffusers' spelling; or its product with a random matrix."""
    found = {}
    for key, up in tensors.items():
        if key.endswith(".lora_B.weight"):
            stem = key.removesuffix(".lora_B.weight")
            down = tensors[f"{stem}.lora_A.weight"]
            probe = np.random.default_rng(0).standard_normal((down.shape[1], 3)) if probed else None
            found[stem] = up @ (down if probe is None else down @ probe)
    return found


def same(found: Tensors, expected: Tensors) -> bool:
    return found.keys() == expected.keys() and all(
        np.allclose(found[name], expected[name], rtol=1e-4, atol=1e-4) for name in expected
    )


@dataclass(frozen=True)
class Converter:
    """A converter of diffusers: what it reads, and what of it is left out here.

    Args:
        modules: pattern of the stems that it takes.
        but: pattern of stems that it reads wrongly or not at all.
    """

    name: str
    family: str
    dialect: str
    modules: str = ""
    but: str = "$^"


CONVERTERS = (
    # the halves of the last modulation stand in the other order, which diffusers forgets for adapters
    *(
        Converter("_convert_non_diffusers_flux2_lora_to_diffusers", name, "comfyui",
                  "linear|qkv|proj|mlp|_in|modulation", "adaLN")
        for name in ("flux2-dev", "flux2-klein-4b", "flux2-klein-9b")
    ),
    *(
        Converter("_convert_kohya_flux2_lora_to_diffusers", name, "kohya",
                  "double_blocks|single_blocks|img_in|txt_in|time_in|final_layer_linear")
        for name in ("flux2-dev", "flux2-klein-4b", "flux2-klein-9b")
    ),
    Converter("_convert_non_diffusers_lumina2_lora_to_diffusers", "lumina2", "comfyui",
              "layers|refiner", but=r"^text_enc"),
    Converter("_convert_non_diffusers_z_image_lora_to_diffusers", "z-image", "comfyui"),
    Converter("_convert_non_diffusers_z_image_lora_to_diffusers", "z-image", "kohya"),
    # of the refiner's attention it cuts the factor that is not to be cut; the embedders have other
    # names in ComfyUI, which it does not know, and so have text encoders
    Converter("_convert_hunyuan_video_lora_to_diffusers", "hunyuan-video", "comfyui",
              but=r"^text_enc|final_layer.adaLN|self_attn_qkv|(time|guidance)_in|txt_in\.[tc]_embedder"),
    # it renames nothing
    *(
        Converter("_convert_non_diffusers_ltxv_lora_to_diffusers", name, "comfyui",
                  r"attn|\.ff\.|caption|proj_out")
        for name in ("ltx-video", "ltx-video-13b")
    ),
    # it renames more than one part of a name, and so keeps `audio_patchify_proj` and modulation apart
    # (the projection of the text is given to it alone, with its prefix)
    Converter("_convert_non_diffusers_ltx2_lora_to_diffusers", "ltx-2", "comfyui",
              but=r"^text_embedding_projection"),
    Converter("_convert_non_diffusers_krea2_lora_to_diffusers", "krea2", "comfyui"),
    # of layers outside of the blocks it knows none
    Converter("_convert_non_diffusers_ideogram4_lora_to_diffusers", "ideogram4", "comfyui",
              r"layers\.\d"),
    Converter("_convert_non_diffusers_minimax_h3_lora_to_diffusers", "minimax-h3", "comfyui"),
    Converter("_convert_non_diffusers_minimax_h3_lora_to_diffusers", "minimax-h3", "kohya"),
    Converter("_convert_non_diffusers_hidream_lora_to_diffusers", "hidream-i1", "comfyui",
              but=r"^text_enc"),
    # it renames the blocks alone
    Converter("_convert_non_diffusers_flux3_lora_to_diffusers", "flux3", "comfyui", r"blocks\."),
    # it does not know ComfyUI's names of the text encoder
    *(
        Converter("_convert_non_diffusers_anima_lora_to_diffusers", name, "comfyui", but=r"^text_enc")
        for name in ("anima", "cosmos2-14b")
    ),
)  # fmt: skip
SUFFIXES = {
    "comfyui": (".lora_B.weight", ".lora_A.weight"),
    "kohya": (".lora_up.weight", ".lora_down.weight"),
}


def linear_stems(family: Family, dialect: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield (stem, shape) of every layer the dialect writes, as it stores them."""
    known = dict(family.modules())
    written = DIALECTS[dialect]
    seen: set[tuple[str, ...]] = set()
    for stem, target in stem_table(written, family).items():
        if target.modules in seen or any(known[m].layer != "linear" for m in target.modules):
            continue
        seen.add(target.modules)
        layout = written.layout(family)
        if all(
            (layout[m].modules if m in layout else (m,)) == target.modules for m in target.modules
        ):
            yield stem, (target.shape[0], target.shape[1])


@pytest.mark.long_tail(keep=4)
@pytest.mark.parametrize("case", first(8, CONVERTERS), ids=lambda c: f"{c.family}-{c.dialect}")
def test_adapters_mean_what_diffusers_makes_of_them(tmp_path: Path, case: Converter) -> None:
    """And not with keys and values exchanged."""
    torch: Any = pytest.importorskip("torch")
    utils: Any = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    stems = {
        stem: shape
        for stem, shape in linear_stems(FAMILIES[case.family], case.dialect)
        if re.search(case.modules, stem) and not re.search(case.but, stem)
    }
    up, down = SUFFIXES[case.dialect]
    tensors = factors(stems, up=up, down=down)
    theirs = getattr(utils, case.name)({k: torch.from_numpy(v.copy()) for k, v in tensors.items()})
    expected = changes({key: value.numpy() for key, value in theirs.items()}, probed=True)
    path = write(tensors, tmp_path / "a.safetensors")
    adapter = load(path).require_sound()
    assert not adapter.info.account.unknown
    assert adapter.family is not None and adapter.family.name == case.family
    save(adapter, tmp_path / "b.safetensors", to="diffusers")
    ours, _ = read_safetensors(tmp_path / "b.safetensors")
    assert same(changes(ours, probed=True), expected)
    k, v = (next(k for k in ours if k.endswith(f"to_{x}.lora_B.weight")) for x in "kv")
    ours[k], ours[v] = ours[v], ours[k]
    assert not same(changes(ours, probed=True), expected)


@pytest.mark.parametrize("word", ["", ".default"])
def test_heads_of_minimax_are_laid_one_after_the_other_where_keys_tell_that_they_interleave(
    tmp_path: Path, word: str
) -> None:
    """DiffSynth-Studio trains the published shards as they are, with PEFT's name in keys."""
    torch: Any = pytest.importorskip("torch")
    utils: Any = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    stems = {f"blocks.{n}.attn.qkv_proj": (3 * 7168, 5376) for n in (0, 49)}
    stems["blocks.0.attn.out_proj"] = (5376, 7168)
    tensors = factors(stems, up=f".lora_B{word}.weight", down=f".lora_A{word}.weight")
    theirs = utils._convert_non_diffusers_minimax_h3_lora_to_diffusers(
        {key: torch.from_numpy(value.copy()) for key, value in tensors.items()}
    )
    expected = changes({key: value.numpy() for key, value in theirs.items()}, probed=True)
    adapter = load(write(tensors, tmp_path / "a.safetensors")).require_sound()
    assert adapter.family is not None and adapter.family.name == "minimax-h3"
    save(adapter, tmp_path / "b.safetensors", to="diffusers")
    ours, _ = read_safetensors(tmp_path / "b.safetensors")
    assert same(changes(ours, probed=True), expected)


def test_heads_that_are_not_whole_are_refused() -> None:
    assert stacked(12, 3, 2) == [(0, 2), (6, 8), (2, 4), (8, 10), (4, 6), (10, 12)]
    with pytest.raises(ShapeError, match="whole heads"):
        stacked(13, 3, 2)


def test_fused_names_of_z_image_are_read_as_diffusers_reads_them(tmp_path: Path) -> None:
    """Trainers on ComfyUI's single file have them; written are the names of the published network."""
    torch: Any = pytest.importorskip("torch")
    utils: Any = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    shapes = {f"lora_unet_layers_{i}_attention_qkv": (3 * 3840, 3840) for i in (0, 29)}
    shapes["lora_unet_context_refiner_1_attention_out"] = (3840, 3840)
    up, down = SUFFIXES["kohya"]
    tensors = factors(shapes, up=up, down=down)
    theirs = utils._convert_non_diffusers_z_image_lora_to_diffusers(
        {key: torch.from_numpy(value.copy()) for key, value in tensors.items()}
    )
    adapter = load(write(tensors, tmp_path / "a.safetensors")).require_sound()
    assert adapter.family is not None and adapter.family.name == "z-image"
    save(adapter, tmp_path / "b.safetensors", to="diffusers")
    ours, _ = read_safetensors(tmp_path / "b.safetensors")
    expected = changes({key: value.numpy() for key, value in theirs.items()}, probed=True)
    assert same(changes(ours, probed=True), expected)
    save(adapter, tmp_path / "c.safetensors")  # as it came, but for alphas, which loaders ask for
    again, _ = read_safetensors(tmp_path / "c.safetensors")
    assert again.keys() - {key for key in again if key.endswith(".alpha")} == tensors.keys()
    assert len(again) == len(tensors) + 3
    assert all(np.array_equal(again[key], tensors[key]) for key in tensors)
    save(adapter, tmp_path / "d.safetensors", to="comfyui")
    split, _ = read_safetensors(tmp_path / "d.safetensors")
    assert "diffusion_model.layers.0.attention.to_k.lora_B.weight" in split


def test_hunyuan_video_in_the_spelling_of_diffusion_pipe_is_recognised(tmp_path: Path) -> None:
    """Tencent's names after `transformer.`, which ComfyUI and diffusers load."""
    stems = {
        "transformer." + stem.removeprefix("diffusion_model."): shape
        for stem, shape in linear_stems(FAMILIES["hunyuan-video"], "comfyui")
        if stem.startswith("diffusion_model.")
        if not re.search(r"blocks\.(?:[2-9]|1\d)\.", stem)
    }
    tensors = factors(stems, up=".lora_B.weight", down=".lora_A.weight")
    adapter = load(write(tensors, tmp_path / "a.safetensors")).require_sound()
    assert adapter.family is not None and adapter.family.name == "hunyuan-video"
    assert adapter.info.dialects == {"onetrainer": len(stems)}
    assert not adapter.info.account.unknown


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("family", [tail("ace-step"), tail("krea2")])
def test_original_names_after_the_wrapper_are_read_as_diffusers_reads_them(
    tmp_path: Path, family: str
) -> None:
    """Trainers that wrap the original network with PEFT write them."""
    torch: Any = pytest.importorskip("torch")
    utils: Any = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    word = family.replace("-", "_")
    stems = {
        re.sub(r"^diffusion_model\.(?:decoder\.)?", "base_model.model.", stem): shape
        for stem, shape in linear_stems(FAMILIES[family], "comfyui")
        if re.search(r"layers\.\d+\.|blocks\.\d+\.", stem) and "mlp" not in stem
    }
    tensors = factors(stems, up=".lora_B.weight", down=".lora_A.weight")
    theirs = getattr(utils, f"_convert_non_diffusers_{word}_lora_to_diffusers")(
        {key: torch.from_numpy(value.copy()) for key, value in tensors.items()}
    )
    expected = changes({key: value.numpy() for key, value in theirs.items()}, probed=True)
    adapter = load(write(tensors, tmp_path / "a.safetensors")).require_sound()
    assert adapter.family is not None and adapter.family.name == family
    save(adapter, tmp_path / "b.safetensors", to="diffusers")
    ours, _ = read_safetensors(tmp_path / "b.safetensors")
    assert same(changes(ours, probed=True), expected)


# --- baking ------------------------------------------------------------------------------------

NEW = (
    "flux2-dev", "flux2-klein-4b", "flux2-klein-9b", "z-image", "lumina2", "hunyuan-video",
    "ltx-video", "ltx-video-13b", "anima", "cosmos2-14b", "ltx-2", "krea2", "qwen-image-21",
    "chroma", "ideogram4", "minimax-h3", "ernie-image", "hidream-i1", "flux3", "auraflow",
    "kandinsky5", "cogvideox", "cogview4", "pixart", "ovis-image",
    "cosmos3", "ace-step", "mochi", "omnigen2", "hidream-o1",
)  # fmt: skip


def network(family: Family) -> Tensors:
    """A network by diffusers' names: four rows for each part that a single file fuses, few columns."""
    random = np.random.default_rng(3)
    fused = [s for s in family.spellings["transformer"] if s.layout != "diffusers"][-1]
    found: Tensors = {}
    for module, parameter, slot in fused.slots(family.components[0]):
        flat = parameter == "bias" or module.layer == "norm"
        shape = (4 * slot.span,) if flat else (4 * slot.span, 3, *module.shape[2:])
        found[f"{module.path}.{parameter}"] = random.standard_normal(shape, dtype="float32")
    return found


def swapped_halves(value: Array) -> Array:
    return np.concatenate(np.split(value, 2)[::-1])


def stored(family: Family, spelling: Spelling, net: Tensors) -> Tensors:
    """The network as a single file stores it."""
    pieces: dict[str, list[tuple[int, Array]]] = {}
    for module, parameter, slot in spelling.slots(family.components[0]):
        value = net[f"{module.path}.{parameter}"]
        piece = swapped_halves(value) if slot.swapped else value
        pieces.setdefault(slot.tensor, []).append((slot.part, piece))
    return {
        name: np.concatenate([v for _, v in sorted(found, key=lambda pair: pair[0])])
        for name, found in pieces.items()
    }


def cut(family: Family, spelling: Spelling, file: Tensors, net: Tensors) -> Tensors:
    """The network by diffusers' names, out of a single file."""
    found = {}
    for module, parameter, slot in spelling.slots(family.components[0]):
        unit = file[slot.tensor].shape[0] // slot.parts
        value = file[slot.tensor][unit * slot.part : unit * (slot.part + slot.span)]
        found[f"{module.path}.{parameter}"] = swapped_halves(value) if slot.swapped else value
    assert found.keys() == net.keys()
    return found


def baked(base: Path, adapter: Path, output: Path) -> Tensors:
    plan = plan_bake(open_checkpoint(base), [(load(adapter).require_sound(), Weight(0.5))])
    bake(plan, output)
    file = output / "transformer" / "diffusion_pytorch_model.safetensors"
    return read_safetensors(file if output.is_dir() else output)[0]


def close(found: Tensors, expected: Tensors) -> bool:
    return all(np.allclose(found[k], v, rtol=1e-5, atol=1e-5) for k, v in expected.items())


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["each", "every pair"]
)
@pytest.mark.parametrize("name", [n if n in ("z-image", "lumina2") else tail(n) for n in NEW])
def test_every_layout_is_baked_to_the_same_network(tmp_path: Path, name: str, every: bool) -> None:
    """Through split and fused adapters, into single files and folders: W + ΔW/2 by module."""
    family = FAMILIES[name]
    net = network(family)
    linear = [m.path for m in family.components[0].modules if m.layer == "linear"]
    shapes = {f"transformer.{path}": (len(net[f"{path}.weight"]), 3) for path in linear}
    tensors = factors(shapes, up=".lora_B.weight", down=".lora_A.weight")
    adapter = write(tensors, tmp_path / "split.safetensors")
    expected = dict(net)
    for stem, change in changes(tensors).items():
        key = stem.removeprefix("transformer.") + ".weight"
        expected[key] = net[key] + 0.5 * change
    save(load(adapter), tmp_path / "kohya.safetensors", to="kohya")
    save(load(adapter), tmp_path / "comfyui.safetensors", to="comfyui")
    spellings, adapters = family.spellings["transformer"], ("split", "kohya", "comfyui")
    count = max(len(spellings), len(adapters))
    turns = [(spellings[i % len(spellings)], adapters[i % len(adapters)]) for i in range(count)]
    for spelling in spellings:
        base = write(stored(family, spelling, net), tmp_path / "base.safetensors")
        for each in adapters:
            if not every and (spelling, each) not in turns:
                continue
            output = tmp_path / f"{spelling.layout}-{spelling.prefix}-{each}.safetensors"
            found = baked(base, tmp_path / f"{each}.safetensors", output)
            assert close(cut(family, spelling, found, net), expected), (spelling, each)
    folder = tmp_path / "folder"
    write(net, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    (folder / "model_index.json").write_text("{}", "utf-8")
    assert close(baked(folder, adapter, tmp_path / "out"), expected)
    assert not close(net, expected)


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("name", ["hunyuan-video-15", "hunyuan-image", "sana"])
def test_layouts_are_baked_alike_where_small_shapes_do_not_tell_the_family(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of these the names alone are others' too, so the family of the adapter is given."""
    family = FAMILIES[name]
    monkeypatch.setitem(vars(family), "shapes_only", False)
    net = network(family)
    linear = [m.path for m in family.components[0].modules if m.layer == "linear"]
    shapes = {f"transformer.{path}": (len(net[f"{path}.weight"]), 3) for path in linear}
    tensors = factors(shapes, up=".lora_B.weight", down=".lora_A.weight")
    read = load(write(tensors, tmp_path / "split.safetensors"), by_name=True)
    adapter = read.with_deltas(read.deltas, detection=Detection((family,), "given"), stems={})
    expected = dict(net)
    for stem, change in changes(tensors).items():
        key = stem.removeprefix("transformer.") + ".weight"
        expected[key] = net[key] + 0.5 * change
    for spelling in family.spellings["transformer"]:
        base = write(stored(family, spelling, net), tmp_path / "base.safetensors")
        output = tmp_path / f"{spelling.layout}-{spelling.prefix}.safetensors"
        bake(plan_bake(open_checkpoint(base), [(adapter, Weight(0.5))]), output)
        found = read_safetensors(output)[0]
        assert close(cut(family, spelling, found, net), expected), spelling
    assert not close(net, expected)


def test_the_text_conditioner_of_anima_is_baked_where_the_single_file_has_it(
    tmp_path: Path,
) -> None:
    family = FAMILIES["anima"]
    net = network(family)
    spelling = next(s for s in family.spellings["transformer"] if s.prefix == "net.")
    random = np.random.default_rng(1)
    stem = "blocks.0.cross_attn.q_proj"
    full = {
        f"net.llm_adapter.{m.path}.{p}": random.standard_normal((4, 3), dtype="float32")
        for m in family.components[1].modules
        for p in parameters(m)
    }
    base = write(stored(family, spelling, net) | full, tmp_path / "full.safetensors")
    tensors = factors(
        {f"diffusion_model.llm_adapter.{stem}": (4, 3)}, up=".lora_B.weight", down=".lora_A.weight"
    )
    adapter = write(tensors, tmp_path / "a.safetensors")
    found = baked(base, adapter, tmp_path / "out.safetensors")
    up, down = (tensors[f"diffusion_model.llm_adapter.{stem}.lora_{x}.weight"] for x in "BA")
    key = f"net.llm_adapter.{stem}.weight"
    assert np.allclose(found[key], full[key] + 0.5 * up @ down, atol=1e-6)
    assert [name for name in full if not np.array_equal(found[name], full[name])] == [key]


def test_the_real_listing_of_qwen_image_is_told_and_written_for_others(
    shared_data: Path, tmp_path: Path
) -> None:
    """Two blocks of attention are those of Flux.1, too; one of the last blocks tells them apart."""
    random = np.random.default_rng(5)
    keys = listing(shared_data, "invoke_qwen_image_lora_diffusers_format")
    last = {re.sub(r"blocks\.\d+\.", "blocks.59.", key): shape for key, shape in keys.items()}
    tensors = {
        key: np.array(8.0, "float32")
        if not shape
        else random.standard_normal(shape, dtype="float32")
        for key, shape in {**keys, **last}.items()
    }
    alone = load(write({key: tensors[key] for key in keys}, tmp_path / "two.safetensors"))
    assert alone.info.detection.name == "flux1 or flux2-klein-4b or qwen-image"
    adapter = load(write(tensors, tmp_path / "a.safetensors")).require_sound()
    assert adapter.family is not None and adapter.family.name == "qwen-image"
    assert adapter.info.dialects == {"bare": 5} and not adapter.info.account.unknown
    save(adapter, tmp_path / "b.safetensors", to="comfyui")
    again = load(tmp_path / "b.safetensors")
    assert list(again.deltas) == list(adapter.deltas)


def test_the_connectors_of_ltx_2_have_the_names_that_diffusers_gives_them(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    names = {"diffusion_model.transformer_blocks.3.attn1.to_q": (5, 4),
             "text_embedding_projection.aggregate_embed": (6, 7)}  # fmt: skip
    tensors = {
        f"{name}.lora_{x}.weight": random.standard_normal(shape, dtype="float32")
        for name, (rows, columns) in names.items()
        for x, shape in (("A", (2, columns)), ("B", (rows, 2)))
    }
    path = write(tensors, tmp_path / "a.safetensors")
    adapter = load(path).require_sound()
    assert adapter.components() == {"transformer": 1, "connectors": 1}
    save(adapter, tmp_path / "b.safetensors", to="diffusers")
    found = read_safetensors(tmp_path / "b.safetensors")[0]
    loaders: Any = pytest.importorskip("diffusers.loaders")
    theirs = loaders.LTX2LoraLoaderMixin.lora_state_dict(str(path))
    assert {key: value.numpy().tolist() for key, value in theirs.items()} == {
        key: value.tolist() for key, value in found.items()
    }
    save(load(tmp_path / "b.safetensors"), tmp_path / "c.safetensors", to="comfyui")
    assert read_safetensors(tmp_path / "c.safetensors")[0].keys() == tensors.keys()
