"""A bake changes the right parameters of every layout, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.errors import (
    OutputExists,
)
from loramerge.events import Progress
from loramerge.stream import rows as stream_rows
from loramerge.stream import walk as walk_module
from loramerge.stream.plan import plan_bake
from tests.builders.baking import Inputs, assert_baked, bake_into, everything, read_all
from tests.builders.bases import (
    UNET_FILE,
    Base,
    adapter_for,
    folder,
    modules,
    read_safetensors,
    sharded,
    single,
    unet_alone,
)
from tests.builders.deltas import adapter, low_rank
from tests.tail import crossed, tail

LAYOUTS: dict[str, tuple[str, Callable[[Path, str], Base]]] = {
    "sd15": ("sd15", lambda p, d: single(p, "sd15", d)),
    "sd15 short": ("sd15", lambda p, d: single(p, "sd15", d, short=True)),
    "sd21": ("sd21", lambda p, d: single(p, "sd21", d)),
    "sdxl": ("sdxl", lambda p, d: single(p, "sdxl", d)),
    "refiner": ("sdxl-refiner", lambda p, d: single(p, "sdxl-refiner", d)),
    "sd15 folder": ("sd15", lambda p, d: folder(p, "sd15", d)),
    "sd21 folder, transformers 5": ("sd21", lambda p, d: folder(p, "sd21", d, short=True)),
    "sdxl folder": ("sdxl", lambda p, d: folder(p, "sdxl", d)),
    "sd21 sharded": ("sd21", lambda p, d: sharded(p, "sd21", d, count=3)),
}


@pytest.mark.long_tail(keep=4)
@pytest.mark.parametrize(("layout", "dtype"), crossed(LAYOUTS, ["F32", "F16", "BF16"]))
def test_every_parameter_of_every_layout(tmp_path: Path, layout: str, dtype: str) -> None:
    family, make = LAYOUTS[layout]
    base = make(tmp_path / "base.safetensors", dtype)
    inputs = [(everything(family), 0.8)]
    survivals = bake_into(base, inputs, tmp_path / "out")
    assert assert_baked(base, inputs, tmp_path / "out", dtype) > 300
    assert len(survivals) == len(inputs[0][0].deltas)


@pytest.mark.long_tail(keep=2)
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_several_adapters_are_summed_before_rounding(tmp_path: Path, dtype: str) -> None:
    base = single(tmp_path / "base.safetensors", "sd21", dtype)
    inputs = [
        (adapter_for("sd21", seed=s, rank=1 + s), w) for s, w in ((1, 0.6), (2, -0.8), (3, 1.0))
    ]
    bake_into(base, inputs, tmp_path / "out.safetensors")
    assert_baked(base, inputs, tmp_path / "out.safetensors", dtype)


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "model.diffusion_model.", "diffusers"])
def test_the_unet_alone(tmp_path: Path, prefix: str) -> None:
    base = unet_alone(tmp_path / "base.safetensors", "sd15", prefix)
    a = adapter_for("sd15", only=lambda name: name.startswith("unet."))
    bake_into(base, [(a, 1.0)], tmp_path / "out.safetensors")
    assert_baked(base, [(a, 1.0)], tmp_path / "out.safetensors", "F32")


def test_untouched_tensors_order_and_metadata(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15", "F16")
    base.metadata = {"format": "pt", "title": "ünï ☃", "modelspec.hash_sha256": "0x00"}
    base.write()
    a = adapter_for("sd15", only=lambda name: name.endswith("attn1.to_q"))
    bake_into(base, [(a, 1.0)], tmp_path / "out.safetensors", metadata={"recipe": "x"})
    assert assert_baked(base, [(a, 1.0)], tmp_path / "out.safetensors", "F16") == 16
    _, metadata = read_safetensors(tmp_path / "out.safetensors")
    # the digest of the old content would be wrong
    assert metadata == {"format": "pt", "title": "ünï ☃", "recipe": "x"}


def test_files_without_a_change_are_copied_byte_for_byte(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", "sdxl")
    base.metadata = {"z": "1", "modelspec.hash_sha256": "0x00", "a": "2"}
    base.write()
    a = adapter_for("sdxl", only=lambda name: name.startswith("text_encoder."))
    bake_into(base, [(a, 1.0)], tmp_path / "out", metadata={"recipe": "x"})
    for path in base.path.rglob("*"):
        if path.is_file():
            relative = path.relative_to(base.path)
            equal = path.read_bytes() == (tmp_path / "out" / relative).read_bytes()
            assert equal == (relative.parts[0] != "text_encoder"), relative
    names = {p.relative_to(base.path) for p in base.path.rglob("*")}
    assert {p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*")} == names
    assert not list(tmp_path.glob("*.partial"))


def test_the_base_is_not_written_to(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15")
    raw, stamp = base.path.read_bytes(), base.path.stat().st_mtime_ns
    bake_into(base, [(adapter_for("sd15"), 1.0)], tmp_path / "out.safetensors")
    assert (base.path.read_bytes(), base.path.stat().st_mtime_ns) == (raw, stamp)


@pytest.mark.parametrize("seed", [7, tail(None)])
def test_the_bytes_do_not_depend_on_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int | None
) -> None:
    monkeypatch.setattr(stream_rows, "BLOCK_ELEMENTS", 300)
    monkeypatch.setattr(walk_module, "_COPY_TASK", 999)
    base = single(tmp_path / "base.safetensors", "sd21", "BF16")
    inputs: Inputs = [(everything("sd21"), 0.7), (adapter_for("sd21", seed=8), -0.2)]
    found = set()
    for threads in (1, 3, 3):
        output = tmp_path / "out.safetensors"
        bake_into(base, inputs, output, threads=threads, seed=seed, force=True)
        found.add(output.read_bytes())
    assert len(found) == 1


def test_linear_adapters_fit_1x1_convolutions(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15")
    name = "unet.mid_block.attentions.0.proj_in"
    assert modules("sd15")[name].shape == (16, 16, 1, 1)
    inputs = [(adapter({name: low_rank((16, 16), 2)}, families=["sd15"]), 1.0)]
    bake_into(base, inputs, tmp_path / "out.safetensors")
    assert assert_baked(base, inputs, tmp_path / "out.safetensors", "F32") == 1


def test_existing_outputs(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15")
    output = tmp_path / "out.safetensors"
    output.write_bytes(b"mine")
    with pytest.raises(OutputExists):
        bake_into(base, [(adapter_for("sd15"), 1.0)], output)
    assert output.read_bytes() == b"mine"
    bake_into(base, [(adapter_for("sd15"), 1.0)], output, force=True)
    assert_baked(base, [(adapter_for("sd15"), 1.0)], output, "F32")


def test_the_output_may_be_the_base(tmp_path: Path) -> None:
    base, a = single(tmp_path / "base.safetensors", "sd15"), adapter_for("sd15")
    bake_into(base, [(a, 1.0)], base.path, force=True)
    assert_baked(base, [(a, 1.0)], base.path, "F32")
    tree = folder(tmp_path / "tree", "sd15")
    bake_into(tree, [(a, 1.0)], tree.path, force=True)
    assert_baked(tree, [(a, 1.0)], tree.path, "F32")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.safetensors", "tree"]


def test_the_plan_says_what_will_change(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd21")
    a = adapter_for("sd21", only=lambda n: "layers.0.self_attn" in n)
    plan = plan_bake(open_checkpoint(base.path), [(a, Weight()), (a, Weight(0.5))])
    assert plan.modules == [s.name for s in a.deltas]
    assert plan.tensors == 2  # in_proj_weight and out_proj


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", "sd15")
    events: list[Any] = []
    bake_into(base, [(adapter_for("sd15"), 1.0)], tmp_path / "out", notify=events.append)
    assert all(isinstance(e, Progress) and e.unit == "bytes" for e in events)
    done = [e.done for e in events]
    assert done == sorted(done)
    data = sum(a.nbytes for f in read_all(tmp_path / "out").values() for a in f.values())
    assert done[-1] == data == events[-1].total


def test_late_entries(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", "sd15")
    late: Future[dict[str, str]] = Future()
    late.set_result({"digest": "f" * 64})
    a = adapter_for("sd15", only=lambda n: n.startswith("unet."))
    bake_into(base, [(a, 1.0)], tmp_path / "out", metadata={"digest": "0" * 64}, late=late)
    assert read_safetensors(tmp_path / "out" / UNET_FILE)[1]["digest"] == "f" * 64
    assert_baked(base, [(a, 1.0)], tmp_path / "out", "F32")
