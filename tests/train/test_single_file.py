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
transformers: Any = pytest.importorskip("transformers")

from loramerge.errors import UsageError  # noqa: E402
from loramerge.families import FAMILIES  # noqa: E402
from loramerge.files.run_log import read_log  # noqa: E402
from loramerge.steps.parameters import Context  # noqa: E402
from loramerge.train.models import clip_vocabulary  # noqa: E402
from loramerge.train.models.architecture import Network  # noqa: E402
from loramerge.train.models.clip_vocabulary import vocabulary  # noqa: E402
from loramerge.train.models.loading import load_pipeline  # noqa: E402
from loramerge.train.models.registry import architecture_of_family  # noqa: E402
from loramerge.train.models.schedules import config_of_keys  # noqa: E402
from loramerge.train.models.single import configured  # noqa: E402
from loramerge.train.models.texts import encode  # noqa: E402
from loramerge.verbs.train.parameters import Train  # noqa: E402
from loramerge.verbs.train.run import train  # noqa: E402
from tests.builders.pictures import folder_of  # noqa: E402
from tests.builders.pipelines import pipeline_folder  # noqa: E402
from tests.builders.samples import read_safetensors, safetensors_bytes, sgm_path  # noqa: E402

pytestmark = [
    pytest.mark.peers,
    pytest.mark.usefixtures("no_network"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow SD1: as many blocks, heads and groups, and a word for each embedding."""
    place = tmp_path_factory.mktemp("single") / "folder"
    shutil.copytree(pipeline_folder("sd15"), place)
    torch.manual_seed(7)
    unet = diffusers.UNet2DConditionModel(
        sample_size=64, layers_per_block=2, block_out_channels=(32, 32, 64, 64), attention_head_dim=8,
        cross_attention_dim=64,
        down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    )  # fmt: skip
    unet.save_pretrained(place / "unet")
    diffusers.AutoencoderKL(
        block_out_channels=(32, 32), layers_per_block=1, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(place / "vae")  # fmt: skip
    words = len(json.loads((place / "tokenizer" / "vocab.json").read_text("utf-8")))
    transformers.CLIPTextModel(transformers.CLIPTextConfig(
        vocab_size=words, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=1, max_position_embeddings=16, bos_token_id=words - 2,
        eos_token_id=words - 1, pad_token_id=words - 1,
    )).save_pretrained(place / "text_encoder")  # fmt: skip
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


@pytest.mark.long_tail
def test_it_trains_to_the_same_adapter(folder: Path, single: Path, tmp_path: Path) -> None:
    folder_of(tmp_path / "pictures", 3)
    how: dict[str, Any] = {
        "images": str(tmp_path / "pictures"), "trigger": "zuzu", "steps": 3, "rank": 2,
        "lr": 1e-2, "sample_every": 0, "targets": "attn-only", "resolution": 64,
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


def test_without_a_folder_its_shapes_say_what_it_is(
    folder: Path, single: Path, tmp_path: Path
) -> None:
    """A vocabulary that is not CLIP's lies beside the file, or is asked for."""
    ours, theirs = load_pipeline(single, family="sd15"), load_pipeline(folder)
    draws = torch.Generator().manual_seed(0)
    latents, states = torch.randn(1, 4, 16, 16, generator=draws), encode(ours, ["zuzu, red"])
    assert torch.equal(states.text, encode(theirs, ["zuzu, red"]).text)
    noise = [one.denoiser(latents, 500, states.text).sample for one in (ours, theirs)]
    # torch adds in another order where weights lie otherwise in memory
    torch.testing.assert_close(*noise, rtol=1e-4, atol=1e-5)
    image = torch.ones(1, 3, 16, 16)
    means = [one.vae.encode(image).latent_dist.mean for one in (ours, theirs)]
    torch.testing.assert_close(*means, rtol=1e-4, atol=1e-5)
    assert torch.equal(ours.scheduler.alphas_cumprod, theirs.scheduler.alphas_cumprod)
    alone = Path(shutil.copy(single, tmp_path))
    with pytest.raises(UsageError, match="not CLIP's") as caught:
        load_pipeline(alone, family="sd15")
    assert (
        caught.value.expected == "vocab.json and merges.txt of its own in "
        f"{tmp_path / 'tokenizer'}, or an encoder of 49408 entries"
    )


def test_clips_own_vocabulary_comes_with_the_package(tmp_path: Path) -> None:
    """Known numbers of words, as CLIP's encoders have learned them."""
    found = vocabulary(tmp_path / "x.safetensors", 49408, tmp_path)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(found, local_files_only=True)
    ids = [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("a photo of a cat").input_ids == ids
    assert len(tokenizer) == 49408
    licence = Path(clip_vocabulary.__file__).parent / "vocabulary" / "LICENSE"
    assert "OpenAI" in licence.read_text("utf-8")


@pytest.mark.parametrize(("family", "heads", "layers"), [
    ("sd15", [8, 8, 8, 8], [12]), ("sd21", [5, 10, 20, 20], [23]), ("sdxl", [5, 10, 20], [12, 32]),
])  # fmt: skip
def test_shapes_tell_the_published_configurations(
    family: str, heads: list[int], layers: list[int]
) -> None:
    found = FAMILIES[family]
    networks = {
        component.name: Network(
            {module.path: module.shape for module in component.modules},
            openclip=component.name == "text_encoder_2" or family == "sd21",
        )
        for component in found.components
    }
    networks["vae"] = Network({
        "post_quant_conv.weight": (4, 4, 1, 1),
        **{f"encoder.down.{n}.block.{i}.conv1.weight": (w, w, 3, 3)
           for n, w in enumerate((128, 256, 512, 512)) for i in range(2)},
    })  # fmt: skip
    kind = architecture_of_family(family)
    assert kind is not None
    made = kind.configurations(networks, "v_prediction" if family == "sd21" else None)
    unet = made["unet/config.json"]
    assert unet["attention_head_dim"] == heads
    assert unet["sample_size"] == {"sd15": 64, "sd21": 96, "sdxl": 128}[family]
    with torch.device("meta"):
        model = diffusers.UNet2DConditionModel.from_config(dict(unet))
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert all(shapes[f"{m.path}.weight"] == m.shape for m in found.components[0].modules)
    texts = [made[f"{name}/config.json"] for name in kind.encoders]
    assert [one["num_hidden_layers"] for one in texts] == layers
    assert [one["num_attention_heads"] for one in texts] == [
        one["hidden_size"] // 64 for one in texts
    ]
    vae = made["vae/config.json"]
    assert vae["block_out_channels"] == [128, 256, 512, 512] and vae["layers_per_block"] == 2


def test_what_a_file_of_sd2_predicts_is_told_or_asked(tmp_path: Path) -> None:
    said = {"modelspec.architecture": "stable-diffusion-v2-768-v"}
    assert config_of_keys([], said, tmp_path, FAMILIES["sd21"]) == {
        "prediction_type": "v_prediction"
    }
    assert config_of_keys([], said, tmp_path, FAMILIES["sd15"]) == {}
    path = tmp_path / "sd2.safetensors"
    path.write_bytes(safetensors_bytes({
        "model.diffusion_model.input_blocks.0.0.weight": np.zeros((4, 4, 3, 3), np.float16),
    }, {}))  # fmt: skip
    kind = architecture_of_family("sd21")
    with (
        pytest.MonkeyPatch.context() as patched,
        pytest.raises(UsageError, match="predict noise or v"),
    ):
        patched.setattr(type(kind), "configurations", lambda *_: {"model_index.json": {}})
        with configured(path, kind, "sd21", None, transformers):
            pass
