"""Pictures: what diffusers draws, with adapters of every kind on and off again, in labelled grids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch")
diffusers: Any = pytest.importorskip("diffusers")

import loramerge as lm  # noqa: E402
from loramerge.errors import AdapterError, OutputExists, RecipeError, UsageError  # noqa: E402
from loramerge.events import Note  # noqa: E402
from loramerge.report.pictures import grid, png_bytes  # noqa: E402
from loramerge.steps.parameters import Context  # noqa: E402
from loramerge.steps.references import parse_reference  # noqa: E402
from loramerge.train.drawing.sampling import Drawing, draw, guided  # noqa: E402
from loramerge.train.lora.applied import applied  # noqa: E402
from loramerge.train.models.loading import load_pipeline  # noqa: E402
from loramerge.train.models.texts import Texts  # noqa: E402
from loramerge.verbs.preview import Preview, PreviewResult, preview  # noqa: E402
from tests.builders.pictures import Image, picture  # noqa: E402
from tests.builders.pipelines import pipeline_folder  # noqa: E402
from tests.tail import crossed  # noqa: E402
from tests.train.test_caches import theirs  # noqa: E402
from tests.train.test_verb import run  # noqa: E402

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]


def pixels(path: Path | str) -> Any:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.long_tail(keep=3)
@pytest.mark.parametrize(
    ("guided", "kind"),
    crossed(
        [(1.0, None), (5.0, 0.0), (5.0, None), (7.0, 0.7), (7.0, 1.0)], ["sd15", "sd21", "sdxl"]
    ),
)
def test_it_draws_what_diffusers_draws(
    kind: Any, guided: tuple[float, float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents to 1e-5 of the largest, and pictures; with no rescale given it is that of the schedule."""
    guidance, rescale = guided
    ours, peer = load_pipeline(pipeline_folder(kind)), theirs(kind)
    peer.scheduler = ours.architecture.sampler(ours)
    peer.set_progress_bar_config(disable=True)
    texts, decode, latents = Texts(ours), ours.vae.decode, []
    monkeypatch.setattr(ours.vae, "decode", lambda x: (latents.append(x), decode(x))[1])
    how = Drawing((32, 24), 4, guidance, rescale)
    (found,) = draw(ours, texts(["zuzu"]), texts.empty(), [5], how)
    noise = torch.randn((1, 4, 12, 16), generator=torch.Generator().manual_seed(5))
    usual = 0.7 if kind == "sd21" else 0.0
    asked = {
        "prompt": "zuzu", "num_inference_steps": 4, "guidance_scale": guidance, "width": 32,
        "height": 24, "guidance_rescale": usual if rescale is None else rescale,
    }  # fmt: skip
    expected = peer(**asked, latents=noise.clone()).images[0]
    apart = np.abs(np.asarray(found, dtype=int) - np.asarray(expected, dtype=int))
    assert found.size == (32, 24) and apart.max() <= 1
    before = peer(**asked, latents=noise.clone(), output_type="latent").images
    gap = (latents[0] * ours.vae.config.scaling_factor - before).abs().max()
    assert float(gap) < 1e-5 * float(before.abs().max())


