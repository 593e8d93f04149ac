"""A single file trains offline, with the configurations of a folder, as the folder does."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch")
diffusers: Any = pytest.importorskip("diffusers")

from loramerge.errors import UsageError  # noqa: E402
from loramerge.steps.parameters import Context  # noqa: E402
from loramerge.train.models.pipeline import load_pipeline  # noqa: E402
from loramerge.train.run.log import read_log  # noqa: E402
from loramerge.verbs.train.parameters import Train  # noqa: E402
from loramerge.verbs.train.run import train  # noqa: E402
from tests.builders.pictures import folder_of  # noqa: E402
from tests.builders.pipelines import pipeline_folder  # noqa: E402
from tests.builders.samples import read_safetensors, safetensors_bytes, sgm_path  # noqa: E402

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose UNet has as many blocks as SD1's, which conversion counts on."""
    place = tmp_path_factory.mktemp("single") / "folder"
    shutil.copytree(pipeline_folder("sd15"), place)
    torch.manual_seed(7)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, layers_per_block=2, block_out_channels=(8, 8, 16, 16), norm_num_groups=4,
        attention_head_dim=4, cross_attention_dim=12,
        down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    )  # fmt: skip
    unet.save_pretrained(place / "unet")
    return place


def _vae_key(name: str, levels: int) -> str:
    """What LDM calls a parameter of the VAE."""
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(
        r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", name
    )
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(
        r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name
    )
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for old, new in (
        ("mid_block.attentions.0.", "mid.attn_1."), ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"), ("group_norm", "norm"), ("to_q.", "q."),
        ("to_k.", "k."), ("to_v.", "v."), ("to_out.0.", "proj_out."),
    ):  # fmt: skip
        name = name.replace(old, new)
    return f"first_stage_model.{name}"


@pytest.fixture(scope="module")
def single(folder: Path) -> Path:
    """The same model as one file in the layout of SD1."""
    tensors: dict[str, Any] = {}
    for key, value in read_safetensors(folder / "unet/diffusion_pytorch_model.safetensors")[
        0
    ].items():
        path, _, parameter = key.rpartition(".")
        tensors[f"model.diffusion_model.{sgm_path(path, 'sd15')}.{parameter}"] = value
    levels = len(json.loads((folder / "vae/config.json").read_text())["block_out_channels"])
    for key, value in read_safetensors(folder / "vae/diffusion_pytorch_model.safetensors")[
        0
    ].items():
        square = ".attentions." in key and value.ndim == 2
        tensors[_vae_key(key, levels)] = value[:, :, None, None] if square else value
    for key, value in read_safetensors(folder / "text_encoder/model.safetensors")[0].items():
        inner = key if key.startswith("text_model.") else f"text_model.{key}"
        tensors[f"cond_stage_model.transformer.{inner}"] = value
    path = folder.parent / "single.safetensors"
    path.write_bytes(
        safetensors_bytes({k: np.ascontiguousarray(v) for k, v in tensors.items()}, {})
    )
    return path


def test_it_is_read_as_the_folder_is(folder: Path, single: Path) -> None:
    ours = load_pipeline(single, family="sd15", config=folder)
    theirs = load_pipeline(folder)
    for name in ("denoiser", "vae"):
        a, b = getattr(ours, name).state_dict(), getattr(theirs, name).state_dict()
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), name
    (a,), (b,) = ours.encoders.values(), theirs.encoders.values()
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert (ours.architecture.name, ours.factor, ours.unit) == (
        theirs.architecture.name,
        theirs.factor,
        theirs.unit,
    )


def test_it_trains_to_the_same_adapter(folder: Path, single: Path, tmp_path: Path) -> None:
    folder_of(tmp_path / "pictures", 3)
    how: dict[str, Any] = {
        "images": str(tmp_path / "pictures"), "trigger": "zuzu", "steps": 3, "rank": 2,
        "lr": 1e-2, "sample_every": 0, "targets": "attn-only",
    }  # fmt: skip
    found = []
    for name, base, config in (("a", folder, None), ("b", single, str(folder))):
        output = tmp_path / f"{name}.safetensors"
        train(
            Train(base=str(base), config=config, output=str(output), **how), Context(device="cpu")
        )
        found.append(read_safetensors(output)[0])
    assert found[0].keys() == found[1].keys()
    # torch adds in another order where weights lie otherwise in memory
    logs = [list(read_log(tmp_path / f"{name}-run" / "log.jsonl")) for name in ("a", "b")]
    for one, other in zip(*logs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["gradient"] == pytest.approx(other["gradient"], rel=1e-2)
    with pytest.raises(UsageError, match="configuration and tokenizer are not here"):
        train(Train(base=str(single), output=str(tmp_path / "c.safetensors"), **how))
