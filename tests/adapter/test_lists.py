"""lora_diffusion's positional files: `.safetensors` and lists in pickles, with embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.errors import FileError, FormatError, NotExpressible, OutputExists, UnsafeFile
from tests.builders.samples import (
    Sample,
    attention,
    factors_for,
    make,
    oracle,
    read_safetensors,
    relative,
    sayable,
    spell,
    write,
)

torch: Any = pytest.importorskip("torch")


def places(family: str = "sd15") -> dict[str, Any]:
    return sayable("lora_diffusion", family, attention(family, full=True))


@pytest.fixture(scope="module")
def sample() -> Sample:
    made = spell(factors_for(places(), rank=1, dtype=np.float16), "sd15", "lora_diffusion")
    for i, token in enumerate(("<s1>", "<s2>")):
        made.tensors[token] = np.full(768, i + 0.5, np.float16)
        made.metadata[token] = "<embed>"
    return made


def as_lists(sample: Sample, path: Path) -> Path:
    """Write a sample as lora_diffusion's `.pt` files."""
    for component, end in (("unet", ""), ("text_encoder", ".text_encoder")):
        count = sum(k.startswith(f"{component}:") for k in sample.tensors) // 2
        content = [
            torch.from_numpy(sample.tensors[f"{component}:{i}:{role}"].copy())
            for i in range(count)
            for role in ("up", "down")
        ]
        torch.save(content, path.with_name(f"{path.stem}{end}.pt"))
    tokens = {k: torch.from_numpy(v.copy()) for k, v in sample.tensors.items() if k[0] == "<"}
    if tokens:
        torch.save(tokens, path.with_name(f"{path.stem}.ti.pt"))
    return path


def test_lists_mean_what_the_tensors_file_means(sample: Sample, tmp_path: Path) -> None:
    adapter = load(as_lists(sample, tmp_path / "a.pt")).require_sound()
    assert adapter.family is not None and adapter.family.name == "sd15"
    assert adapter.components() == {"unet": 144, "text_encoder": 48}
    assert set(adapter.embeddings) == {"<s1>", "<s2>"}
    assert not adapter.info.account.unknown
    assert adapter.info.size == sum(p.stat().st_size for p in tmp_path.iterdir())
    some = list(places())[::13]
    expected = oracle(sample, some)
    found = {site.name: delta for site, delta in adapter.deltas.items()}
    assert all(relative(found[name].dense(), expected[name]) < 1e-12 for name in some)


def test_lists_are_written_as_they_are_read(sample: Sample, tmp_path: Path) -> None:
    source = write(sample, tmp_path / "a.safetensors")
    save(load(source), tmp_path / "b.pt")
    assert {p.name for p in tmp_path.glob("b*")} == {"b.pt", "b.text_encoder.pt", "b.ti.pt"}
    content = torch.load(tmp_path / "b.pt", weights_only=True)
    assert isinstance(content, list) and len(content) == 288
    assert np.array_equal(content[2 * 17].numpy(), sample.tensors["unet:17:up"])
    assert np.array_equal(content[2 * 17 + 1].numpy(), sample.tensors["unet:17:down"])
    save(load(tmp_path / "b.pt"), tmp_path / "c.safetensors")
    arrays, metadata = read_safetensors(tmp_path / "c.safetensors")
    assert arrays.keys() == sample.tensors.keys()
    assert all(np.array_equal(arrays[k], v) for k, v in sample.tensors.items())
    assert metadata["<s1>"] == "<embed>" and metadata["unet:17:rank"] == "1"


def test_a_list_is_not_overwritten_without_force(sample: Sample, tmp_path: Path) -> None:
    adapter = load(write(sample, tmp_path / "a.safetensors"))
    (tmp_path / "b.ti.pt").write_bytes(b"precious")
    with pytest.raises(OutputExists):
        save(adapter, tmp_path / "b.pt")
    assert {p.name for p in tmp_path.glob("b*")} == {"b.ti.pt"}


def test_a_text_encoder_list_is_read_alone(sample: Sample, tmp_path: Path) -> None:
    as_lists(sample, tmp_path / "a.pt")
    adapter = load(tmp_path / "a.text_encoder.pt")
    assert adapter.components() == {"text_encoder": 48}


