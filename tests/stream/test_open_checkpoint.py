from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from loramerge.checkpoint import Place, open_checkpoint
from loramerge.errors import CorruptFile, FamilyError, FormatError, MissingFile, UnsafeFile
from tests.builders import bases
from tests.builders.bases import Base, folder, sharded, single, unet_alone, write_safetensors
from tests.builders.samples import STABLE_DIFFUSION

CASES: dict[str, tuple[str, Callable[[Path], Base], dict[str, str]]] = {
    "sd15": ("sd15", lambda p: single(p, "sd15"), {"unet": "ldm", "text_encoder": "ldm"}),
    "sd15 short": (
        "sd15",
        lambda p: single(p, "sd15", short=True),
        {"unet": "ldm", "text_encoder": "ldm"},
    ),
    "sd21": ("sd21", lambda p: single(p, "sd21"), {"unet": "ldm", "text_encoder": "ldm"}),
    "sdxl": (
        "sdxl",
        lambda p: single(p, "sdxl"),
        {"unet": "sgm", "text_encoder": "sgm", "text_encoder_2": "sgm"},
    ),
    "refiner": (
        "sdxl-refiner",
        lambda p: single(p, "sdxl-refiner"),
        {"unet": "sgm", "text_encoder_2": "sgm"},
    ),
    "sd15 folder": (
        "sd15",
        lambda p: folder(p, "sd15"),
        {"unet": "diffusers", "text_encoder": "diffusers"},
    ),
    "sd21 folder, transformers 5": (
        "sd21",
        lambda p: folder(p, "sd21", short=True),
        {"unet": "diffusers", "text_encoder": "diffusers"},
    ),
    "sdxl folder": (
        "sdxl",
        lambda p: folder(p, "sdxl"),
        {"unet": "diffusers", "text_encoder": "diffusers", "text_encoder_2": "diffusers"},
    ),
    "sd21 sharded": (
        "sd21",
        lambda p: sharded(p, "sd21", count=3),
        {"unet": "diffusers", "text_encoder": "diffusers"},
    ),
    **{
        f"{family} unet {prefix!r}": (
            family,
            lambda p, family=family, prefix=prefix: unet_alone(p, family, prefix),  # type: ignore[misc]
            {"unet": layout if prefix != "diffusers" else "diffusers"},
        )
        for family, layout in (("sd15", "ldm"), ("sd21", "ldm"), ("sdxl", "sgm"))
        for prefix in ("", "diffusion_model.", "model.diffusion_model.", "diffusers")
    },
}  # fmt: skip


def stored(place: Place) -> np.ndarray:  # type: ignore[type-arg]
    start, stop = place.rows
    array = place.tensor.numpy()[start:stop]
    return array.T if place.transposed else array


@pytest.mark.parametrize("case", CASES)
def test_family_layout_and_every_slot(tmp_path: Path, case: str) -> None:
    family, make, layouts = CASES[case]
    base = make(tmp_path / "base.safetensors")
    found = open_checkpoint(base.path)
    assert found.family_name == family
    assert found.layouts == layouts
    assert len(found.slots) == len(base.weights)
    for (module, parameter), places in found.slots.items():
        (place,) = places
        expected = base.weights[f"{module}.{parameter}"]
        assert place.shape == expected.shape
        assert np.array_equal(stored(place), expected)
    # fused and transposed tensors belong to several slots or are turned, but each is there once
    assert found.size > sum(w.nbytes for w in base.weights.values())


