"""What comes with loramerge: found by name, small, and the second base made when first asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loramerge
from loramerge.adapter.load import load
from loramerge.checkpoint import open_checkpoint
from loramerge.errors import FamilyError, FileError, NotFound, OutputExists
from loramerge.files.reader import TensorFile
from loramerge.library import shipped as module
from loramerge.library.lookup import find
from loramerge.library.registry import NameRegistry, cache
from loramerge.library.shipped import OUTLINED, SHIPPED_ADAPTERS, SHIPPED_BASES, TINY, shipped
from loramerge.library.sidecars import sidecar_facts
from tests.builders.single_file import write_single_file

ROOT = Path(loramerge.__file__).parent
FOLDER = ROOT / "shipped"


def weights(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {
        f"{path.parent.name}/{name}": tensor.numpy()
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in TensorFile(path).tensors.items()
    }


def test_everything_that_comes_with_it_is_at_most_eight_megabytes() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000
    assert {path.suffix for path in files} == {".safetensors", ".json", ".txt", ".png"}


def test_the_base_is_of_its_family_and_half_precision() -> None:
    checkpoint = open_checkpoint(shipped(TINY))
    assert checkpoint.family_name == "tiny"
    assert {tensor.dtype for tensor in weights(shipped(TINY)).values()} == {np.dtype(np.float16)}


@pytest.mark.parametrize("name", [*SHIPPED_ADAPTERS, OUTLINED])
def test_the_adapters_are_of_its_family(name: str) -> None:
    path = shipped(name) if name in SHIPPED_ADAPTERS else FOLDER / f"{name}.safetensors"
    adapter = load(path)
    assert adapter.info.detection.name == "tiny"
    assert not list(adapter.info.account.unknown)


@pytest.mark.parametrize("name", SHIPPED_ADAPTERS)
def test_a_picture_lies_beside_each_adapter(name: str) -> None:
    """Drawn by tiny: 32 pixels, enlarged to 256 without smoothing, so that each is a block of eight."""
    preview = sidecar_facts(shipped(name)).preview
    assert preview == FOLDER / f"{name}.preview.png"
    assert preview.stat().st_size < 20_000
    pixels = np.asarray(pytest.importorskip("PIL.Image").open(preview))
    assert pixels.shape == (256, 256, 3)
    small = pixels[::8, ::8]
    assert np.array_equal(pixels, small.repeat(8, axis=0).repeat(8, axis=1))
    assert len(np.unique(small.reshape(-1, 3), axis=0)) > 100


# --- by name ------------------------------------------------------------------------------------


def test_names_are_found_where_nothing_else_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("tiny", "bases", NameRegistry()) == FOLDER / "tiny"
    assert find("zuzu", "adapters", NameRegistry()) == FOLDER / "zuzu.safetensors"
    (tmp_path / "zuzu.safetensors").write_bytes(b"")
    assert find("zuzu", "adapters", NameRegistry()) == Path("zuzu.safetensors")
    assert find("tiny", "bases", NameRegistry({"tiny": str(tmp_path)})) == tmp_path
    (tmp_path / "tiny").mkdir()  # some folder, but no checkpoint
    assert find("tiny", "bases", NameRegistry()) == FOLDER / "tiny"


def test_a_base_is_no_adapter_and_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(NotFound):
        find("tiny", "adapters", NameRegistry())
    with pytest.raises(NotFound) as caught:
        find("tiny-outlines", "bases", NameRegistry())
    assert caught.value.hint == "did you mean tiny-outlined?"
    with pytest.raises(NotFound, match="comes with"):
        shipped("nothing")


def test_missing_shipped_files_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FOLDER", "nowhere")
    for name in (*SHIPPED_BASES, *SHIPPED_ADAPTERS):
        with pytest.raises(FileError, match="was not installed"):
            shipped(name)


# --- the second base ----------------------------------------------------------------------------


def test_the_second_base_is_baked_once_into_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    first = shipped(OUTLINED)
    assert first.is_relative_to(cache()) and open_checkpoint(first).family_name == "tiny"
    monkeypatch.setattr(module, "_bake", lambda *_: pytest.fail("baked again"))
    assert shipped(OUTLINED) == first
    assert list(first.parent.iterdir()) == [first]


def test_it_is_the_first_base_and_the_adapter() -> None:
    """Every weight an adapter's module has is W + ΔW, rounded once; all others are the base's."""
    base, other = weights(shipped(TINY)), weights(shipped(OUTLINED))
    adapter = load(FOLDER / f"{OUTLINED}.safetensors")
    touched = set()
    for site, delta in adapter.deltas.items():
        key = f"{site.name.replace('.', '/', 1)}.weight"
        change = np.asarray(delta.dense(), dtype=np.float64)
        exact = base[key].astype(np.float64) + change.reshape(base[key].shape)
        assert np.abs(other[key] - exact).max() <= 2 * np.spacing(np.abs(other[key])).max()
        doubled = exact + change.reshape(base[key].shape)
        assert np.abs(other[key] - doubled).max() > 10 * np.spacing(np.abs(other[key])).max()
        touched.add(key)
    assert base.keys() == other.keys() and touched
    for key in base.keys() - touched:
        assert np.array_equal(base[key], other[key])


def test_several_at_once_all_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real, gate = module._bake, threading.Barrier(2, timeout=60)
    names = iter(("one", "two"))

    def slow(base: Path, adapter: Path, output: Path) -> None:
        gate.wait()  # both have found nothing
        real(base, adapter, output)

    monkeypatch.setattr(module, "_bake", slow)
    monkeypatch.setattr(module, "_own", lambda target: target.with_name(next(names)))
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(shipped(OUTLINED))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and found[0] == found[1]
    assert list(found[0].parent.iterdir()) == [found[0]]


def test_a_failed_bake_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(base: Path, adapter: Path, output: Path) -> None:
        output.mkdir()
        raise OSError(28, "no space left")

    monkeypatch.setattr(module, "_bake", fail)
    with pytest.raises(FileError, match="tiny-outlined cannot be made"):
        shipped(OUTLINED)
    assert not list((cache() / "bases").iterdir())


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORAMERGE_HOME", str(tmp_path / "file"))
    with pytest.raises(FileError, match="LORAMERGE_HOME"):
        shipped(OUTLINED)


@pytest.mark.parametrize("base", SHIPPED_BASES)
def test_bake_by_name_offline_and_without_torch(base: str, tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom loramerge.cli.main import main\n"
        f"sys.exit(main(['bake', '--base', {base!r}, '--lora', 'zuzu:0.8', '-o', 'out']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after = weights(shipped(base)), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    changed = {key for key in before if not np.array_equal(before[key], after[key])}
    assert len(changed) == len(load(shipped("zuzu")).deltas)


# --- one file -----------------------------------------------------------------------------------


def test_the_base_as_one_file_has_the_same_weights(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    write_single_file(shipped(TINY), path)
    folder, single = open_checkpoint(shipped(TINY)), open_checkpoint(path)
    assert single.family_name == "tiny" and set(single.layouts.values()) == {"ldm"}
    assert folder.slots.keys() == single.slots.keys()
    for key, places in folder.slots.items():
        (one,) = single.slots[key]
        assert np.array_equal(places[0].tensor.numpy(), one.tensor.numpy())
    with pytest.raises(OutputExists):
        write_single_file(shipped(TINY), path)


def test_diffusers_reads_the_one_file_as_the_same_pipeline(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    diffusers: Any = pytest.importorskip("diffusers")
    path = tmp_path / "tiny.safetensors"
    write_single_file(shipped(TINY), path)
    load_file = pytest.importorskip("safetensors.torch").load_file
    base = shipped(TINY)
    for name, cls in {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}.items():
        model = getattr(diffusers, cls).from_single_file(
            str(path), config=str(base), subfolder=name, local_files_only=True
        )
        expected = load_file(base / name / "diffusion_pytorch_model.safetensors")
        found = model.state_dict()
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value.to(found[key].dtype))


def test_one_file_bakes_as_the_folder_does(tmp_path: Path) -> None:
    single = tmp_path / "tiny.safetensors"
    write_single_file(shipped(TINY), single)
    pair = [(loramerge.load("zuzu"), 0.7)]
    loramerge.bake("tiny", pair, tmp_path / "folder")
    loramerge.bake(single, pair, tmp_path / "one.safetensors")
    folder = open_checkpoint(tmp_path / "folder")
    one = open_checkpoint(tmp_path / "one.safetensors")
    for key, places in folder.slots.items():
        assert np.array_equal(places[0].tensor.numpy(), one.slots[key][0].tensor.numpy())


def test_a_family_whose_single_file_is_fused_is_refused(tmp_path: Path) -> None:
    single = tmp_path / "tiny.safetensors"
    write_single_file(shipped(TINY), single)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.safetensors").write_bytes(
        (shipped(TINY) / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    )
    with pytest.raises(FamilyError, match=r"text_encoder\..*embedding"):
        write_single_file(tmp_path / "unet", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


# ---- names in place of paths


def _require_names(by_name: Any) -> None:
    """Require that paths of what comes with loramerge become names, and that no others change."""
    for name, path in (("tiny", FOLDER / "tiny"), ("zuzu", FOLDER / "zuzu.safetensors")):
        text = f"error: {path}: no\n  found: the file {path}.\n  hint: give '{path}'"
        assert (
            by_name(text) == f"error: {name}: no\n  found: the file {name}.\n  hint: give '{name}'"
        )
    outlined = cache() / "bases" / f"{OUTLINED}-0123456789ab"
    assert by_name(f"{outlined}: no") == f"{OUTLINED}: no"
    for other in (
        FOLDER / "tiny/unet/config.json",
        FOLDER / "zuzu.preview.png",
        FOLDER / "zuzu.safetensors.bak",
        Path("elsewhere/shipped/tiny"),
        Path(f"{OUTLINED}-0123456789ab"),
    ):
        assert by_name(f"error: {other}: no") == f"error: {other}: no"


def test_texts_have_the_names_of_what_comes_with_it() -> None:
    _require_names(module.by_name)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda text: text,
        lambda text: text.replace(str(FOLDER / "tiny"), "tiny"),
        lambda text: module._path_below(FOLDER).sub(lambda found: Path(found[0]).stem, text),
    ],
)
def test_a_wrong_name_is_found(wrong: Any) -> None:
    with pytest.raises(AssertionError):
        _require_names(wrong)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("inspect", "tiny"), "tiny (6.91 MB)"),
        (("inspect", "zuzu"), "zuzu (292 kB)"),
        (("diff", "zuzu", "tiny"), "error: tiny: this is a checkpoint"),
        (("meta", "zuzu", "--set", "a=b"), "error: zuzu: this file comes with loramerge"),
        (("verify", "zuzu"), "error: zuzu: the header holds no recipe"),
        (("resize", "zuzu", "--rank", "99"), "note: zuzu: already at or below rank 99"),
        (("unbake", "tiny", "--lora", "zuzu"), "checkpoint      tiny (family tiny)"),
    ],
)
def test_commands_call_it_by_the_name_that_was_typed(run: Any, command: Any, says: str) -> None:
    done = run(*command)
    assert says in done.out + done.err
    assert str(FOLDER) not in done.out + done.err