def test_other_pickles_are_not_lists(tmp_path: Path) -> None:
    for i, content in enumerate(([torch.zeros(1)], ["up", "down"], torch.zeros(3))):
        path = tmp_path / f"{i}.pt"
        torch.save(content, path)
        with pytest.raises(FormatError, match="neither a dictionary nor a list"):
            load(path)


def test_broken_sister_files_are_said(sample: Sample, tmp_path: Path) -> None:
    as_lists(sample, tmp_path / "a.pt")
    torch.save([1, 2], tmp_path / "a.ti.pt")
    with pytest.raises(FileError, match="expected a dictionary of tensors") as caught:
        load(tmp_path / "a.pt")
    assert caught.value.file == str(tmp_path / "a.ti.pt")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "a.ti.pt")
    with pytest.raises(UnsafeFile):
        load(tmp_path / "a.pt")


def test_a_pickled_state_dict_is_an_adapter_too(tmp_path: Path) -> None:
    small = make("sd15", "kohya", alpha=1.0)
    content = {k: torch.from_numpy(np.array(v)) for k, v in small.tensors.items()}
    torch.save(content, tmp_path / "a.pt")
    adapter = load(tmp_path / "a.pt").require_sound()
    assert len(adapter.deltas) == len(small.tensors) / 3


@pytest.mark.parametrize("family", ["sd15", "sd21"])
@pytest.mark.parametrize("extra", [-1, 1, 40, 400])
def test_counts_of_extended_targets_are_refused(family: str, extra: int, tmp_path: Path) -> None:
    small = make(family, "lora_diffusion")
    if extra < 0:
        for role in ("up", "down"):
            del small.tensors[f"unet:143:{role}"]
    for i in range(extra):
        small.tensors |= {
            f"unet:{144 + i}:{role}": np.zeros((1, 1), np.float32) for role in ("up", "down")
        }
    small.metadata["unet"] = '["CrossAttention", "ResnetBlock2D"]'
    with pytest.raises(FormatError, match="cannot be assigned to modules") as caught:
        load(write(small, tmp_path / "a.safetensors"))
    assert caught.value.exit_code == 4
    assert f"{144 + extra} modules" in str(caught.value)
    assert "ResnetBlock2D" in str(caught.value)


def test_only_lists_are_written_as_pickles(tmp_path: Path) -> None:
    adapter = load(write(make("sd15", "kohya"), tmp_path / "a.safetensors"))
    with pytest.raises(FormatError, match="only lora_diffusion lists"):
        save(adapter, tmp_path / "b.pt")


def test_places_without_a_delta_are_filled_with_nothing(tmp_path: Path) -> None:
    chosen = dict(list(places().items())[:5])
    path = tmp_path / "b.safetensors"
    part = spell(factors_for(chosen), "sd15", "kohya")
    save(load(write(part, tmp_path / "a.safetensors")), path, to="lora_diffusion")
    again = load(path).require_sound()
    assert again.components() == {"unet": 144}
    expected = oracle(part, chosen)
    for site, delta in list(again.deltas.items())[:40]:
        if site.name in chosen:
            assert relative(delta.dense(), expected[site.name]) < 1e-6
        else:
            assert not delta.dense().any()


def test_lists_are_written_together_or_not_at_all(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = load(write(sample, tmp_path / "a.safetensors"))
    for name in ("b.pt", "b.text_encoder.pt", "b.ti.pt"):
        (tmp_path / name).write_bytes(b"old")
    save_one, count = torch.save, 0

    def full(content: object, file: object) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(28, "No space left on device")
        save_one(content, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        save(adapter, tmp_path / "b.pt", force=True)
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*b*.pt")} == dict.fromkeys(
        ("b.pt", "b.text_encoder.pt", "b.ti.pt"), b"old"
    )
    assert not list(tmp_path.glob(".*"))


def test_an_adapter_without_unet_has_no_lists_of_its_own(sample: Sample, tmp_path: Path) -> None:
    as_lists(sample, tmp_path / "a.pt")
    with pytest.raises(NotExpressible, match="UNet"):
        save(load(tmp_path / "a.text_encoder.pt"), tmp_path / "b.pt")
