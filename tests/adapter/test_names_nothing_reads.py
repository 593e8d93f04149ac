"""Names that no program reads are not written again; names that several models share are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from loramerge.adapter.load import load
from loramerge.dialects import stem_table
from loramerge.dialects.known import comfyui
from loramerge.families import FAMILIES
from tests.adapter.test_no_module_is_lost import tensors_of, write
from tests.builders.commands import Runner

_KLEIN = {
    f"double_blocks.{i}.{leaf}": shape
    for i in range(2)
    for leaf, shape in {"img_attn.qkv": (12288, 4096), "img_mlp.0": (24576, 4096)}.items()
}


def _mangled(path: str) -> str:
    head, _, end = path.rpartition(".")
    return f"{head}_{end}"


def test_underscores_for_some_dots_are_told_and_not_written(run: Runner) -> None:
    stems = {f"diffusion_model.{_mangled(path)}": shape for path, shape in _KLEIN.items()}
    adapter = load(write(run.folder / "x.safetensors", tensors_of(stems)))
    found = adapter.info.detection
    assert (found.name, found.resembles, found.mangled) == (None, ("flux2-klein-9b",), True)
    assert "4 of 4 modules have underscores where its names have dots" in found.reason
    for command in ("mix x:0.5", "convert x --to comfyui", "resize x --rank 1"):
        says = "no program reads these names of modules"
        run.refused(4, *command.split(), "-o", "y.safetensors", says=says)


@pytest.mark.parametrize("head", ["diffusion_model.", "", "transformer.", "lora_unet_"])
def test_a_name_as_it_should_be_is_not_mangled(head: str, tmp_path: Path) -> None:
    """Whichever prefix stands before it, known there or not."""
    stems = {
        head + (path.replace(".", "_") if head == "lora_unet_" else path): shape
        for path, shape in _KLEIN.items()
    }
    found = load(write(tmp_path / "a.safetensors", tensors_of(stems))).info.detection
    assert not found.mangled


def test_other_families_are_told_too(tmp_path: Path) -> None:
    """Every family that ComfyUI reads, with a dot of each name lost."""
    for name in ("flux1", "wan", "z-image", "qwen-image"):
        table = stem_table(comfyui.DIALECT, FAMILIES[name])
        stems = {_mangled(s): t.shape for s, t in list(table.items())[20:40] if len(t.shape) == 2}
        tensors = tensors_of(stems)
        found = load(write(tmp_path / "a.safetensors", tensors)).info.detection
        assert not found.candidates and found.mangled, (name, found.reason)


@pytest.mark.parametrize(("to", "told"), [("kohya", True), ("diffusers", False)])
def test_a_possible_twin_family_is_a_warning_when_names_change(
    to: str, told: bool, run: Runner
) -> None:
    stems = {f"transformer.single_transformer_blocks.{i}.attn.to_q": (3072, 3072) for i in range(3)}
    write(run.folder / "x.safetensors", tensors_of(stems))
    result = run.ok("convert", "x.safetensors", "--to", to, "-o", "y.safetensors")
    assert ("may also belong to Chroma, Bria" in result.err) == told
