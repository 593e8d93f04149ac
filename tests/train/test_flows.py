"""SD3 and Flux.1: texts, loss, gradients and pictures are what diffusers' pipelines and scripts give.

The oracle of the loss is written out from diffusers' `train_dreambooth_lora_sd3.py` (without
`precondition_outputs`, which weighs by σ²) and `train_dreambooth_lora_flux.py`. Each comparison has
wrong formulas beside it that must differ.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch")
diffusers: Any = pytest.importorskip("diffusers")

import loramerge as lm  # noqa: E402
from loramerge.errors import UsageError  # noqa: E402
from loramerge.steps.parameters import Context  # noqa: E402
from loramerge.train.drawing.sampling import Drawing, draw  # noqa: E402
from loramerge.train.lora.applied import applied  # noqa: E402
from loramerge.train.lora.modules import lora_layers  # noqa: E402
from loramerge.train.models.architectures.flux import packed, unpacked  # noqa: E402
from loramerge.train.models.loading import load_pipeline  # noqa: E402
from loramerge.train.models.objective import Flow  # noqa: E402
from loramerge.train.models.pipeline import Pipeline  # noqa: E402
from loramerge.train.models.registry import architecture_of_denoiser  # noqa: E402
from loramerge.train.models.texts import Texts, encode  # noqa: E402
from loramerge.train.run.batches import Batch, shuffled  # noqa: E402
from loramerge.train.run.loop import Run, advance, begin  # noqa: E402
from loramerge.train.spec.seeds import generator_of  # noqa: E402
from loramerge.train.spec.settings import Settings  # noqa: E402
from loramerge.verbs.preview import Preview, preview  # noqa: E402
from loramerge.verbs.train.parameters import Train  # noqa: E402
from loramerge.verbs.train.result import TrainResult  # noqa: E402
from loramerge.verbs.train.run import train, trained  # noqa: E402
from tests.builders.flows import (  # noqa: E402
    FLOWS,
    T5_TOKENS,
    flow_folder,
    flux_transformer,
    peer_of,
    sd3_transformer,
)
from tests.builders.logged import logged  # noqa: E402
from tests.builders.models import stirred  # noqa: E402
from tests.builders.pictures import folder_of  # noqa: E402
from tests.tail import crossed, first, tail  # noqa: E402

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]
TEXTS = ["zuzu, red", "", "a very long text that does not fit into the encoders at all, not one"]


def theirs_of(kind: Any, texts: list[str]) -> tuple[Any, Any]:
    """Text states and pooled ones of diffusers."""
    peer = peer_of(kind)
    if kind.startswith("flux"):
        text, pooled, _ = peer.encode_prompt(texts, device="cpu", max_sequence_length=T5_TOKENS)
        return text, pooled
    most = 256 if kind == "sd35" else T5_TOKENS
    text, _, pooled, _ = peer.encode_prompt(
        texts, None, None, device="cpu", do_classifier_free_guidance=False,
        max_sequence_length=most,
    )  # fmt: skip
    return text, pooled


@pytest.mark.long_tail(keep=2)
@pytest.mark.parametrize("kind", FLOWS)
def test_texts_are_what_diffusers_makes_of_them(kind: Any) -> None:
    ours = load_pipeline(flow_folder(kind))
    found = encode(ours, TEXTS)
    with torch.no_grad():
        text, pooled = theirs_of(kind, TEXTS)
    assert torch.equal(found.text, text) and torch.equal(found.pooled, pooled)
    flux = kind.startswith("flux")
    assert (ours.factor, ours.unit, ours.resolution) == (2, 4, 256 if flux else 32)
    assert ("text_encoder_3" in ours.encoders) == (kind == "sd3")
    with pytest.raises(UsageError, match=r"SD3 always|Flux\.1 reads only"):
        encode(ours, TEXTS, 1)


# --- the loss -----------------------------------------------------------------------------------


def examples(pipeline: Pipeline, count: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(count, 4, 6, 8, generator=generator)
    with torch.no_grad():
        states = encode(pipeline, [f"thing {n}" for n in range(count)])
    return Batch(latents, states.text, states.pooled)


def fresh(kind: Any, **how: Any) -> tuple[Run, Batch]:
    pipeline = load_pipeline(flow_folder(kind))
    torch.manual_seed(1)
    unread = pipeline.architecture.unread(pipeline.denoiser.config)
    lm.inject_trainable_lora(pipeline.denoiser, 2, preset="attn-ff", exclude=unread)
    stirred(pipeline.denoiser)
    settings = Settings(
        **({"steps": 4, "lr": 1e-2, "max_grad_norm": 0.0, "optimizer": "sgd"} | how)
    )
    batch = examples(pipeline)
    objective = pipeline.architecture.objective(pipeline.scheduler)
    return begin(pipeline.denoiser, objective, lambda number: batch, settings), batch


def script_loss(kind: Any, run: Run, batch: Batch, wrong: str = "") -> Any:
    """The loss as diffusers' scripts compute it, with the noise and times of step 0."""
    flux = kind.startswith("flux")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(
        flow_folder(kind) / "scheduler"
    )
    if wrong == "shift":
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    generator = generator_of(run.settings.seed, "noise", 0)
    latents = batch.latents
    noise = torch.randn(latents.shape, generator=generator)
    count = len(latents)
    if flux == (wrong == "density"):
        u = torch.sigmoid(torch.normal(0.0, 1.0, size=(count,), generator=generator))
    else:
        u = torch.rand(size=(count,), generator=generator)
    indices = (u * scheduler.config.num_train_timesteps).long()
    times = scheduler.timesteps[indices]
    sigmas = scheduler.sigmas[indices].reshape(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * latents + sigmas * noise
    if wrong == "noising":
        noisy = sigmas * latents + (1.0 - sigmas) * noise
    common = {
        "encoder_hidden_states": batch.text, "pooled_projections": batch.pooled,
        "return_dict": False,
    }  # fmt: skip
    if flux:
        cls = diffusers.FluxPipeline
        height, width = latents.shape[2:]
        rows = cls._pack_latents(noisy, count, 4, height, width)
        if wrong == "packing":
            rows = noisy.reshape(count, 4, height // 2, 2, width // 2, 2)
            rows = rows.permute(0, 2, 4, 3, 5, 1).reshape(count, -1, 16)
        ids = cls._prepare_latent_image_ids(count, height // 2, width // 2, "cpu", torch.float32)
        guidance = torch.full((count,), 3.5 if wrong == "guidance" else 1.0)
        found = run.denoiser(
            hidden_states=rows, timestep=times / (1 if wrong == "time" else 1000),
            guidance=guidance if kind == "flux-dev" else None,
            txt_ids=torch.zeros(batch.text.shape[1], 3), img_ids=ids, **common,
        )[0]  # fmt: skip
        found = cls._unpack_latents(found, height * 2, width * 2, 2)
    else:
        told = times / 1000 if wrong == "time" else times
        found = run.denoiser(hidden_states=noisy, timestep=told, **common)[0]
    target = noise - latents
    if wrong == "sign":
        target = latents - noise
    return ((found - target) ** 2).reshape(count, -1).mean(1).mean()


@pytest.mark.long_tail(keep=2)
@pytest.mark.parametrize("kind", FLOWS)
def test_loss_and_gradients_are_those_of_diffusers_scripts(kind: Any) -> None:
    run, batch = fresh(kind)
    run.denoiser.train()
    expected = script_loss(kind, run, batch)
    gradients = torch.autograd.grad(expected, run.parameters)
    expected = expected.detach()
    wrong = ["noising", "sign", "time", "density"]
    wrong += ["packing"] if kind.startswith("flux") else ["shift"]
    wrong += ["guidance"] if kind == "flux-dev" else []
    with torch.no_grad():
        others = {name: float(script_loss(kind, run, batch, name)) for name in wrong}
    losses: list[float] = []
    advance(run, 1, on_step=lambda step: losses.append(step.loss))
    assert losses[0] == pytest.approx(float(expected), rel=1e-6)
    for parameter, gradient in zip(run.parameters, gradients, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-7)
    for name, other in others.items():
        assert abs(other - losses[0]) > 1e-5 * losses[0], name


def test_times_are_drawn_as_they_say() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    generator = torch.Generator().manual_seed(0)
    plain, normal = Flow.of(scheduler), Flow.of(scheduler, logit_normal=True)
    for flow, deviation in ((plain, 1000 / 12**0.5), (normal, 208.0)):
        drawn = flow.drawn(20_000, generator).double()
        assert int(drawn.min()) >= 0 and int(drawn.max()) <= 999
        assert float(drawn.mean()) == pytest.approx(499.5, abs=8)
        assert float(drawn.std()) == pytest.approx(deviation, rel=0.02)
    share = 1 - torch.tensor([0, 499, 999]) / 1000
    assert torch.allclose(plain.sigmas[[0, 499, 999]], 3 * share / (1 + 2 * share))
    with pytest.raises(UsageError, match="rectified flow"):
        Flow.of(diffusers.DDPMScheduler())


def test_packing_is_undone() -> None:
    latents = torch.randn(2, 4, 6, 8)
    assert torch.equal(packed(latents), diffusers.FluxPipeline._pack_latents(latents, 2, 4, 6, 8))
    assert torch.equal(unpacked(packed(latents), 6, 8), latents)


# the other two are the same networks without a second attention, and without guidance
@pytest.mark.long_tail
@pytest.mark.parametrize("kind", [tail("sd3"), "sd35", "flux-dev", tail("flux-schnell")])
def test_it_learns_a_batch_by_heart(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "loramerge.train.run.loop.generator_of", lambda seed, what, _: generator_of(seed, what, 0)
    )
    run, _ = fresh(kind, steps=60, lr=2e-2, optimizer="adamw", schedule="constant")
    losses: list[float] = []
    advance(run, on_step=lambda step: losses.append(step.loss))
    assert run.audit.done and sum(losses[-15:]) < 0.8 * sum(losses[:15])


# --- pictures -----------------------------------------------------------------------------------


@pytest.mark.long_tail(keep=2)
@pytest.mark.parametrize(("kind", "guidance"), crossed(FLOWS, [1.0, 4.0]))
def test_it_draws_what_diffusers_draws(
    kind: Any, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, peer = load_pipeline(flow_folder(kind)), peer_of(kind)
    texts = Texts(ours)
    how = Drawing((32, 24), 4, guidance)
    if kind == "flux-schnell" and guidance != 1.0:
        with pytest.raises(UsageError, match="without guidance"):
            draw(ours, texts(["zuzu"]), texts.empty(), [5], how)
        return
    kept: list[Any] = []
    decode = ours.vae.decode
    monkeypatch.setattr(ours.vae, "decode", lambda z: kept.append(z) or decode(z))
    (found,) = draw(ours, texts(["zuzu"]), texts.empty(), [5], how)
    noise = torch.randn((1, 4, 12, 16), generator=torch.Generator().manual_seed(5))
    flux = kind.startswith("flux")
    call = {
        "num_inference_steps": 4, "guidance_scale": guidance, "width": 32, "height": 24,
        "latents": packed(noise) if flux else noise,
        "max_sequence_length": 256 if kind == "sd35" else T5_TOKENS,
    }  # fmt: skip
    latents = peer("zuzu", output_type="latent", **call).images
    if flux:
        latents = unpacked(latents, 12, 16)
    latents = latents / ours.vae.config.scaling_factor + ours.vae.config.shift_factor
    assert torch.allclose(kept[0], latents, rtol=1e-4, atol=1e-5)
    expected = peer("zuzu", **call).images[0]
    apart = np.abs(np.asarray(found, dtype=int) - np.asarray(expected, dtype=int))
    assert found.size == (32, 24) and apart.max() <= 1
    other = draw(ours, texts(["zuzu"]), texts.empty(), [5], replace(how, guidance=None))[0]
    assert kind == "flux-schnell" or not np.array_equal(np.asarray(other), np.asarray(found))


# --- presets ------------------------------------------------------------------------------------


# of 2 double and 2 single blocks; of 3 joint blocks, the last of which has no output of the text
_MODULES = {
    "flux": {"attn-only": 2 * 8 + 2 * 3, "attn": 2 * 10 + 2 * 4, "attn-ff": 2 * 14 + 2 * 6,
             "full-linear": 2 * 14 + 2 * 6 + 10, "full": 2 * 14 + 2 * 6 + 10},
    "sd35": {"attn-only": 2 * 8 + 7 + 4, "attn": 2 * 10 + 8 + 4, "attn-ff": 2 * 14 + 11 + 4,
             "full-linear": 2 * 14 + 11 + 4 + 7, "full": 2 * 14 + 11 + 4 + 8},
}  # fmt: skip


@pytest.mark.parametrize("kind", _MODULES)
def test_presets_choose_sensible_layers(kind: str) -> None:
    for preset, count in _MODULES[kind].items():
        model = flux_transformer(True) if kind == "flux" else sd3_transformer(True)
        lm.inject_trainable_lora(model, 2, preset=preset)
        layers = lora_layers(model)
        assert len(layers) == count, (preset, len(layers), list(layers))
        unread = architecture_of_denoiser(model).unread(model.config)
        assert not unread or unread[0] in layers


# --- whole runs ---------------------------------------------------------------------------------

QUIET = {
    "sample_every": 0, "lr": 1e-2, "steps": 4, "rank": 2, "trigger": "zuzu", "resolution": 32,
}  # fmt: skip


def asked(place: Path, kind: Any, **how: Any) -> Train:
    pictures = place / "pictures"
    if "images" not in how and not pictures.exists():
        folder_of(pictures, 5)
    usual = {"images": str(pictures), "output": str(place / "out.safetensors")}
    return Train(base=str(flow_folder(kind)), **(usual | QUIET | how))


def run_of(place: Path, kind: Any, **how: Any) -> TrainResult:
    return train(asked(place, kind, **how), Context(device="cpu"))


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("kind", first(2, FLOWS))
def test_what_is_written_is_what_diffusers_loads(kind: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    result = run_of(tmp_path, kind, text_encoder=True, to="diffusers")
    path = tmp_path / "out.safetensors"
    adapter = lm.load(path)
    assert not adapter.info.account.unknown and result.modules == len(adapter.deltas)
    wanted = {"transformer", "text_encoder"} | (
        set() if kind.startswith("flux") else {"text_encoder_2"}
    )
    assert set(adapter.components()) == wanted
    assert not any("add_q_proj" in site.name and "blocks.2" in site.name for site in adapter.deltas)
    ours, peer = load_pipeline(flow_folder(kind)), peer_of(kind)
    lm.load_lora_weight(ours.models, path)
    with logged("diffusers") as said:
        peer.load_lora_weights(str(path))
    assert not [text for text in said if "unexpected" in text or "No LoRA keys" in text]
    batch = examples(load_pipeline(flow_folder(kind)))
    kindred = ours.architecture
    times = torch.tensor([20.0, 500.0, 999.0])
    base = load_pipeline(flow_folder(kind)).denoiser
    with torch.no_grad():
        a, b, c = (
            kindred.predict(model.eval(), batch.latents, times, encode_states(batch))
            for model in (ours.denoiser, peer.transformer, base)
        )
        tokens = torch.tensor([[0, 5, 9, 189]])
        for name in wanted - {"transformer"}:
            one, two = ours.encoders[name].eval(), getattr(peer, name).eval()
            assert torch.allclose(
                one(tokens).last_hidden_state, two(tokens).last_hidden_state, atol=1e-5
            )
    assert torch.allclose(a, b, atol=1e-5) and not torch.allclose(a, c, atol=1e-3)


@pytest.fixture(scope="module", params=["sd3", "flux-dev"])
def trained_once(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A kind, and an adapter trained on it."""
    place = tmp_path_factory.mktemp("trained")
    return request.param, trained(asked(place, request.param), Context(device="cpu")).adapter


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("dialect", ["kohya", "comfyui"])
def test_dialects_with_fused_layers_hold_the_same(
    trained_once: tuple[Any, Any], dialect: str, tmp_path: Path
) -> None:
    kind, adapter = trained_once
    assert adapter is not None and adapter.info.detection.naming is not None
    path = tmp_path / "fused.safetensors"
    lm.save(adapter, path, dialect=dialect)
    other = lm.load(path)
    assert other.info.dialect == dialect and not other.info.account.unknown
    one, two = ({m for site in a.deltas for m in site.modules} for a in (adapter, other))
    assert one <= two
    models = [load_pipeline(flow_folder(kind)).denoiser.eval() for _ in range(2)]
    batch = examples(load_pipeline(flow_folder(kind)))
    found = []
    for model, source in zip(models, (adapter, other), strict=True):
        with applied({"transformer": model}, [source]), torch.no_grad():
            times = torch.tensor([20.0, 500.0, 999.0])
            found.append(
                architecture_of_denoiser(model).predict(
                    model, batch.latents, times, encode_states(batch)
                )
            )
    assert torch.allclose(found[0], found[1], atol=1e-5)


def encode_states(batch: Batch) -> Any:
    from loramerge.train.models.architecture import States

    return States(batch.text, batch.pooled)


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("kind", ["sd35", "flux-dev"])
def test_full_training_passes_the_audit_and_its_difference_is_an_adapter(
    kind: Any, tmp_path: Path
) -> None:
    adapter = trained(asked(tmp_path, kind, method="full"), Context(device="cpu")).adapter
    assert adapter is not None and "norm" in adapter.kinds()
    model = load_pipeline(flow_folder(kind)).denoiser
    left = 0 if kind.startswith("flux") else 3  # the last queries of the text, and their norm
    assert len(adapter.deltas) == len(list(model.parameters())) - left
    lm.save(adapter, tmp_path / "full.safetensors")
    assert not lm.load(tmp_path / "full.safetensors").info.account.unknown
    blocks = "single_transformer_blocks.1" if kind == "flux-dev" else "transformer_blocks.2"
    run_of(tmp_path / "b", kind, method=f"blocks:{blocks}", save_rank=2)
    part = lm.load(tmp_path / "b" / "out.safetensors")
    assert all(site.name.startswith(f"transformer.{blocks}.") for site in part.deltas)


def test_modules_that_nothing_reads_are_found_by_the_audit(tmp_path: Path) -> None:
    """Were SD3's last queries of the text not left out, the run would stop and name them."""
    from loramerge.errors import GradientFlowError

    pipeline = load_pipeline(flow_folder("sd3"))
    lm.inject_trainable_lora(pipeline.denoiser, 2, preset="attn-only")
    objective = pipeline.architecture.objective(pipeline.scheduler)
    run = begin(pipeline.denoiser, objective, shuffled(examples(pipeline), 3), Settings(steps=4))
    with pytest.raises(GradientFlowError, match="add_q_proj") as caught:
        advance(run)
    assert caught.value.modules == ("transformer_blocks.2.attn.add_q_proj",)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd3", tail("flux-dev")])
def test_a_resumed_run_ends_with_the_same_bytes_and_a_dry_run_counts(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "pictures", 5)
    how = {"images": str(tmp_path / "pictures"), "state_every": 2, "dropout": 0.1, "steps": 5}
    whole = run_of(tmp_path / "a", kind, **how, sample_every=4, sample_steps=2)
    assert (tmp_path / "a" / "out-run" / "samples.png").exists()
    from loramerge.train import session

    save = session.save_state

    def stop(run: Run, *rest: Any) -> None:
        save(run, *rest)
        if run.done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session, "save_state", stop)
        with pytest.raises(KeyboardInterrupt):
            run_of(tmp_path / "b", kind, **how)
    assert run_of(tmp_path / "b", kind, **how, resume=True).resumed == 2
    first, second = (tmp_path / name / "out.safetensors" for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    found = run_of(tmp_path / "c", kind, **how, dry_run=True).json()
    assert (found["parameters"], found["modules"]) == (whole.trained, whole.modules)
    assert found["memory"] > 0 and found["tokens_read"] == T5_TOKENS
    full = run_of(tmp_path / "c", kind, **how, dry_run=True, method="full").json()
    assert full["parameters"] > found["parameters"]
    run_of(tmp_path / "d", kind, **how, checkpointing="on")
    assert (tmp_path / "d" / "out.safetensors").read_bytes() == first.read_bytes()
    varied = {"precision": "bf16", "shuffle_tags": True, "batch": 2, "text_encoder": True}
    assert run_of(tmp_path / "e", kind, **how, **varied).skipped == 0


def test_what_does_not_apply_is_refused_before_any_work(tmp_path: Path) -> None:
    for kind, how, says in (
        ("sd3", {"min_snr": 5.0}, "no signal-to-noise ratio"),
        ("flux-dev", {"min_snr": 5.0}, "no signal-to-noise ratio"),
        ("flux-dev", {"noise_offset": 0.1}, "offset would change"),
        ("sd3", {"clip_skip": 1}, "always reads the last layer but one"),
        ("flux-dev", {"clip_skip": 1}, "only the pooled text"),
        ("flux-dev", {"negative": "x", "sample_every": 2}, "no negative prompt"),
        ("flux-schnell", {"guidance": 3.0, "sample_every": 2}, "without guidance"),
        ("sd3", {"resolution": 128}, "sides of at most 96"),
    ):
        for dry in (False, True):
            if dry and "guidance" in how:
                continue
            with pytest.raises(UsageError, match=says):
                run_of(tmp_path, kind, **how, dry_run=dry)
    assert not (tmp_path / "out.safetensors").exists()


def test_bases_that_lack_something_are_refused(tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "base"
    shutil.copytree(flow_folder("flux-dev"), folder)
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    (folder / "model_index.json").write_text(json.dumps({**index, "text_encoder_2": [None, None]}))
    with pytest.raises(UsageError, match="lacks a text encoder"):
        load_pipeline(folder)
    with pytest.raises(UsageError, match="and SD3 need"):
        load_pipeline(tmp_path / "flux1-dev.safetensors", family="flux1")


def test_two_families_in_a_preview(tmp_path: Path) -> None:
    from loramerge.steps.references import parse_reference

    how = {"base": tuple(str(flow_folder(k)) for k in ("sd3", "flux-dev")), "size": 32, "steps": 2}
    result = preview(Preview(output=str(tmp_path / "x.png"), **how), Context(device="cpu"))
    assert len(result.columns) == 2
    run_of(tmp_path, "flux-dev", lr=0.3, text_encoder=True)
    name = parse_reference(str(tmp_path / "out.safetensors"))
    how["base"] = (str(flow_folder("flux-dev")),)
    drawn = preview(
        Preview(adapters=(name,), output=str(tmp_path / "y.png"), **how), Context(device="cpu")
    )
    assert drawn.columns == ["base", "out"] and drawn.changes[1] > 0.5
    with pytest.raises(UsageError, match="no negative prompt"):
        preview(Preview(output=str(tmp_path / "z.png"), negative="x", **how), Context(device="cpu"))


@pytest.mark.long_tail
@pytest.mark.parametrize("kind", ["sd3", "flux-schnell"])
def test_the_base_draws_its_own_regularisation(kind: Any, tmp_path: Path) -> None:
    run_of(tmp_path, kind, regularisation="auto", regularisation_count=2)
    found = sorted(p.name for p in (tmp_path / "out-run" / "regularisation").glob("*.png"))
    assert found == ["000.png", "001.png"]
    if kind == "flux-schnell":
        with pytest.raises(UsageError, match="without guidance"):
            run_of(tmp_path / "b", kind, regularisation="auto", regularisation_guidance=3.0)