def test_a_text_encoder_alone(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", "sd21")
    found = open_checkpoint(base.path / "text_encoder" / "model.safetensors")
    assert "sd21" in found.family_name
    assert found.layouts == {"text_encoder": "diffusers"}


def test_the_folder_of_one_component(tmp_path: Path) -> None:
    base = sharded(tmp_path / "base", "sd15")
    found = open_checkpoint(base.path / "unet")
    assert found.family_name == "sd15"
    assert list(found.layouts) == ["unet"]
    by_index = open_checkpoint(
        base.path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    )
    assert by_index.slots.keys() == found.slots.keys()


@pytest.mark.parametrize("named", ["new", "old"])
def test_variants_are_places_of_their_own(tmp_path: Path, named: str) -> None:
    """Sharded variants come as `x.fp16-00001-of-00002` and as `x-00001-of-00002.fp16`."""
    base = sharded(tmp_path / "base", "sd15")
    for path in sorted((base.path / "unet").glob("*-of-*.safetensors")):
        stem = path.name.removesuffix(".safetensors")
        name = f"{stem}.fp16" if named == "old" else stem.replace("model-", "model.fp16-")
        shutil.copy(path, path.with_name(f"{name}.safetensors"))
    found = open_checkpoint(base.path)
    for (module, _), places in found.slots.items():
        assert len(places) == (2 if module.startswith("unet.") else 1)
        assert len({place.file.path for place in places}) == len(places)


def test_two_whole_checkpoints_in_one_folder_are_both_found(tmp_path: Path) -> None:
    """As in the repository of SDXL, beside the component folders."""
    folder(tmp_path / "base", "sdxl")
    for name in ("base_1.0", "base_1.0_0.9vae"):
        single(tmp_path / "base" / f"{name}.safetensors", "sdxl")
    found = open_checkpoint(tmp_path / "base")
    assert {len(places) for places in found.slots.values()} == {3}


def test_pickles(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base = single(tmp_path / "base.safetensors", "sd15")
    (tensors,) = base.tensors(base.weights).values()
    path = tmp_path / "base.ckpt"
    torch.save({"state_dict": {n: torch.tensor(t) for n, t in tensors.items()}, "epoch": 3}, path)
    found = open_checkpoint(path)
    assert found.family_name == "sd15"
    assert found.files.notes == ["base.ckpt is pickled; it will be written as safetensors"]
    for (module, parameter), (place,) in found.slots.items():
        assert np.array_equal(stored(place), base.weights[f"{module}.{parameter}"])


def test_a_pickled_text_encoder_in_a_folder(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base = folder(tmp_path / "base", "sd15")
    tensors = base.tensors(base.weights)["text_encoder/model.safetensors"]
    pickled = {n: torch.tensor(t) for n, t in tensors.items()}
    torch.save(pickled, base.path / "text_encoder" / "pytorch_model.bin")
    beside = open_checkpoint(base.path)
    assert any("left out" in note for note in beside.files.notes)
    assert {len(places) for places in beside.slots.values()} == {1}
    (base.path / "text_encoder" / "model.safetensors").unlink()
    alone = open_checkpoint(base.path)
    assert alone.layouts == {"unet": "diffusers", "text_encoder": "diffusers"}
    (file,) = (f for f in alone.files.weights if f.pickled)
    assert str(file.relative) == "text_encoder/model.safetensors"


def test_an_unsafe_pickle_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "base.ckpt"
    torch.save({"state_dict": Path("x")}, path)
    with pytest.raises(UnsafeFile):
        open_checkpoint(path)


def test_unknown(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    write_safetensors(path, {"blocks.0.weight": np.zeros((2, 2), "float32")})
    found = open_checkpoint(path)
    assert found.family_name == "unknown" and found.candidates == ()
    assert list(found.slots) == [("transformer.blocks.0", "weight")]
    with pytest.raises(FamilyError) as caught:
        found.require_known()
    assert "blocks.0.weight" in str(caught.value)
    assert "sd21" in str(caught.value)


def test_less_than_half_of_a_component_is_not_taken(tmp_path: Path) -> None:
    base = unet_alone(tmp_path / "base.safetensors", "sd15", "")
    (tensors,) = base.tensors(base.weights).values()
    some = dict(list(tensors.items())[: len(tensors) // 3])
    write_safetensors(base.path, some)
    assert open_checkpoint(base.path).candidates == ()


def test_a_network_with_many_other_modules_is_not_of_the_family(tmp_path: Path) -> None:
    """A larger one may have all names of a smaller one, with the same shapes."""
    base = unet_alone(tmp_path / "base.safetensors", "sd15", "")
    (tensors,) = base.tensors(base.weights).values()
    beside = {f"beside.{name}": value for name, value in list(tensors.items())[: len(tensors) // 2]}
    write_safetensors(base.path, tensors | beside)
    assert open_checkpoint(base.path).candidates == ()
    write_safetensors(base.path, tensors | {f"vae.{name}": value for name, value in beside.items()})
    assert open_checkpoint(base.path).family_name == "sd15"


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="no such checkpoint"):
        open_checkpoint(tmp_path / "no")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match="no weights"):
        open_checkpoint(tmp_path / "empty")


def test_a_missing_shard(tmp_path: Path) -> None:
    base = sharded(tmp_path / "base", "sd15")
    shard = "diffusion_pytorch_model-00002-of-00002.safetensors"
    (base.path / "unet" / shard).unlink()
    with pytest.raises(MissingFile, match="shard") as caught:
        open_checkpoint(base.path)
    assert shard in str(caught.value)


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"weight_map": 3}', "{}", '{"weight_map": {"a": "../vae/b.safetensors"}}'],
)
def test_a_broken_index(tmp_path: Path, content: str) -> None:
    base = sharded(tmp_path / "base", "sd15")
    (base.path / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(content)
    with pytest.raises(CorruptFile, match="index"):
        open_checkpoint(base.path)


def test_a_truncated_file(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15")
    raw = base.path.read_bytes()
    base.path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(CorruptFile):
        open_checkpoint(base.path)


def test_hidden_files_are_no_part_of_a_folder(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", "sd15")
    hidden = base.path / ".cache" / "x.safetensors"
    hidden.parent.mkdir()
    hidden.write_bytes(b"half a download")
    found = open_checkpoint(base.path)
    assert not any(".cache" in str(other) for other in found.files.others)
    names = {str(other) for other in found.files.others}
    assert names == {"model_index.json", "unet/config.json", "tokenizer/vocab.json", "README.md"}


def test_shapes_tell_families_apart_only_where_names_do_not(tmp_path: Path) -> None:
    found = open_checkpoint(unet_alone(tmp_path / "a.safetensors", "sd15", "").path)
    assert [f.name for f in found.candidates] == ["sd15"]
    assert "by name" in found.reason


def test_the_builders_hold_every_module() -> None:
    from loramerge.families import FAMILIES

    for name in bases.UNETS:
        assert list(bases.modules(name)) == [n for n, _ in FAMILIES[name].modules()]
    assert list(bases.CLIPS) == list(STABLE_DIFFUSION)
