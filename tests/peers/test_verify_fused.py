"""verify on what PEFT and diffusers fused: sound merges are not accused, in any type.

PEFT merges into models of transformers (`merge_and_unload`), diffusers into pipelines (`fuse_lora`),
both in the type of the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.steps.references import parse_reference
from loramerge.verbs.verify import Verify, VerifyResult, verify
from tests.builders.language import base_folder, opened
from tests.tail import tail

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
torch: Any = pytest.importorskip("torch")
peft: Any = pytest.importorskip("peft")
lora: Any = pytest.importorskip("peft.tuners.lora.config")
pytest.importorskip("transformers")


def check(out: Path, base: Path, *adapters: str) -> VerifyResult:
    references = tuple(parse_reference(one) for one in adapters)
    return verify(Verify(file=parse_reference(str(out)), base=str(base), lora=references))


@pytest.mark.parametrize("dtype", ["bfloat16", tail("float16"), tail("float32")])
@pytest.mark.parametrize("rslora", [False, tail(True)])
def test_merged_by_peft(dtype: str, rslora: bool, tmp_path: Path) -> None:
    base = base_folder("llama", tmp_path / "base")
    if dtype != "float32":
        narrow = opened(base).to(getattr(torch, dtype))
        base = tmp_path / "narrow"
        narrow.save_pretrained(base)
    config = lora.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], use_rslora=rslora
    )
    model = peft.get_peft_model(opened(base), config)
    torch.manual_seed(1)
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data = 0.1 * torch.randn_like(value)
    model.save_pretrained(tmp_path / "adapter")
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "out")
    found = check(tmp_path / "out", base, str(tmp_path / "adapter"))
    assert found.holds, found.verdict
    assert found.contents is not None
    assert found.contents.found[0].strength == pytest.approx(1.0, abs=0.02)
    assert check(tmp_path / "out", base, f"{tmp_path / 'adapter'}:1").holds
    wrong = check(tmp_path / "out", base, f"{tmp_path / 'adapter'}:0.5")
    assert not wrong.holds and "baked twice" in wrong.verdict
    assert not check(base, base, str(tmp_path / "adapter")).holds


@pytest.mark.parametrize(("first", "second"), [(0.7, 0.4), tail(1.0, 1.0), tail(-0.5, 1.3)])
def test_two_fused_by_diffusers(first: float, second: float, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=16,
        attention_head_dim=8, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    unet = unet.to(torch.float16)
    unet.save_pretrained(tmp_path / "base")
    names = ("one", "two")
    for seed, name in enumerate(names):
        config = lora.LoraConfig(r=4, lora_alpha=2, target_modules=["to_q", "to_k", "to_out.0"])
        unet.add_adapter(config, adapter_name=name)
        torch.manual_seed(seed + 1)
        for key, value in unet.named_parameters():
            if f".{name}." in key:
                value.data = 0.2 * torch.randn_like(value)
        unet.save_lora_adapter(tmp_path / name, adapter_name=name)
    unet.set_adapters(list(names), [first, second])
    unet.fuse_lora()
    unet.unload_lora()
    unet.save_pretrained(tmp_path / "out")
    files = [next((tmp_path / name).glob("*.safetensors")) for name in names]
    found = check(tmp_path / "out", tmp_path / "base", *map(str, files))
    assert found.holds, found.verdict
    assert found.contents is not None
    strengths = [one.strength for one in found.contents.found]
    assert np.allclose(strengths, (first, second), rtol=0.02), found.verdict
    stated = [f"{file}:{weight}" for file, weight in zip(files, (first, second), strict=True)]
    assert check(tmp_path / "out", tmp_path / "base", *stated).holds


def test_the_builders_adapter_is_not_in_another_base(tmp_path: Path) -> None:
    base = base_folder("llama", tmp_path / "base")
    adapter = tmp_path / "adapter"
    config = lora.LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"])
    model = peft.get_peft_model(opened(base), config)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data = torch.randn_like(value)
    model.save_pretrained(adapter)
    other = opened(base)
    for value in other.parameters():
        value.data += 0.01 * torch.randn_like(value)
    other.save_pretrained(tmp_path / "tuned")
    found = check(tmp_path / "tuned", base, str(adapter))
    assert not found.holds and "is not in it" in found.verdict
