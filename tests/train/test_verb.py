"""train as a command: what it writes, keeps and says, for every method and kind of base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
diffusers: Any = pytest.importorskip("diffusers")

import loramerge as lm  # noqa: E402
from loramerge.errors import (  # noqa: E402
    AdapterError,
    GradientFlowError,
    MissingFile,
    NotExpressible,
    OutputExists,
    UsageError,
    spelled,
)
from loramerge.events import Progress, Warn  # noqa: E402
from loramerge.files.run_log import read_log  # noqa: E402
from loramerge.steps.parameters import Context  # noqa: E402
from loramerge.train.models.loading import load_pipeline  # noqa: E402
from loramerge.verbs.train.parameters import Train  # noqa: E402
from loramerge.verbs.train.result import TrainResult  # noqa: E402
from loramerge.verbs.train.run import train, trained  # noqa: E402
from tests.builders.pictures import Image, folder_of, picture  # noqa: E402
from tests.builders.pipelines import pipeline_folder  # noqa: E402
from tests.builders.samples import read_safetensors  # noqa: E402
from tests.builders.unmeasured import uncounted  # noqa: E402
from tests.tail import first  # noqa: E402

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]
QUIET = {"sample_every": 0, "lr": 1e-2, "steps": 4, "rank": 2, "trigger": "zuzu"}


def asked(place: Path, kind: Any = "sd15", **how: Any) -> Train:
    pictures = place / "pictures"
    if "images" not in how and not pictures.exists():
        folder_of(pictures, 5)
    usual = {"images": str(pictures), "output": str(place / "out.safetensors")}
    return Train(base=str(pipeline_folder(kind)), **(usual | QUIET | how))


def run(place: Path, kind: Any = "sd15", **how: Any) -> TrainResult:
    return train(asked(place, kind, **how), Context(device="cpu"))


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl"])
def test_what_is_written_is_what_diffusers_loads(kind: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    result = run(tmp_path, kind, text_encoder=True)
    path = tmp_path / "out.safetensors"
    adapter = lm.load(path)
    assert not adapter.info.account.unknown and adapter.ranks() == {2: len(adapter.deltas)}
    assert result.json()["outputs"] == [str(path)] and result.modules == len(adapter.deltas)
    metadata = read_safetensors(path)[1]
    assert metadata["ss_num_train_images"] == "5" and metadata["ss_optimizer"].startswith("torch.")
    assert metadata["modelspec.trigger_phrase"] == "zuzu"
    assert metadata["modelspec.prediction_type"] == ("v" if kind == "sd21" else "epsilon")
    tags = json.loads(metadata["ss_tag_frequency"])["pictures"]
    assert tags["zuzu"] == tags["red"] == 5 and tags["thing 3"] == 1
    recipe = json.loads(metadata["loramerge.recipe"])
    step = recipe["steps"]["result"]["train"]
    assert step["images"] == "pictures" and step["lr"] == 0.01 and "sample_every" not in step
    assert all(len(one["sha256"]) == 64 for one in recipe["inputs"].values())
    assert str(tmp_path) not in metadata["loramerge.recipe"]
    # on the model itself and by diffusers it does the same
    ours, theirs = load_pipeline(pipeline_folder(kind)), load_pipeline(pipeline_folder(kind))
    lm.load_lora_weight(ours.models, path)
    mixin = (
        diffusers.StableDiffusionXLPipeline if kind == "sdxl" else diffusers.StableDiffusionPipeline
    )
    state, alphas, *rest = mixin.lora_state_dict(str(path), return_lora_metadata=True,
                                                 unet_config=theirs.denoiser.config)  # fmt: skip
    how = {"network_alphas": alphas, "metadata": rest[0] if rest else None, "adapter_name": "x"}
    mixin.load_lora_into_unet(state, unet=theirs.denoiser, **how)
    for name, encoder in theirs.encoders.items():
        if any(name in one for one in adapter.components()):
            mixin.load_lora_into_text_encoder(state, text_encoder=encoder, prefix=name, **how)
    options = {}
    if kind == "sdxl":
        options["added_cond_kwargs"] = {
            "text_embeds": torch.ones(1, 8), "time_ids": torch.ones(1, 6),
        }  # fmt: skip
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    text = torch.ones(1, 16, 20 if kind == "sdxl" else 12)
    base = load_pipeline(pipeline_folder(kind))
    with torch.no_grad():
        a, b, c = (
            p.denoiser.eval()(latents, torch.tensor([300]), text, **options).sample
            for p in (ours, theirs, base)
        )
    assert torch.allclose(a, b, atol=1e-5) and not torch.allclose(a, c, atol=1e-3)


METHODS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "dora": ({"method": "dora"}, {"dora"}),
    "full": ({"method": "full"}, {"full", "bias", "norm"}),
    "blocks": ({"method": "blocks:up_blocks"}, {"full", "bias", "norm"}),
    "blocks cut": ({"method": "blocks:up_blocks.1,mid_block", "save_rank": 2}, {"lora", "bias", "norm"}),
    "lora cut": ({"save_rank": 1}, {"lora"}),
    "convolutions": ({"targets": "full", "exclude": ("conv_out",)}, {"lora"}),
}  # fmt: skip


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("name", first(3, METHODS))
def test_every_method_gives_an_adapter(name: str, tmp_path: Path) -> None:
    how, kinds = METHODS[name]
    run(tmp_path, "sd15", **how)
    adapter = lm.load(tmp_path / "out.safetensors")
    assert set(adapter.kinds()) == kinds and not adapter.info.account.unknown
    names = [site.name for site in adapter.deltas]
    if name == "blocks":
        assert all(name.startswith("unet.up_blocks") for name in names)
    if how.get("save_rank"):
        assert max(adapter.ranks()) <= how["save_rank"]
    if name == "full":
        unet = load_pipeline(pipeline_folder()).denoiser
        assert len(names) == len(list(unet.parameters()))
    if name == "convolutions":
        assert "unet.conv_in" in names and "unet.conv_out" not in names


def test_the_difference_of_full_training_is_exact(tmp_path: Path) -> None:
    """Added to the base it is the trained model."""
    from loramerge.train import prepare

    kept: dict[str, Any] = {}
    before = prepare.Weights

    class Watched(before):  # type: ignore[misc, valid-type]
        def __init__(self, model: Any, *rest: Any) -> None:
            super().__init__(model, *rest)
            kept["model"] = model

    prepare.Weights = Watched  # type: ignore[misc]
    try:
        run(tmp_path, method="full")
    finally:
        prepare.Weights = before  # type: ignore[misc]
    base = load_pipeline(pipeline_folder()).denoiser.state_dict()
    deltas = lm.load(tmp_path / "out.safetensors").deltas
    for site, delta in deltas.items():
        name = f"{site.modules[0].removeprefix('unet.')}.{site.parameter}"
        after = kept["model"].state_dict()[name]
        change = torch.from_numpy(delta.dense(dtype="float32")).reshape(after.shape)
        assert torch.allclose(base[name] + change, after, atol=1e-6), name


@pytest.mark.long_tail
def test_the_same_run_gives_the_same_bytes_whatever_is_watched(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    folder_of(tmp_path / "pictures", 5)
    how = {"images": str(tmp_path / "pictures"), "steps": 5}
    run(first, **how)
    run(
        second, **how, sample_every=4, sample_steps=2, save_every=2, prompt=("x", "y, z"),
        folder=str(second / "elsewhere"), cache=str(first / "out-run" / "cache"),
    )  # fmt: skip
    assert (first / "out.safetensors").read_bytes() == (second / "out.safetensors").read_bytes()
    folder = second / "elsewhere"
    assert {p.name for p in folder.iterdir()} == {
        "log.jsonl", "report.html", "samples", "samples.png", "state.pt", "out-000002.safetensors",
        "out-000004.safetensors",
    }  # fmt: skip
    entries = list(read_log(folder / "log.jsonl"))
    assert [e["step"] for e in entries] == list(range(5))
    assert set(entries[0]) == {"step", "loss", "rate", "gradient"}
    assert (
        len(list((folder / "samples").iterdir())) == 4 * 2
    )  # steps 0, 4 and the last, and 2, which is kept
    page = (folder / "report.html").read_text("utf-8")
    assert page.count('<svg class="chart"') == 2 and ">Problems</h2>" in page
    assert "data:image/png;base64," in page
    assert "://" not in page and str(tmp_path) not in page
    part = lm.load(folder / "out-000002.safetensors")
    assert not part.info.account.unknown and part.info.metadata["ss_steps"] == "2"


def test_what_it_tells_while_it_runs(tmp_path: Path) -> None:
    said: list[Any] = []
    train(asked(tmp_path, lr=1e-6), Context(device="cpu", notify=said.append))
    assert any(isinstance(e, Warn) and "hardly moves" in e.text for e in said)
    steps = [e for e in said if isinstance(e, Progress) and e.task == "train"]
    assert len(steps) == 4 and "loss" in steps[0].said and "gradient" in steps[0].said
    assert {e.task for e in said if isinstance(e, Progress)} >= {"encoding images"}


def test_pictures_that_break_off_are_left_out_and_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pictures", 4)
    big = folder / "big.png"
    picture(9, (90, 90)).save(big)
    big.write_bytes(big.read_bytes()[:-60])
    said: list[Any] = []
    result = train(asked(tmp_path), Context(device="cpu", notify=said.append))
    assert result.images == 4
    assert any("big.png" in getattr(e, "text", "") for e in said)
    assert "big.png" in (tmp_path / "out-run" / "report.html").read_text("utf-8")


def test_a_dry_run_looks_at_everything_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uncounted(monkeypatch)
    folder = folder_of(tmp_path / "pictures", 6, captions=False)
    (folder / "000.txt").write_text("red, round " + "long " * 20, "utf-8")
    (folder / "again.png").write_bytes((folder / "001.png").read_bytes())
    Image.new("RGB", (9, 9)).save(folder / "little.png")
    picture(9, (90, 90)).save(folder / "cut.png")
    data = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(data[:-60])
    before = sorted(tmp_path.rglob("*"))
    found = run(tmp_path, trigger=None, dry_run=True, output=None).json()
    assert sorted(tmp_path.rglob("*")) == before and found["outputs"] == []
    assert found["images"] == 8 == sum(found["buckets"].values())
    assert [Path(one["file"]).name for one in found["unreadable"]] == ["cut.png"]
    assert [[Path(p).name for p in group] for group in found["duplicates"]] == [
        ["001.png", "again.png"]
    ]
    assert (
        len(found["without_caption"]) == 7
        and Path(found["captions_cut"][0]).name == "000.txt"[:3] + ".png"
    )
    assert "little.png" in [Path(p).name for p in found["enlarged"]]
    assert found["tokens"]["most"] > found["tokens_read"] == 44  # three windows of 14
    assert found["modules"] == 48 and found["memory"] > 0 and found["seconds"] > 0
    assert found["parameters"] == run(tmp_path).trained


@pytest.mark.long_tail
def test_a_dry_run_counts_the_parameters_of_blocks(tmp_path: Path) -> None:
    folder_of(tmp_path / "pictures", 1)
    lora, blocks = (
        run(tmp_path, method=method, dry_run=True).json()["parameters"]
        for method in ("lora", "blocks:up_blocks")
    )
    assert blocks > lora


def test_what_cannot_be_meant_is_refused_before_any_work(tmp_path: Path) -> None:
    for how, says in (
        ({"method": "lokr"}, "not a method"),
        ({"method": "blocks:"}, "not a method"),
        ({"method": "dora", "save_rank": 2}, "without its base"),
        ({"method": "full", "text_encoder": True}, "only be trained with a LoRA"),
        ({"rank_pattern": ("*attn2*",)}, "not a pair"),
        ({"rank_pattern": ("*attn2*=x",)}, "not a whole number"),
        ({"optimizer": "adamv"}, "not an optimizer"),
        ({"optimizer_option": ("momentum=0.9",)}, "has no 'momentum'"),
        ({"targets": "attnn"}, "not a preset"),
        ({"method": "blocks:up_blokcs"}, "no module matches"),
        ({"resolution": 8, "bucket_step": 16}, "the smallest that this model can generate"),
    ):
        with pytest.raises(UsageError, match=says):
            run(tmp_path, **how)
        assert not (tmp_path / "out.safetensors").exists()
    with pytest.raises(MissingFile):
        run(tmp_path, images=str(tmp_path / "none"))
    with pytest.raises(NotExpressible):
        run(tmp_path, method="full", to="lora_diffusion")
    assert not list(read_log(tmp_path / "out-run" / "log.jsonl"))
    with pytest.raises(AdapterError):
        run(tmp_path, include=("*attn1.to_q",), exclude=("*",))


def test_existing_files_are_not_replaced_without_force(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(OutputExists, match="the output exists"):
        run(tmp_path)
    (tmp_path / "out.safetensors").unlink()
    with pytest.raises(OutputExists, match="already holds a run"):
        run(tmp_path)
    with pytest.raises(UsageError, match="another base, other images or other parameters"):
        run(tmp_path, resume=True, dropout=0.5)
    with pytest.raises(UsageError, match="another steps"):
        run(tmp_path, resume=True, steps=3)
    assert run(tmp_path, resume=True).resumed == 4
    assert run(tmp_path, force=True).resumed == 0
    assert run(tmp_path, force=True, resume=True, dropout=0.5).resumed == 0


def test_odd_settings_give_warnings(tmp_path: Path) -> None:
    said: list[Any] = []
    folder_of(tmp_path / "pictures", 3, captions=False)
    train(asked(tmp_path, trigger=None), Context(device="cpu", notify=said.append))
    assert any("3 of 3 images have no caption" in spelled(getattr(e, "text", "")) for e in said)
    with pytest.raises(UsageError, match="SDXL always reads"):
        run(tmp_path / "xl", "sdxl", images=str(tmp_path / "pictures"), clip_skip=1)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_cut_gradients_stop_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loramerge.train import session
    from tests.builders.unets import checkpoint_as_in_2022

    monkeypatch.setattr(
        session,
        "begin_checkpointing",
        lambda spec, pipeline, device: checkpoint_as_in_2022(pipeline.denoiser),
    )
    with pytest.raises(GradientFlowError, match="down_blocks") as caught:
        run(tmp_path, targets="attn")
    assert caught.value.exit_code == 7
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.long_tail
def test_optimizers_by_path_and_what_beside(tmp_path: Path) -> None:
    folder_of(tmp_path / "pictures", 5)
    found = set()
    for index, how in enumerate((
        {}, {"optimizer": "torch.optim.RAdam", "optimizer_option": ("eps=1e-6",)},
        {"optimizer": "sgd", "optimizer_option": ("momentum=0.9",)}, {"lora_plus": 4.0},
        {"ema": 0.5}, {"accumulate": 2}, {"batch": 2}, {"shuffle_tags": True}, {"min_snr": 5.0},
        {"noise_offset": 0.1}, {"max_grad_norm": 1e-3}, {"clip_skip": 2}, {"rank_pattern": ("*to_q=1",)},
        {"optimizer": "adafactor"}, {"schedule": "constant"}, {"no_buckets": True},
        {"regularisation": str(tmp_path / "pictures")}, {"precision": "bf16"}, {"seed": 1},
    )):  # fmt: skip
        one = tmp_path / str(index)
        run(one, images=str(tmp_path / "pictures"), cache=str(tmp_path / "cache"), **how)
        arrays = read_safetensors(one / "out.safetensors")[0]
        found.add(b"".join(arrays[name].tobytes() for name in sorted(arrays)))
    assert len(found) == index + 1
    one = tmp_path / "checkpointed"
    run(one, images=str(tmp_path / "pictures"), checkpointing="on")
    assert (one / "out.safetensors").read_bytes() == (tmp_path / "0/out.safetensors").read_bytes()


@pytest.mark.long_tail
def test_in_python_and_in_a_recipe_it_is_the_same(tmp_path: Path) -> None:
    run(tmp_path)
    adapter = lm.train(
        pipeline_folder(), tmp_path / "pictures", device="cpu", folder=str(tmp_path / "r"), **QUIET
    )
    lm.save(adapter, tmp_path / "python.safetensors")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "version: 1\n"
        f"inputs: {{base: '{pipeline_folder().as_posix()}', things: pictures}}\n"
        "steps:\n"
        "  learned:\n"
        "    train: {base: base, images: things, trigger: zuzu, rank: 2, steps: 4, lr: 0.01,\n"
        f"            sample_every: 0, folder: '{(tmp_path / 'r2').as_posix()}'}}\n"
        "    save: learned.safetensors\n"
        "  small:\n"
        "    resize: {adapter: learned, rank: 1}\n"
        "    save: small.safetensors\n",
        "utf-8",
    )
    lm.run(recipe, device="cpu")
    ours, python, step = (
        (tmp_path / name).read_bytes()
        for name in ("out.safetensors", "python.safetensors", "learned.safetensors")
    )
    assert ours == python == step
    assert lm.load(tmp_path / "small.safetensors").ranks() == {1: 48}
    again = lm.run(recipe, device="cpu")
    assert {outcome.status for outcome in again.outcomes.values()} == {"up to date"}
    (tmp_path / "pictures" / "000.txt").write_text("something else", "utf-8")
    changed = lm.run(recipe, device="cpu", force=True)
    assert {outcome.status for outcome in changed.outcomes.values()} == {"done"}
    assert (tmp_path / "learned.safetensors").read_bytes() != ours


def test_without_writing_the_run_is_kept(tmp_path: Path) -> None:
    result = trained(asked(tmp_path), Context(device="cpu"))
    assert result.adapter is not None and result.output is None
    assert not (tmp_path / "out.safetensors").exists()
    assert (tmp_path / "out-run" / "state.pt").exists()


@pytest.mark.long_tail
def test_a_result_says_how_to_make_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from loramerge.cli.main import main

    run(tmp_path)
    lm_base = pipeline_folder()
    (tmp_path / lm_base.name).symlink_to(lm_base, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "out.safetensors", "--device", "cpu"]) == 0
    assert "same file" in capsys.readouterr().out
    (tmp_path / "pictures" / "000.png").write_bytes((tmp_path / "pictures/001.png").read_bytes())
    assert main(["run", "out.safetensors", "--device", "cpu"]) != 0
