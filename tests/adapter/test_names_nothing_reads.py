"""Names that no program reads are written as programs do; names that several models share are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loramerge.adapter.load import load
from loramerge.dialects import stem_table
from loramerge.dialects.known import comfyui
from loramerge.families import FAMILIES
from tests.adapter.test_no_module_is_lost import tensors_of, write
from tests.builders.commands import Runner
from tests.builders.samples import relative
from tests.tail import tail

_KLEIN = {
    f"double_blocks.{i}.{leaf}": shape
    for i in range(2)
    for leaf, shape in {"img_attn.qkv": (12288, 4096), "img_mlp.0": (24576, 4096)}.items()
}


def _mangled(path: str) -> str:
    head, _, end = path.rpartition(".")
    return f"{head}_{end}"


def _flat(path: str) -> str:
    return path.replace(".", "_")


@pytest.mark.parametrize(
    ("head", "spell", "mangle"),
    [
        pytest.param("diffusion_model.", str, _mangled, id="some dots"),
        tail("diffusion_model.", str, "{}_".format, id="one too many"),
        tail("lora_unet_", _flat, "{}_".format, id="one too many, flat"),
        pytest.param("lora_unet_", _flat, lambda flat: flat.replace("_img", ".img"), id="a dot"),
    ],
)
def test_names_with_other_underscores_are_read_and_written_as_programs_do(
    head: str, spell: Callable[[str], str], mangle: Callable[[str], str], run: Runner
) -> None:
    usual = {head + spell(path): shape for path, shape in _KLEIN.items()}
    odd = {head + mangle(spell(path)): shape for path, shape in _KLEIN.items()}
    adapter = load(write(run.folder / "x.safetensors", tensors_of(odd)))
    expected = load(write(run.folder / "u.safetensors", tensors_of(usual))).require_sound()
    assert adapter.require_sound().info.detection.name == "flux2-klein-9b"
    assert set(adapter) == set(expected) and len(adapter.info.detection.respelled) == 4
    for command in ("mix x:1", "convert x --to comfyui", "resize x --rank 1"):
        run.ok(*command.split(), "-o", f"{command[0]}.safetensors")
        found = load(f"{command[0]}.safetensors")
        assert not found.info.detection.respelled and not found.info.account.unknown
        stems = {key.partition(".lora_")[0].partition(".alpha")[0] for key in found.info.order}
        whole = {f"diffusion_model.{path}" for path in _KLEIN} if command[0] == "c" else set(usual)
        assert stems == whole
        assert set(found) == set(expected)
        module, delta = min(expected.items(), key=lambda one: one[1].shape)
        assert relative(found[module].dense(), delta.dense()) < 1e-6
    (told,) = run.ok("inspect", "x.safetensors", "--json").json
    assert not told["loads_in"] and told["findings"][0]["code"] == "other-names"


def test_another_word_for_a_text_encoder_is_no_other_spelling(tmp_path: Path) -> None:
    """The tiny model says `te1`; its shapes alone do not make a file its adapter."""
    stems = {f"lora_te_text_model_encoder_layers_0_self_attn_{x}_proj": (64, 64) for x in "qkv"}
    found = load(write(tmp_path / "a.safetensors", tensors_of(stems))).info.detection
    assert not found.candidates and not found.respelled


def test_other_shapes_under_such_names_are_of_no_family(tmp_path: Path) -> None:
    odd = {f"diffusion_model.{_mangled(path)}": (3000, 1000) for path in _KLEIN}
    found = load(write(tmp_path / "a.safetensors", tensors_of(odd))).info.detection
    assert not found.candidates and not found.respelled


@pytest.mark.parametrize("head", ["diffusion_model.", "", "transformer.", "lora_unet_"])
def test_a_name_as_it_should_be_is_not_mangled(head: str, tmp_path: Path) -> None:
    """Whichever prefix stands before it, known there or not."""
    stems = {
        head + (path.replace(".", "_") if head == "lora_unet_" else path): shape
        for path, shape in _KLEIN.items()
    }
    found = load(write(tmp_path / "a.safetensors", tensors_of(stems))).info.detection
    assert not found.respelled


def test_other_families_are_found_too(tmp_path: Path) -> None:
    """Every family that ComfyUI reads, with a dot of each name lost."""
    for name in ("flux1", "wan", "z-image", "qwen-image"):
        table = stem_table(comfyui.DIALECT, FAMILIES[name])
        stems = {_mangled(s): t.shape for s, t in list(table.items())[20:40] if len(t.shape) == 2}
        tensors = tensors_of(stems)
        found = load(write(tmp_path / "a.safetensors", tensors)).info.detection
        assert FAMILIES[name] in found.candidates and found.respelled, (name, found.reason)


@pytest.mark.parametrize(("to", "told"), [("kohya", True), ("diffusers", False)])
def test_a_possible_twin_family_is_a_warning_when_names_change(
    to: str, told: bool, run: Runner
) -> None:
    _write_queries(run, 0, 37)  # Flux.3 and AuraFlow have fewer blocks
    result = run.ok("convert", "x.safetensors", "--to", to, "-o", "y.safetensors")
    assert ("may also belong to Chroma, Bria" in result.err) == told


def _write_queries(run: Runner, *blocks: int) -> None:
    stems = {f"transformer.single_transformer_blocks.{i}.attn.to_q": (3072, 3072) for i in blocks}
    write(run.folder / "x.safetensors", tensors_of(stems))


def test_names_that_differ_between_possible_families_are_told(run: Runner) -> None:
    """Flux.1 stores the queries in a fused layer, Flux.3 and AuraFlow in one of their own."""
    _write_queries(run, 0, 1)
    says = "may be of flux1 or flux3 or auraflow, which have different names in the dialect"
    for i, command in enumerate(
        ("convert x --to kohya", "mix x:0.5 --to comfyui", "resize x --rank 1 --to kohya")
    ):
        result = run.ok(*command.split(), "-o", f"y{i}.safetensors")
        assert says in result.err and "the result has those of flux1" in result.err
    assert says not in run.ok("convert", "x", "--to", "peft", "-o", "y").err  # all have the same
    run.ok("meta", "x.safetensors", "--set", "modelspec.architecture=auraflow")
    run.ok("convert", "x", "--to", "comfyui", "-o", "z.safetensors")
    stems = {key.partition(".lora_")[0] for key in load("z.safetensors").info.order}
    assert stems == {f"diffusion_model.single_layers.{i}.attn.w1q" for i in (0, 1)}