def test_guidance_is_rescaled_within_each_picture() -> None:
    """As diffusers does it; one spread for the whole batch, or that of the difference, would fail."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    draws = torch.Generator().manual_seed(0)
    without, found = torch.randn(2, 3, 4, 8, 8, generator=draws)
    found = found * torch.tensor([0.5, 1.0, 3.0]).view(3, 1, 1, 1)
    strong = without + 7.0 * (found - without)
    assert torch.equal(guided(without, found, 7.0), strong)
    for rescale in (0.3, 0.7, 1.0):
        ours = guided(without, found, 7.0, rescale)
        assert torch.allclose(ours, rescale_noise_cfg(strong, found, rescale), atol=1e-5)
        row = guided(without[1:2], found[1:2], 7.0, rescale)
        assert torch.allclose(ours[1:2], row, atol=1e-6)
    within = (1, 2, 3)
    assert torch.allclose(guided(without, found, 7.0, 1.0).std(within), found.std(within))
    flat = torch.ones(1, 4, 8, 8)
    assert torch.equal(guided(flat, flat, 7.0, 0.7), flat)


def adapters(folder: Path) -> dict[str, Path]:
    """Adapters of several kinds, trained with a rate that shows."""
    found = {}
    for name, how in {
        "plain": {"text_encoder": True}, "dora": {"method": "dora"},
        "full": {"method": "blocks:up_blocks"},
    }.items():  # fmt: skip
        run(folder / name, lr=0.3, **how)
        found[name] = folder / name / "out.safetensors"
    return found


@pytest.mark.long_tail
def test_kinds_come_on_and_off(tmp_path: Path) -> None:
    pipeline = load_pipeline(pipeline_folder())
    before = {n: v.clone() for m in pipeline.models.values() for n, v in m.state_dict().items()}
    for name, path in adapters(tmp_path).items():
        adapter = lm.load(path)
        with applied(pipeline.models, [adapter, adapter]) as count:
            assert count == len(adapter.deltas), name
            for site, delta in adapter.deltas.items():
                component, _, module = site.modules[0].partition(".")
                module = module.removeprefix("text_model.")
                weight = getattr(pipeline.models[component].get_submodule(module), site.parameter)
                first = before[f"{module}.{site.parameter}"]
                change = delta.dense(first.double().numpy()).reshape(first.shape)
                assert np.allclose((weight - first).numpy(), 2 * change, atol=1e-5), site.name
        after = {n: v for m in pipeline.models.values() for n, v in m.state_dict().items()}
        assert all(torch.equal(before[n], v) for n, v in after.items())
    with (
        pytest.raises(AdapterError, match=r"not in the model|another shape in the model"),
        applied(
            load_pipeline(pipeline_folder("sdxl")).models,
            [lm.load(tmp_path / "full/out.safetensors")],
        ),
    ):
        pass


@pytest.mark.long_tail
def test_a_live_adapter_draws_as_the_trainer_and_as_the_merged_model(tmp_path: Path) -> None:
    path = adapters(tmp_path)["plain"]
    pipelines = [load_pipeline(pipeline_folder()) for _ in range(3)]
    lm.load_lora_weight(pipelines[0].models, path)
    lm.load_lora_weight(pipelines[1].models, path)
    for model in pipelines[1].models.values():
        lm.collapse_lora(model)

    def drawn(pipeline: Any) -> Any:
        for encoder in pipeline.encoders.values():
            encoder.eval()
        texts = Texts(pipeline)
        (one,) = draw(pipeline, texts(["zuzu"]), texts.empty(), [1], Drawing((32, 32), 4))
        return np.asarray(one, dtype=int)

    base = drawn(pipelines[2])
    with applied(pipelines[2].models, [lm.load(path)]):
        live = drawn(pipelines[2])
    assert np.abs(drawn(pipelines[0]) - live).max() <= 1 >= np.abs(drawn(pipelines[1]) - live).max()
    assert np.abs(base - live).max() > 10
    assert np.array_equal(drawn(pipelines[2]), base)


def asked(folder: Path, *names: str, **how: Any) -> Preview:
    usual = {"base": (str(pipeline_folder()),), "steps": 2, "output": str(folder / "x.png")}
    return Preview(adapters=tuple(parse_reference(n) for n in names), **(usual | how))


def shown(*arguments: Any, **how: Any) -> PreviewResult:
    return preview(asked(*arguments, **how), Context(device="cpu"))


@pytest.mark.long_tail
def test_columns_and_rows(tmp_path: Path) -> None:
    path = adapters(tmp_path)["plain"]
    result = shown(
        tmp_path, str(path), f"{path}:0.5", prompt=("a", "b"), seed=(1, 2), weight=(0.0, 1.0),
        html=True,
    )  # fmt: skip
    assert result.rows == ["a · seed 1", "a · seed 2", "b · seed 1", "b · seed 2"]
    assert result.columns == [
        "base", "out at 0", "out", "out at 0.5 × 0", "out at 0.5",
    ]  # fmt: skip
    base, zero, full, _, half = result.changes
    assert base == zero == 0.0 and min(full, half) > 0.5 and full != half
    assert result.json()["outputs"] == [str(tmp_path / "x.png"), str(tmp_path / "x.html")]
    page = (tmp_path / "x.html").read_text("utf-8")
    assert "data:image/png;base64," in page and "://" not in page and str(tmp_path) not in page
    first = (tmp_path / "x.png").read_bytes()
    with pytest.raises(OutputExists):
        shown(tmp_path, str(path))
    shown(
        tmp_path, str(path), f"{path}:0.5", prompt=("a", "b"), seed=(1, 2), weight=(0.0, 1.0),
        force=True,
    )  # fmt: skip
    assert (tmp_path / "x.png").read_bytes() == first
    both = shown(tmp_path, str(path), f"{path}:0.5", together=True, no_base=True, force=True)
    assert both.columns == ["out + out at 0.5"] and both.rows == ["(no prompt) · seed 0"]
    bases = shown(tmp_path, base=(str(pipeline_folder()), str(pipeline_folder("sd21"))), force=True)
    assert len(bases.columns) == 2 and bases.columns[0].endswith(": base")


@pytest.mark.parametrize("prompt", [(), ("",), ("a cat",)])
def test_without_a_prompt_the_trigger_words_are_named(
    tmp_path: Path, prompt: tuple[str, ...]
) -> None:
    seen: list[Any] = []
    adapters = (parse_reference("zuzu"), parse_reference("polka"))
    asked = Preview(
        base=("tiny",), adapters=adapters, prompt=prompt, steps=1, guidance=1.0,
        output=str(tmp_path / "x.png"),
    )  # fmt: skip
    preview(asked, Context(notify=seen.append))
    notes = [event.text for event in seen if isinstance(event, Note)]
    assert notes == ([] if any(prompt) else ["no prompt is given; trigger words: zuzu"])


def test_a_model_alone_is_nearest_to_the_adapter_that_is_baked_into_it(tmp_path: Path) -> None:
    lm.bake("tiny", [(lm.load("zuzu"), 0.5)], tmp_path / "made")
    how = {"base": ("tiny",), "prompt": ("zuzu",), "html": True}
    result = shown(tmp_path, "zuzu", "zuzu:0.5", baked=(str(tmp_path / "made"), "tiny"), **how)
    assert result.columns == ["base", "zuzu", "zuzu at 0.5", "made", "tiny"]
    column, apart = result.like["made"]
    assert column == "zuzu at 0.5" and apart < 0.5 < min(result.changes[1:4])
    assert result.like["tiny"] == ("base", 0.0) and result.changes[-1] == 0.0
    assert result.json()["like"]["made"]["column"] == "zuzu at 0.5"
    assert "nearest to zuzu at 0.5" in (tmp_path / "x.html").read_text("utf-8")


def test_a_model_alone_of_another_size_is_refused() -> None:
    from loramerge.train.drawing.preview import _check_size

    one, other = Image.new("RGB", (8, 8)), Image.new("RGB", (16, 8))
    _check_size("x", one, one)
    with pytest.raises(UsageError, match="16×8"):
        _check_size("x", other, one)


def test_what_cannot_be_meant(tmp_path: Path) -> None:
    for how, says in (
        ({"base": ()}, "needs a base"),
        ({"no_base": True}, "nothing to show"),
        ({"output": "x.jpg"}, "PNG"),
    ):
        with pytest.raises(UsageError, match=says):
            shown(tmp_path, **how)
    with pytest.raises(UsageError, match="image of this base has 4 pixels"):
        from dataclasses import replace

        odd = replace(asked(tmp_path), size=8)
        object.__setattr__(odd, "size", 3)
        preview(odd, Context(device="cpu"))


@pytest.mark.long_tail
def test_as_a_step(tmp_path: Path) -> None:
    path = adapters(tmp_path)["plain"]
    text = (
        "version: 1\n"
        f"inputs: {{base: '{pipeline_folder().as_posix()}', one: '{path.as_posix()}'}}\n"
        "sweep: {w: [0.5, 1.0]}\n"
        "steps:\n"
        "  part: {mix: {adapters: ['one:${w}']}}\n"
        "  sheet:\n"
        "    preview: {base: [base], adapters: [{each: part}], prompt: [zuzu], steps: 2}\n"
        "    save: sheet.png\n"
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text, "utf-8")
    outcome = lm.run(recipe, device="cpu").outcomes["sheet"]
    assert outcome.result.columns == ["base", "part[w=0.5]", "part[w=1]"]
    assert 0 < outcome.result.changes[1] != outcome.result.changes[2]
    assert lm.run(recipe, device="cpu").outcomes["sheet"].status == "up to date"
    for wrong, says in (("sheet.jpg", "writes a PNG image"), (None, "always writes a file")):
        kept = text.replace("    save: sheet.png\n", f"    save: {wrong}\n" if wrong else "")
        recipe.write_text(kept, "utf-8")
        with pytest.raises(RecipeError, match=says):
            lm.run(recipe)


def test_grids_are_labelled_and_enlarged() -> None:
    cells = [[picture(1), None], [picture(2), picture(3)]]
    plain = grid(cells, ["", ""], ["", ""])
    labelled = grid(
        cells, ["first row", "a long label that has to be cut " * 9], ["a", "b"], "title"
    )
    assert labelled.width > plain.width > 2 * 96 and labelled.height > plain.height
    array = np.asarray(plain)
    assert (array[-3 - 96 : -6, 6 : 6 + 96].reshape(-1, 3).std(0) > 5).any()  # a picture, enlarged
    assert png_bytes(plain) == png_bytes(grid(cells, ["", ""], ["", ""]))
